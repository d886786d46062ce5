"""Boxes are 0-based pixel edges, so that plain IoU is the devkit's "+1" arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sppdet.ops import boxes as geometry


def random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    corner = rng.uniform(0, 300, (count, 2))
    return np.concatenate([corner, corner + rng.uniform(10, 200, (count, 2))], axis=1).astype(np.float32)


def test_voc_corners_become_edges():
    # The first pixel of an image, and the object of 2007_000027: xmin=174, ymin=101, xmax=349, ymax=351.
    boxes = geometry.from_voc([[1, 1, 1, 1], [174, 101, 349, 351]])
    assert boxes.dtype == np.float32
    assert boxes.tolist() == [[0, 0, 1, 1], [173, 100, 349, 351]]
    assert geometry.areas(boxes).tolist() == [1, (349 - 174 + 1) * (351 - 101 + 1)]


def test_voc_corners_keep_the_digits_of_float32():
    x = np.float32(0.1)
    assert geometry.to_voc([[x, 0, 1, 1]])[0, 0] == np.float64(x) + 1 != np.float64(x + np.float32(1))


def test_voc_and_xywh_conversions_are_inverses():
    boxes = np.array([[0, 0, 1, 1], [10, 20, 40, 25]], np.float32)
    np.testing.assert_array_equal(geometry.from_voc(geometry.to_voc(boxes)), boxes)
    assert geometry.to_xywh(boxes).tolist() == [[0, 0, 1, 1], [10, 20, 30, 5]]
    np.testing.assert_array_equal(geometry.from_xywh(geometry.to_xywh(boxes)), boxes)


@pytest.mark.parametrize("convert", ["from_voc", "to_voc", "from_xywh", "to_xywh", "as_boxes"])
def test_no_boxes_stay_no_boxes(convert):
    boxes = getattr(geometry, convert)([])
    assert boxes.shape == (0, 4) and boxes.dtype == (np.float64 if convert == "to_voc" else np.float32)


def test_iou_by_hand():
    a = np.array([[0, 0, 10, 10]], np.float32)
    others = np.array(
        [
            [0, 0, 10, 10],  # equal: 1
            [5, 0, 15, 10],  # half: 50 / 150
            [2, 2, 4, 7],  # inside: 10 / 100
            [10, 0, 20, 10],  # shares an edge only
            [5, 5, 5, 9],  # empty
        ],
        np.float32,
    )
    np.testing.assert_allclose(geometry.iou(a, others), [[1, 1 / 3, 0.1, 0, 0]], rtol=1e-6)


def test_iou_of_no_boxes_and_of_boxes_without_area():
    three, none = np.ones((3, 4), np.float32), np.zeros((0, 4), np.float32)
    assert geometry.iou(three, none).shape == (3, 0)
    assert geometry.iou(none, three).shape == (0, 3)
    empty = np.array([[5, 5, 5, 5]], np.float32)
    assert geometry.iou(empty, empty).tolist() == [[0]]


def devkit_iou(a: list[int], b: list[int]) -> float:
    """IoU as VOCevaldet.m computes it: corners are 1-based and inclusive, and 1 is added to every side."""
    width = min(a[2], b[2]) - max(a[0], b[0]) + 1
    height = min(a[3], b[3]) - max(a[1], b[1]) + 1
    if width <= 0 or height <= 0:
        return 0.0
    union = (a[2] - a[0] + 1) * (a[3] - a[1] + 1) + (b[2] - b[0] + 1) * (b[3] - b[1] + 1) - width * height
    return width * height / union


def test_iou_is_the_devkits():
    rng = np.random.default_rng(0)
    corner = rng.integers(1, 20, (40, 2))
    voc = np.concatenate([corner, corner + rng.integers(0, 15, (40, 2))], axis=1)
    expected = [[devkit_iou(a, b) for b in voc.tolist()] for a in voc.tolist()]
    boxes = geometry.from_voc(voc)
    np.testing.assert_allclose(geometry.iou(boxes, boxes), expected, rtol=1e-6)


def test_clip_cuts_to_the_image():
    assert geometry.clip(np.array([[-3, 5, 120, 60]], np.float32), 100, 50).tolist() == [[0, 5, 100, 50]]


def test_a_mirrored_box_covers_the_mirrored_pixels():
    image = np.arange(5 * 7).reshape(5, 7)
    box = np.array([[1, 0, 4, 3]], np.float32)
    x1, y1, x2, y2 = geometry.mirror(box, 7)[0].astype(int)
    assert (image[:, ::-1][y1:y2, x1:x2] == image[0:3, 1:4][:, ::-1]).all()
    assert (geometry.mirror(geometry.mirror(box, 7), 7) == box).all()


def test_encode_by_hand():
    # A box of 10 x 20 centred on (5, 10) -> 20 x 20 centred on (10, 15): a shift of half a width and a quarter of a
    # height, twice the width.
    deltas = geometry.encode(np.array([[0, 0, 10, 20]], np.float32), np.array([[0, 5, 20, 25]], np.float32))
    np.testing.assert_allclose(deltas, [[0.5, 0.25, np.log(2), 0]], rtol=1e-6)


def test_decode_inverts_encode():
    rng = np.random.default_rng(0)
    boxes, targets = random_boxes(rng, 50), random_boxes(rng, 50)
    decoded = geometry.decode(boxes, geometry.encode(boxes, targets))
    assert decoded.dtype == np.float32
    np.testing.assert_allclose(decoded, targets, atol=2e-3)  # none grows to 62.5 times its size


def test_zero_deltas_move_nothing():
    boxes = random_boxes(np.random.default_rng(1), 5)
    np.testing.assert_allclose(geometry.decode(boxes, np.zeros((5, 4))), boxes, atol=1e-4)
    assert geometry.decode(np.zeros((0, 4), np.float32), np.zeros((0, 4))).shape == (0, 4)


def test_no_side_grows_beyond_the_bound():
    grown = geometry.decode(np.array([[0, 0, 8, 8]], np.float32), np.array([[0, 0, 1000, 2]], np.float32))
    assert grown[0, 2] - grown[0, 0] == pytest.approx(8 * 62.5)
    assert grown[0, 3] - grown[0, 1] == pytest.approx(8 * np.exp(2), rel=1e-5)


def test_iou_of_boxes_of_whole_numbers_is_that_of_floats():
    boxes = np.array([[0, 0, 10, 10], [5, 0, 15, 10]])
    overlap = geometry.iou(boxes, boxes)
    np.testing.assert_allclose(overlap, [[1, 1 / 3], [1 / 3, 1]])
    assert overlap.dtype == np.float64


def test_shares_inside_are_pycocotools_overlaps_with_crowds():
    from pycocotools import mask

    rng = np.random.default_rng(1)
    boxes, regions = random_boxes(rng, 40), random_boxes(rng, 9)
    expected = mask.iou(*(geometry.to_xywh(b).astype(np.float64) for b in (boxes, regions)), [True] * 9)
    np.testing.assert_allclose(geometry.shares_inside(boxes, regions), expected, atol=1e-6)
    assert geometry.shares_inside(boxes, regions[:0]).shape == (40, 0)


def test_tensors_are_moved_and_clipped_as_arrays():
    rng = np.random.default_rng(0)
    corner = rng.uniform(-20, 80, (500, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(1, 60, (500, 2))], axis=1).astype(np.float32)
    deltas = rng.normal(scale=2, size=(500, 4)).astype(np.float32)
    moved = geometry.decode(torch.from_numpy(boxes), torch.from_numpy(deltas))
    np.testing.assert_array_max_ulp(moved.numpy(), geometry.decode(boxes, deltas), 1)
    clipped = geometry.clip(torch.from_numpy(boxes), 90, 70)
    np.testing.assert_array_equal(clipped.numpy(), geometry.clip(boxes, 90, 70))
