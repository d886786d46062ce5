"""Suppression and votes by torch keep and move boxes as the compiled loops do, ties and thresholds included."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from device import DEVICE

from sppdet.ops import suppression_torch
from sppdet.ops.suppression import nms_by_class, vote


def boxes_of(rng: np.random.Generator, count: int, whole: bool) -> np.ndarray:
    """Return boxes of which some are equal, and some have no area; whole ones touch many thresholds."""
    corner, size = rng.uniform(0, 40, (count, 2)), rng.uniform(0, 30, (count, 2))
    boxes = np.concatenate([corner, corner + size], axis=1).astype(np.float32)
    boxes = np.rint(boxes / 4).astype(np.float32) if whole else boxes
    boxes[rng.integers(0, count, count // 10)] = boxes[rng.integers(0, count, count // 10)]
    boxes[:2, 2] = boxes[:2, 0]
    return boxes


def tensors(*arrays: np.ndarray) -> list[torch.Tensor]:
    return [torch.from_numpy(array).to(DEVICE) for array in arrays]


@pytest.mark.parametrize("seed", range(40))
def test_the_boxes_that_the_compiled_loops_keep_are_kept(seed, monkeypatch):
    monkeypatch.setattr(suppression_torch, "_PAIRS", 20_000)  # some classes at a time
    rng = np.random.default_rng(seed)
    count = int(rng.integers(2, 400))
    boxes, labels = boxes_of(rng, count, whole=seed % 2 == 0), 3 * rng.integers(0, 5, count)
    scores = rng.integers(0, 50, count).astype(np.float32) if seed % 3 else rng.normal(size=count).astype(np.float32)
    overlap, most = float(rng.choice([0.0, 0.1, 0.25, 0.3, 1 / 3, 0.5, 0.6, 0.7, 1.0])), int(rng.choice([3, 500]))
    expected = nms_by_class(boxes, scores, labels, overlap, most)
    kept = nms_by_class(*tensors(boxes, scores, labels), overlap, most)
    assert kept.tolist() == expected.tolist()


def test_an_iou_is_rounded_to_float32_and_compared_in_float64():
    boxes, scores, labels = tensors(np.float32([[0, 0, 13, 1], [7, 0, 20, 1]]), np.float32([2, 1]), np.int64([0, 0]))
    assert nms_by_class(boxes, scores, labels, 0.3, 9).tolist() == [0]  # 6 / 20 is a little above 0.3


def test_a_long_chain_is_followed_to_its_end():
    """Each box overlaps the next one alone: every other one goes."""
    x = np.arange(60, dtype=np.float32)
    boxes = np.stack([x, 0 * x, x + 1.8, 0 * x + 1], axis=1)
    kept = nms_by_class(*tensors(boxes, -x, np.zeros(60, np.int64)), 0.2, 100)
    assert kept.tolist() == [*range(0, 60, 2)]


@pytest.mark.parametrize("seed", range(20))
def test_votes_are_those_of_the_compiled_loops(seed, monkeypatch):
    monkeypatch.setattr(suppression_torch, "_PAIRS", 500)  # some survivors at a time
    rng = np.random.default_rng(seed)
    boxes, labels = boxes_of(rng, 200, whole=seed % 2 == 0), rng.integers(0, 4, 200)
    scores = (rng.normal(size=200) * (300 if seed % 3 == 0 else 1)).astype(np.float32)
    overlap = float(rng.choice([0.25, 0.3, 0.5, 1.0]))
    survivors = nms_by_class(boxes, scores, labels, 0.3, 100)
    expected = vote(boxes, scores, labels, survivors, overlap)
    votes = vote(*tensors(boxes, scores, labels, survivors), overlap)
    assert votes.dtype == torch.float32
    np.testing.assert_array_max_ulp(votes.cpu().numpy(), expected, 1)


def test_no_candidates():
    none = tensors(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))
    kept = nms_by_class(*none, 0.3, 9)
    assert kept.tolist() == [] and vote(*none, kept, 0.5).shape == (0, 4)
