"""Segmentation: equal to a plain form of the algorithm on small images, and to OpenCV's on larger ones."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from sppdet.proposals.segmentation import segment, smooth, sorted_edges


def plain_segmentation(smoothed: np.ndarray, k: float, min_size: int) -> np.ndarray:
    """Segment as in Felzenszwalb and Huttenlocher, section 4.1, then join small segments.

    Every pixel refers to the set of all pixels of its segment.
    """
    height, width, _ = smoothed.shape
    edges = []
    for y in range(height):
        for x in range(width):
            for down, right in ((0, 1), (1, 0)):
                if y + down < height and x + right < width:
                    square = np.float32(0)
                    for difference in smoothed[y + down, x + right] - smoothed[y, x]:
                        square = np.float32(square + np.float64(difference) ** 2)
                    edges.append((np.sqrt(square), (y, x), (y + down, x + right)))
    edges.sort(key=lambda edge: edge[0])
    segment_of = {(y, x): {(y, x)} for y in range(height) for x in range(width)}
    heaviest = {id(members): np.float32(0) for members in segment_of.values()}

    def join(a, b, weight):
        small, large = sorted((a, b), key=len)
        large |= small
        segment_of.update(dict.fromkeys(small, large))
        heaviest[id(large)] = weight

    for weight, p, q in edges:
        a, b = segment_of[p], segment_of[q]
        limits = [heaviest[id(members)] + np.float32(k) / np.float32(len(members)) for members in (a, b)]
        if a is not b and weight <= min(limits):
            join(a, b, weight)
    for weight, p, q in edges:
        a, b = segment_of[p], segment_of[q]
        if a is not b and min(len(a), len(b)) < min_size:
            join(a, b, weight)
    numbers: dict[int, int] = {}
    flat = [numbers.setdefault(id(segment_of[y, x]), len(numbers)) for y in range(height) for x in range(width)]
    return np.array(flat).reshape(height, width)


def random_image(height: int, width: int, seed: int, blur: float = 2.0, channels: int = 3) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)
    image = cv2.GaussianBlur(noise, (0, 0), blur).reshape(height, width, channels)
    image[height // 4 : height // 2, width // 3 :] //= 2
    return image


@pytest.mark.parametrize(
    "image",
    [
        random_image(24, 31, 0),
        random_image(31, 17, 1, blur=0.6),
        random_image(20, 20, 2, blur=5) // 8 * 8,  # many equal weights
        random_image(25, 25, 3, channels=1),
        np.zeros((9, 11, 3), np.uint8),
        random_image(1, 40, 4),
        random_image(40, 1, 5),
        random_image(2, 2, 6),
        random_image(1, 1, 7),
    ],
    ids=lambda image: "x".join(map(str, image.shape)),
)
@pytest.mark.parametrize("ks", [(20, 50, 300), (80,)], ids=str)
def test_segments_are_those_of_the_plain_form(image, ks):
    pieces, labels = segment(image, ks, 0.8, 12)
    assert labels.shape == (len(ks), pieces.max() + 1)
    assert len(np.unique(labels, axis=1).T) == labels.shape[1]  # no more pieces than the segments need
    for k, row in zip(ks, labels):
        np.testing.assert_array_equal(row[pieces], plain_segmentation(smooth(image, 0.8), k, 12))


def test_edges_are_sorted_by_weight_then_number():
    image = smooth(random_image(13, 19, 0), 0.8)
    edges, weights = sorted_edges(image)
    assert len(edges) == len(set(edges.tolist())) == 13 * 18 + 12 * 19
    assert (np.diff(weights) >= 0).all() and (np.diff(edges)[np.diff(weights) == 0] > 0).all()
    y, x = np.divmod(edges // 2, 19)
    down = edges % 2
    distance = np.linalg.norm(image[y + down, x + 1 - down] - image[y, x], axis=1)
    np.testing.assert_allclose(weights, distance, rtol=1e-6)


def test_sigma_0_leaves_the_image_unchanged():
    image = random_image(40, 50, 0, blur=0.5)
    np.testing.assert_array_equal(smooth(image, 0.0), image.astype(np.float32))


@pytest.mark.parametrize("sigma", [0.5, 0.8])
@pytest.mark.parametrize("channels", [1, 3])
def test_segments_are_opencvs(sigma, channels):
    for seed in range(3):
        image = random_image(150, 200, seed, blur=3, channels=channels)
        ks = (50, 100, 150)
        pieces, labels = segment(image, ks, sigma, 100)
        for k, row in zip(ks, labels):
            expected = cv2.ximgproc.segmentation.createGraphSegmentation(sigma, k, 100).processImage(image)
            np.testing.assert_array_equal(row[pieces], expected)
