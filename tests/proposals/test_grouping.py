"""Grouping: equal to a brute-force form on small images, with histograms counted pixel by pixel."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from sppdet.proposals.grouping import Regions, group
from sppdet.proposals.texture import bins_of_slopes

MIXES = [(0.25, 0.25, 0.25, 0.25), (0, 1 / 3, 1 / 3, 1 / 3), (0, 0, 1, 0), (0, 0, 0, 1)]


@pytest.fixture
def image() -> np.ndarray:
    noise = np.random.default_rng(0).integers(0, 256, (24, 30, 3), np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 1.5)


def random_labels(height: int, width: int, count: int, seed: int) -> np.ndarray:
    """Label each pixel with the nearest of ``count`` random points; the labels are numbered by first pixel."""
    points = np.random.default_rng(seed).random((count, 2)) * (height, width)
    y, x = np.mgrid[:height, :width]
    nearest = np.hypot(y[..., None] - points[:, 0], x[..., None] - points[:, 1]).argmin(axis=2)
    _, first, inverse = np.unique(nearest, return_index=True, return_inverse=True)
    return first.argsort().argsort()[inverse].reshape(height, width).astype(np.int32)


def plain_histogram(image: np.ndarray, mask: np.ndarray) -> list[int]:
    """Count the histogram of the pixels in ``mask``."""
    histogram = []
    for c in range(image.shape[2]):
        values = image[..., c][mask].astype(int)
        histogram += [int((values * 25 // 256 == i).sum()) for i in range(25)]
    slopes = bins_of_slopes(image).reshape(4, *image.shape)
    for c in range(image.shape[2]):
        for bins in slopes[..., c]:
            falls, rises = np.where(bins < 10, bins, 9), np.where(bins < 10, 0, bins - 10)
            histogram += [int((half[mask] == i).sum()) for half in (falls, rises) for i in range(10)]
    return histogram


def plain_group(regions: Regions, weights) -> list[tuple[int, ...]]:
    """Return the windows of grouping, with all pairs compared anew for every join."""
    members = {
        r: (int(regions.sizes[r]), tuple(map(int, regions.boxes[r])), regions.histograms[r].astype(int))
        for r in range(len(regions.sizes))
    }
    numbers = {frozenset(map(int, pair)): p for p, pair in enumerate(regions.pairs)}
    area = int(regions.sizes.sum())
    colours = regions.histograms.shape[1] * 25 // 105
    windows = [box for _, box, _ in members.values()]

    def similarity(pair) -> int:
        (n1, box1, h1), (n2, box2, h2) = (members[r] for r in pair)
        scales = [np.float32(65535) / np.float32(n) for n in (n1, n2)]
        shares = [(h.astype(np.float32) * scale).astype(int) for h, scale in zip((h1, h2), scales)]
        common = np.minimum(*shares)
        channels = colours // 25
        box = union(box1, box2)
        rectangle = (box[2] - box[0]) * (box[3] - box[1])
        terms = (
            int(common[:colours].sum()) / (65535 * channels),
            int(common[colours:].sum()) / (65535 * channels * 8),
            1 - (n1 + n2) / area,
            min(1 - (rectangle - n1 - n2) / area, 1),
        )
        return int(sum(weight * term for weight, term in zip(weights, terms)) * 2**30)

    while numbers:
        joined = max(numbers, key=lambda pair: (similarity(pair), -numbers[pair]))
        a, b = sorted(joined)
        size, box, histogram = zip(members[a], members.pop(b))
        members[a] = (sum(size), union(*box), histogram[0] + histogram[1])
        windows.append(members[a][1])
        del numbers[joined]
        for pair in sorted(numbers, key=numbers.get, reverse=True):  # the lowest number is written last
            if b in pair:
                numbers[pair - {b} | {a}] = min(numbers.pop(pair), numbers.get(pair - {b} | {a}, 1 << 30))
    return windows


def union(a, b) -> tuple[int, ...]:
    """Return the smallest box around two boxes."""
    return (min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3]))


def test_sizes_boxes_pairs_and_histograms_by_counting(image):
    labels = random_labels(24, 30, 9, 0)
    regions = Regions.of(image, labels, 9)
    for r in range(9):
        y, x = np.nonzero(labels == r)
        assert regions.sizes[r] == len(y)
        assert tuple(regions.boxes[r]) == (x.min(), y.min(), x.max() + 1, y.max() + 1)
        assert regions.histograms[r].tolist() == plain_histogram(image, labels == r)
    pairs = set()
    inner = labels[1:, 1:]  # OpenCV looks for no pairs in the first row and column
    for neighbours in labels[1:, :-1], labels[:-1, 1:], labels[:-1, :-1]:
        pairs |= {(min(a, b), max(a, b)) for a, b in zip(inner.ravel(), neighbours.ravel()) if a != b}
    assert [tuple(pair) for pair in regions.pairs.tolist()] == sorted(pairs)


def test_unions_of_regions_are_the_regions_of_the_merged_labels(image):
    labels = random_labels(24, 30, 20, 1)
    coarser = np.unique(np.arange(20) // 3 * 7 % 11, return_inverse=True)[1]
    first = [int(np.flatnonzero(coarser[labels].ravel() == r)[0]) for r in range(coarser.max() + 1)]
    coarser = np.argsort(np.argsort(first))[coarser].astype(np.int32)
    merged = Regions.of(image, labels, 20).merged(coarser)
    expected = Regions.of(image, coarser[labels], int(coarser.max()) + 1)
    for field in ("sizes", "boxes", "histograms", "pairs"):
        np.testing.assert_array_equal(getattr(merged, field), getattr(expected, field))


@pytest.mark.parametrize("weights", MIXES, ids=["all", "no colour", "size", "fill"])
@pytest.mark.parametrize("count", [1, 2, 3, 12, 40])
def test_grouping_is_that_of_brute_force(image, count, weights):
    for seed in range(3):
        labels = random_labels(24, 30, count, seed)
        regions = Regions.of(image, labels, int(labels.max()) + 1)
        windows = group(regions, weights)
        assert len(windows) == 2 * len(regions.sizes) - 1
        assert [tuple(map(int, box)) for box in windows] == plain_group(regions, weights)


def test_equal_regions_are_grouped_by_number():
    """All pairs of a plain chequerboard are equally similar."""
    image = np.full((24, 24, 3), 77, np.uint8)
    y, x = np.mgrid[:24, :24]
    labels = (y // 4 * 6 + x // 4).astype(np.int32)
    regions = Regions.of(image, labels, 36)
    for weights in MIXES:
        assert [tuple(map(int, box)) for box in group(regions, weights)] == plain_group(regions, weights)


def test_grey_images_have_one_channel(image):
    regions = Regions.of(image[:, :, :1], random_labels(24, 30, 8, 0), 8)
    assert regions.histograms.shape == (8, 105)
    assert [tuple(map(int, box)) for box in group(regions, MIXES[0])] == plain_group(regions, MIXES[0])


def test_similar_colours_are_joined_first():
    """Three stripes of equal size: black, white, and black with some white. Neighbours join by colour alone."""
    image = np.zeros((10, 30, 1), np.uint8)
    image[:, 10:20] = 250
    image[:4, 20:] = 250
    labels = np.repeat(np.arange(3, dtype=np.int32), 10)[None].repeat(10, axis=0)
    # The intersection of the colours is 0 for the first pair and 0.4 for the second.
    windows = group(Regions.of(image, labels, 3), (1, 0, 0, 0))
    assert windows[3:].tolist() == [[10, 0, 30, 10], [0, 0, 30, 10]]


def test_regions_that_fill_their_common_box_are_joined_first():
    """An L of two regions, and a third region that completes one of them to a rectangle."""
    labels = np.zeros((8, 8), np.int32)
    labels[4:, :4] = 1
    labels[4:, 4:] = 2
    # The box of 1 and 2 is full; the box of 0 and either of them has a quarter of the image to spare.
    windows = group(Regions.of(np.zeros((8, 8, 1), np.uint8), labels, 3), (0, 0, 0, 1))
    assert windows[3:].tolist() == [[0, 4, 8, 8], [0, 0, 8, 8]]
