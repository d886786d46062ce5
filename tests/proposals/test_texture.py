"""Texture: equal to what OpenCV's selective search does step by step, on images of any shape."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from sppdet.proposals.texture import bins_of_slopes, derivatives


def plain_derivatives(plane: np.ndarray) -> list[np.ndarray]:
    """Of a channel ``(H, W)``: Scharr's along x and y, then the same of the whole turned image, turned back whole."""
    height, width = plane.shape
    found = [cv2.Scharr(plane, cv2.CV_32F, 1, 0), cv2.Scharr(plane, cv2.CV_32F, 0, 1)]
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
        found.append(whole[top : top + height, left : left + width])
    return found


def plain_bins(slopes: np.ndarray) -> np.ndarray:
    """Both parts are stretched to 0 to 255 and cut into ten bins; a pixel counts where it is not level."""
    parts = []
    for part in (np.minimum(slopes, 0), np.maximum(slopes, 0)):
        low, high = float(part.min()), float(part.max())
        factor, summand = (255 / (high - low), -255 * low / (high - low)) if high > low else (0, 255)
        level = np.rint(part * np.float32(factor) + np.float32(summand))
        parts.append((level.astype(np.float32) / np.float32(25.6)).astype(int))
    return np.where(slopes > 0, parts[1] + 10, parts[0])


def image(height: int, width: int, channels: int = 3) -> np.ndarray:
    noise = np.random.default_rng(height).integers(0, 256, (height, width, channels), np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 1.5).reshape(height, width, channels)


PICTURES = {
    "landscape": image(40, 60),
    "portrait": image(61, 40),
    "one channel": image(30, 30, 1),
    "long": image(20, 90),
    "tall": image(90, 21),
    "a row": image(1, 40),
    "a column": image(40, 1),
    "a pixel": image(1, 1),
    "flat": np.full((20, 30, 3), 7, np.uint8),
    "a slope": np.add.outer(np.arange(30), 2 * np.arange(30)).astype(np.uint8)[..., None],
}


@pytest.mark.parametrize("image", PICTURES.values(), ids=PICTURES)
def test_derivatives_are_those_of_each_channel(image):
    found = [rows[:, first : first + image[0].size].reshape(image.shape).copy() for rows, first in derivatives(image)]
    for c in range(image.shape[2]):
        plane = np.ascontiguousarray(image[..., c])
        for own, expected in zip(found, plain_derivatives(plane), strict=True):
            np.testing.assert_array_equal(own[..., c], expected)


@pytest.mark.parametrize("image", PICTURES.values(), ids=PICTURES)
def test_bins_are_those_of_each_channel(image):
    bins = bins_of_slopes(image).reshape(4, *image.shape)
    for c in range(image.shape[2]):
        plane = np.ascontiguousarray(image[..., c])
        for own, slopes in zip(bins, plain_derivatives(plane), strict=True):
            np.testing.assert_array_equal(own[..., c], plain_bins(slopes))


def test_a_steep_edge_is_in_the_outermost_bins():
    image = np.zeros((20, 20, 1), np.uint8)
    image[:, 10:] = 200
    along, down = bins_of_slopes(image)[:2]
    assert set(along[:, 9:11].ravel()) == {19} and set(along[:, 2:8].ravel()) == {9}
    assert set(bins_of_slopes(image[:, ::-1].copy())[0][:, 9:11].ravel()) == {0}
    assert set(down.ravel()) == {9}
