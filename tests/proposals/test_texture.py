"""Texture: equal to the steps of OpenCV's selective search on images of any shape, in bounded memory."""

from __future__ import annotations

import tracemalloc

import cv2
import numpy as np
import pytest

from sppdet.proposals import texture
from sppdet.proposals.texture import bins_of_slopes, derivatives


def plain_derivatives(plane: np.ndarray) -> list[np.ndarray]:
    """Compute Scharr's derivatives of a channel ``(H, W)``, and of the turned channel, turned back as a whole."""
    height, width = plane.shape
    results = [cv2.Scharr(plane, cv2.CV_32F, 1, 0), cv2.Scharr(plane, cv2.CV_32F, 0, 1)]
    centre = (width / 2, height / 2)
    corners = cv2.boxPoints((centre, (width, height), 45.0))
    w, h = (np.ceil(corners.max(axis=0)) - np.floor(corners.min(axis=0))).astype(int).tolist()
    w, h = w + 1, h + 1  # as RotatedRect::boundingRect counts
    turn = cv2.getRotationMatrix2D(centre, 45.0, 1.0)
    turn[:, 2] += (w / 2 - centre[0], h / 2 - centre[1])
    turned = cv2.warpAffine(plane, turn, (w, h))
    back = cv2.getRotationMatrix2D((w // 2, h // 2), -45.0, 1.0)
    left, top = max(0, (w - width) // 2), max(0, (h - height) // 2)
    for axis in ((1, 0), (0, 1)):
        whole = cv2.warpAffine(cv2.Scharr(turned, cv2.CV_32F, *axis), back, (w + width, h + height))
        results.append(whole[top : top + height, left : left + width])
    return results


def plain_bins(slopes: np.ndarray) -> np.ndarray:
    """Stretch negative and positive values to 0 to 255 and cut each into ten bins."""
    bins = []
    for half in (np.minimum(slopes, 0), np.maximum(slopes, 0)):
        low, high = float(half.min()), float(half.max())
        factor, summand = (255 / (high - low), -255 * low / (high - low)) if high > low else (0, 255)
        level = np.rint(half * np.float32(factor) + np.float32(summand))
        bins.append((level.astype(np.float32) / np.float32(25.6)).astype(int))
    return np.where(slopes > 0, bins[1] + 10, bins[0])


def noise_image(height: int, width: int, channels: int = 3) -> np.ndarray:
    noise = np.random.default_rng(height).integers(0, 256, (height, width, channels), np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 1.5).reshape(height, width, channels)


IMAGES = {
    "landscape": noise_image(40, 60),
    "portrait": noise_image(61, 40),
    "one channel": noise_image(30, 30, 1),
    "long": noise_image(20, 90),
    "tall": noise_image(90, 21),
    "a row": noise_image(1, 40),
    "a column": noise_image(40, 1),
    "a pixel": noise_image(1, 1),
    "flat": np.full((20, 30, 3), 7, np.uint8),
    "a slope": np.add.outer(np.arange(30), 2 * np.arange(30)).astype(np.uint8)[..., None],
}


@pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES)
@pytest.mark.parametrize("tile", [None, 16, 37])
def test_derivatives_are_those_of_each_channel(image, tile, monkeypatch):
    if tile:  # as for images whose turned image is too large to be held whole
        monkeypatch.setattr(texture, "_LARGEST_TURNED", 0)
        monkeypatch.setattr(texture, "_LARGEST_FACTOR", 0)
        monkeypatch.setattr(texture, "_TILE", tile)
    directions = [
        rows[:, first : first + image[0].size].reshape(image.shape).copy() for rows, first in derivatives(image)
    ]
    for c in range(image.shape[2]):
        plane = np.ascontiguousarray(image[..., c])
        for slopes, expected in zip(directions, plain_derivatives(plane), strict=True):
            np.testing.assert_array_equal(slopes[..., c], expected)


def test_the_turned_image_of_a_long_image_is_never_held_whole(monkeypatch):
    """Turned by 45 degrees, 1 x 8,000 pixels become 32 million: 160 MB with a derivative."""
    long = noise_image(1, 8000, 1)
    tracemalloc.start()
    tiled = [rows[:, first : first + 8000].copy() for rows, first in derivatives(long)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16e6
    monkeypatch.setattr(texture, "_LARGEST_TURNED", 1 << 30)
    whole = [rows[:, first : first + 8000].copy() for rows, first in derivatives(long)]
    np.testing.assert_array_equal(tiled, whole)


@pytest.mark.parametrize(("shape", "tiled"), [((1, 4000), False), ((1, 5000), True), ((2000, 3000), False)])
def test_only_long_images_are_computed_in_tiles(shape, tiled, monkeypatch):
    ways = []
    for way in ("_whole_diagonals", "_tiled_diagonals"):
        monkeypatch.setattr(texture, way, lambda image, turn, way=way: ways.append(way) or iter(()))
    assert len(list(derivatives(np.zeros((*shape, 1), np.uint8)))) == 2
    assert ways == ["_tiled_diagonals" if tiled else "_whole_diagonals"]


@pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES)
def test_bins_are_those_of_each_channel(image):
    bins = bins_of_slopes(image).reshape(4, *image.shape)
    for c in range(image.shape[2]):
        plane = np.ascontiguousarray(image[..., c])
        for direction, slopes in zip(bins, plain_derivatives(plane), strict=True):
            np.testing.assert_array_equal(direction[..., c], plain_bins(slopes))


def test_a_steep_edge_is_in_the_outermost_bins():
    image = np.zeros((20, 20, 1), np.uint8)
    image[:, 10:] = 200
    along, down = bins_of_slopes(image)[:2]
    assert set(along[:, 9:11].ravel()) == {19} and set(along[:, 2:8].ravel()) == {9}
    assert set(bins_of_slopes(image[:, ::-1].copy())[0][:, 9:11].ravel()) == {0}
    assert set(down.ravel()) == {9}
