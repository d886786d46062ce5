"""Recall of proposals, by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sppdet.data import Sample
from sppdet.proposals.recall import best_overlaps, proposal_recall, recall_line, recall_of_samples, recall_table

NONE = np.zeros((0, 4), np.float32)
# IoU with the box 0, 0, 10, 10: 1, 0.5, and 25 / 175.
PROPOSALS = np.array([[0, 0, 10, 10], [0, 0, 10, 5], [5, 5, 15, 15]], np.float32)


def test_best_overlaps_are_the_highest_of_each_target():
    targets = np.array([[0, 0, 10, 10], [0, 0, 10, 8], [10, 10, 15, 20], [100, 100, 110, 110]], np.float32)
    # With 10, 10, 15, 20 only the last proposal overlaps: 5 x 5 of 100 + 50 - 25 pixels.
    np.testing.assert_allclose(best_overlaps(PROPOSALS, targets), [1, 0.8, 0.2, 0], rtol=1e-6)
    np.testing.assert_allclose(best_overlaps(PROPOSALS[1:], targets), [0.5, 5 / 8, 0.2, 0], rtol=1e-6)


def test_best_overlaps_without_proposals_or_targets():
    assert best_overlaps(NONE, PROPOSALS).tolist() == [0, 0, 0]
    assert best_overlaps(PROPOSALS, NONE).shape == (0,)


def test_the_table_counts_overlaps_that_reach_the_bound():
    assert recall_table(np.array([0.5, 0.7, 0.9, 0.3]), 12.5) == {
        "windows": 12.5,
        "recall@0.5": 0.75,
        "recall@0.7": 0.5,
        "average_best_overlap": pytest.approx(0.6),
    }


def test_the_table_without_targets_is_undefined():
    undefined = {"recall@0.5": None, "recall@0.7": None, "average_best_overlap": None}
    assert recall_table(np.zeros(0), 7.0) == {"windows": 7.0, **undefined}


def test_recall_of_images_weighs_targets_and_not_images():
    """Three targets of one image have overlaps 1, 0.5 and 0; one target of another image has overlap 0.6."""
    first = np.array([[0, 0, 10, 10], [20, 20, 30, 30], [50, 50, 60, 60]], np.float32)
    second = np.array([[0, 0, 10, 10]], np.float32)
    proposals = [
        np.array([[0, 0, 10, 10], [20, 20, 25, 30], [80, 80, 90, 90]], np.float32),
        np.array([[0, 0, 6, 10]], np.float32),
        NONE,
    ]
    table = proposal_recall(proposals, [first, second, NONE])
    assert table == {
        "windows": pytest.approx(4 / 3),
        "recall@0.5": 3 / 4,
        "recall@0.7": 1 / 4,
        "average_best_overlap": pytest.approx((1 + 0.5 + 0 + 0.6) / 4),
    }


def test_recall_of_samples_leaves_difficult_objects_out():
    boxes = np.array([[0, 0, 10, 10], [20, 20, 30, 30]], np.float32)
    labels = np.zeros(2, np.int64)
    sample = Sample("a", Path("a.jpg"), 40, 40, boxes, labels, np.array([False, True]))
    table = recall_of_samples([boxes[:1]], [sample])
    assert table == {"windows": 1.0, "recall@0.5": 1.0, "recall@0.7": 1.0, "average_best_overlap": 1.0}
    nothing = replace(sample, difficult=np.array([True, True]))
    assert recall_of_samples([boxes[:1]], [nothing]) == {"windows": 1.0}


def test_the_line_rounds_to_three_digits():
    line = recall_line({"windows": 9.0, "recall@0.5": 0.95849, "recall@0.7": 2 / 3, "average_best_overlap": 0.5})
    assert line == "recall@0.5 0.958, @0.7 0.667, average best overlap 0.500"
