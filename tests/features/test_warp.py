"""Crops of windows against R-CNN's program line by line, crops known by hand, and windows at the image's edges."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sppdet.config import CROPS
from sppdet.features.warp import Crop


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    """46 x 61 pixels of different colours, none of them 0."""
    return np.random.default_rng(0).uniform(1, 2, (46, 61, 3)).astype(np.float32)


def random_boxes(count: int, seed: int = 0) -> np.ndarray:
    """Return windows of a 61 x 46 image; every second one touches its edges."""
    rng = np.random.default_rng(seed)
    size = np.stack([rng.integers(1, 62, count), rng.integers(1, 47, count)], axis=1)
    corner = rng.integers(0, [62, 47] - size)
    corner[::2] = np.where(rng.random((len(corner[::2]), 2)) < 0.5, 0, [61, 46] - size[::2])
    return np.concatenate([corner, corner + size], axis=1).astype(np.float32)


def matlab_round(value: float) -> int:
    return int(math.copysign(math.floor(abs(value) + 0.5), value))


def im_crop(image: np.ndarray, box, crop: Crop) -> np.ndarray:
    """Crop as rcnn_im_crop.m does, in 1-based inclusive pixels; ``square``, not in the program, clips to the window."""
    height, width = image.shape[:2]
    bbox = [box[0] + 1, box[1] + 1, box[2], box[3]]
    limits = [1, 1, width, height]
    pad, extent = [0, 0], [crop.size, crop.size]
    if crop.context > 0 or crop.kind != "warp":
        scale = crop.size / (crop.size - crop.context * 2)
        half = [(bbox[2] - bbox[0] + 1) / 2, (bbox[3] - bbox[1] + 1) / 2]
        centre = [bbox[0] + half[0], bbox[1] + half[1]]
        reach = half if crop.kind == "warp" else [max(half)] * 2
        if crop.kind == "square":
            for axis in range(2):
                border = reach[axis] * (scale - 1)
                limits[axis] = max(limits[axis], matlab_round(centre[axis] - half[axis] - border))
                limits[axis + 2] = min(limits[axis + 2], matlab_round(centre[axis] + half[axis] + border))
        for axis in range(2):
            first = matlab_round(centre[axis] - reach[axis] * scale)
            last = matlab_round(centre[axis] + reach[axis] * scale)
            unclipped = last - first + 1
            before = max(0, limits[axis] - first)
            bbox[axis], bbox[axis + 2] = max(limits[axis], first), min(limits[axis + 2], last)
            ratio = crop.size / unclipped
            extent[axis] = max(1, matlab_round((bbox[axis + 2] - bbox[axis] + 1) * ratio))
            pad[axis] = min(matlab_round(before * ratio), crop.size - 1)
            extent[axis] = min(extent[axis], crop.size - pad[axis])
    x1, y1, x2, y2 = (int(edge) for edge in bbox)
    window = np.zeros((crop.size, crop.size, 3))
    shown = imresize(image[y1 - 1 : y2, x1 - 1 : x2].astype(np.float64), extent[1], extent[0])
    window[pad[1] : pad[1] + extent[1], pad[0] : pad[0] + extent[0]] = shown
    return window


def imresize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize bilinearly, without antialiasing, one axis after the other: pixel centres to pixel centres."""
    for axis, length in ((0, height), (1, width)):
        old = image.shape[axis]
        source = np.clip((np.arange(length) + 0.5) * old / length - 0.5, 0, old - 1)
        low = np.floor(source).astype(int)
        share = (source - low).reshape([-1, 1, 1] if axis == 0 else [1, -1, 1])
        image = np.take(image, low, axis) * (1 - share) + np.take(image, np.minimum(low + 1, old - 1), axis) * share
    return image


@pytest.mark.parametrize("kind", CROPS)
@pytest.mark.parametrize("context", [0, 3, 16])
def test_crops_are_those_of_the_program(image, kind, context):
    crop, boxes = Crop(kind, 67, context), random_boxes(60)
    crops = crop.pixels(image, boxes)
    assert crops.shape == (60, 67, 67, 3) and crops.dtype == np.float32
    for box, pixels in zip(boxes, crops):
        expected = im_crop(image, box, crop)
        np.testing.assert_array_equal(pixels == 0, expected == 0)  # the padding
        np.testing.assert_allclose(pixels, expected, atol=1e-3)


def test_the_frame_of_a_window_by_hand():
    # 195 pixels become 227 - 2 * 16, so one pixel stays one, and 16 lie on each side. The frame of the program is a
    # pixel wider: 34 .. 262 where 34 .. 261 would do.
    source, target = Crop().frames(np.array([[50, 50, 245, 245]], np.float32), (500, 500))
    assert source.tolist() == [[34, 34, 262, 262]] and target.tolist() == [[0, 0, 227, 227]]
    # At the left edge of the image the first 16 of 228 pixels are missing, and 100 at the right edge.
    source, target = Crop().frames(np.array([[0, 50, 195, 245]], np.float32), (112, 500))
    assert source.tolist() == [[0, 34, 112, 262]]
    assert target.tolist() == [[16, 0, 16 + 112, 227]]  # round(16 * 227 / 228), round(112 * 227 / 228)


def test_without_context_a_window_is_warped_as_it_is(image):
    crop = Crop("warp", 64, 0)
    (warped,) = crop.pixels(image, np.array([[5, 6, 37, 22]], np.float32))
    np.testing.assert_allclose(warped, imresize(image[6:22, 5:37].astype(np.float64), 64, 64), atol=1e-3)


def test_squares_are_not_stretched():
    # Channel 0 holds the number of a pixel's column, channel 1 of its row, channel 2 is 1 inside the image.
    columns, rows = np.meshgrid(np.arange(200, dtype=np.float32), np.arange(200, dtype=np.float32))
    image = np.stack([columns, rows, np.ones_like(rows)], axis=2)
    box = np.array([[60, 90, 140, 110]], np.float32)  # four times as wide as high
    steps = {}
    for kind in CROPS:
        (crop,) = Crop(kind, 100, 0).pixels(image, box)
        shown = crop[..., 2] > 0
        across, down = np.diff(crop[50, :, 0])[10:-10].mean(), np.diff(crop[shown[:, 50], 50, 1])[3:-3].mean()
        steps[kind] = (across, down, shown.mean())
    assert steps["warp"] == pytest.approx((0.8, 0.2, 1.0), abs=0.02)
    assert steps["square_context"] == pytest.approx((0.8, 0.8, 1.0), abs=0.02)
    assert steps["square"] == pytest.approx((0.8, 0.8, 0.26), abs=0.02)  # a quarter, and the wider frame


@pytest.mark.parametrize("kind", CROPS)
@pytest.mark.parametrize("box", [[0, 0, 1, 46], [60, 45, 61, 46], [60.6, 3.2, 61, 3.4], [0, 0, 61, 1], [0, 0, 61, 46]])
def test_every_window_shows_something(image, kind, box):
    for context in (0, 16):
        crop = Crop(kind, 67, context)
        boxes = np.array([box], np.float32)
        for frames, limit in zip(crop.frames(boxes, (61, 46)), ([61, 46], [67, 67])):
            assert (
                (frames[:, :2] >= 0).all() and (frames[:, 2:] <= limit).all() and (frames[:, :2] < frames[:, 2:]).all()
            )
        assert (crop.pixels(image, boxes) > 0).any()


def test_no_windows(image):
    assert Crop().pixels(image, np.zeros((0, 4), np.float32)).shape == (0, 227, 227, 3)
