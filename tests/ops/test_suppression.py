"""Suppression by hand and compared with torchvision's; votes by hand and compared with plain sums."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision

from sppdet.ops import boxes as geometry
from sppdet.ops.suppression import nms, nms_by_class, vote


def test_the_best_of_overlapping_boxes_is_kept():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 5], [20, 20, 30, 30]])
    assert nms(boxes, np.array([0.5, 0.9, 0.7, 0.1]), 0.6).tolist() == [1, 2, 3]
    # The IoU of the first and the third is exactly 0.5, which is not above 0.5.
    assert nms(boxes[[0, 2]], np.array([2.0, 1.0]), 0.5).tolist() == [0, 1]
    assert nms(boxes[[0, 2]], np.array([2.0, 1.0]), 0.49).tolist() == [0]


def test_of_equal_scores_the_first_box_is_kept():
    boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [50, 0, 60, 10]])
    assert nms(boxes, np.zeros(3), 0.5).tolist() == [0, 2]


def test_no_boxes_and_boxes_without_area():
    assert nms(np.zeros((0, 4)), np.zeros(0), 0.3).tolist() == []
    assert nms(np.zeros((2, 4)), np.zeros(2), 0.3).tolist() == [0, 1]


@pytest.mark.parametrize("seed", range(30))
def test_the_boxes_that_torchvision_keeps_are_kept(seed):
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, 40, (300, 2)) if seed % 2 else rng.uniform(0, 40, (300, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(0, 30, (300, 2))], axis=1).astype(np.float32)
    boxes[rng.integers(0, 300, 20)] = boxes[rng.integers(0, 300, 20)]
    scores = rng.integers(0, 50, 300).astype(np.float32)  # many ties
    overlap = rng.choice([0.0, 0.3, 0.5, 0.7, 1.0])
    expected = torchvision.ops.nms(torch.from_numpy(boxes), torch.from_numpy(scores), overlap)
    assert nms(boxes, scores, overlap).tolist() == expected.tolist()


def test_an_iou_is_rounded_to_float32():
    boxes = np.array([[0, 0, 13, 1], [7, 0, 20, 1]])  # IoU 6 / 20, in float32 a little above 0.3
    assert nms(boxes, np.array([2.0, 1.0]), 0.3).tolist() == [0]


def test_classes_are_suppressed_each_for_itself_and_only_so_many_are_kept():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30], [40, 40, 50, 50], [0, 0, 10, 10]])
    scores, labels = np.array([0.5, 0.9, 0.1, 0.2, 0.3]), np.array([2, 2, 2, 2, 0])
    assert nms_by_class(boxes, scores, labels, 0.6, 9).tolist() == [4, 1, 3, 2]
    assert nms_by_class(boxes, scores, labels, 0.6, 2).tolist() == [4, 1, 3]
    assert nms_by_class(boxes[:0], scores[:0], labels[:0], 0.6, 2).tolist() == []


def test_a_survivor_becomes_the_weighted_mean_of_the_boxes_of_its_class():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 8], [0, 0, 10, 9], [0, 0, 10, 4]], np.float32)
    labels = np.array([1, 1, 0, 1])  # the third is of another class, the fourth overlaps by 0.4 only
    voted = vote(boxes, np.array([0, np.log(2) / 3, 5, 5]), labels, np.array([0]), 0.5)
    np.testing.assert_allclose(voted, [[0, 0, 10, (10 + 2 * 8) / 3]], rtol=1e-6)


def test_votes_are_the_plain_sums():
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 30, (60, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(10, 40, (60, 2))], axis=1).astype(np.float32)
    scores, labels = rng.normal(size=60).astype(np.float32), rng.integers(0, 3, 60)
    survivors = np.array([40, 3, 17, 5])
    for survivor, voted in zip(survivors, vote(boxes, scores, labels, survivors, 0.4)):
        total, weights = np.zeros(4), 0.0
        for box, score, label in zip(boxes, scores, labels):
            if label == labels[survivor] and geometry.iou(box[None], boxes[survivor][None])[0, 0] >= 0.4:
                total += np.exp(3 * score) * box
                weights += np.exp(3 * score)
        np.testing.assert_allclose(voted, total / weights, rtol=1e-5)


def test_a_box_without_area_votes_for_itself():
    boxes = np.array([[0, 10, 0, 40], [5, 5, 20, 20]], np.float32)
    voted = vote(boxes, np.ones(2, np.float32), np.zeros(2, np.int64), np.array([0, 1]), 0.4)
    np.testing.assert_array_equal(voted, boxes)


def test_large_scores_do_not_overflow():
    # Scores may be log odds of a softmax, which have no bound.
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 12]], np.float32)
    voted = vote(boxes, np.array([900, 899], np.float32), np.zeros(2, np.int64), np.array([0]), 0.4)
    np.testing.assert_allclose(voted, [[0, 0, 10, (10 + 12 * np.exp(-3)) / (1 + np.exp(-3))]])
