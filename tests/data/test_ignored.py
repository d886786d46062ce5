"""Regions of which nobody knows what they hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sppdet.data.dataset import EVERY_CLASS, Dataset, Sample
from sppdet.data.ignored import with_ignored_classes
from sppdet.utils.errors import SppdetError


def dataset() -> Dataset:
    """An image with a dog, an unclear region, a cat, and a crowd of dogs."""
    boxes = np.array([[0, 0, 8, 8], [10, 0, 30, 20], [20, 20, 28, 28]], np.float32)
    labels = np.array([1, 2, 0])
    crowd = np.array([[50, 50, 90, 90]], np.float32)
    sample = Sample(
        "a", Path("a.jpg"), 100, 100, boxes, labels, labels > 5, ignored=crowd, ignored_labels=np.array([1])
    )
    return Dataset(("cat", "dog", "unclear"), (sample,))


def test_boxes_of_a_class_become_regions_that_all_others_ignore():
    data = with_ignored_classes(dataset(), ["unclear"])
    (sample,) = data
    assert data.classes == ("cat", "dog")
    assert sample.labels.tolist() == [1, 0] and sample.boxes.tolist() == [[0, 0, 8, 8], [20, 20, 28, 28]]
    assert sample.ignored_labels.tolist() == [1, EVERY_CLASS]
    assert sample.ignored_of(0).tolist() == [[10, 0, 30, 20]]
    assert sample.ignored_of(1).tolist() == [[50, 50, 90, 90], [10, 0, 30, 20]]


def test_numbers_of_later_classes_move_down():
    (sample,) = with_ignored_classes(dataset(), ["cat"])
    assert sample.labels.tolist() == [0, 1] and sample.ignored_labels.tolist() == [0, EVERY_CLASS]


def test_a_box_is_ignored_if_half_of_it_lies_in_a_region():
    (sample,) = with_ignored_classes(dataset(), ["unclear"])
    boxes = np.array([[10, 0, 20, 20], [0, 0, 20, 20], [0, 0, 19, 20], [60, 60, 70, 70]], np.float32)
    assert sample.are_ignored(boxes, 0).tolist() == [True, True, False, False]
    assert sample.are_ignored(boxes, 1).tolist() == [True, True, False, True]
    assert sample.are_ignored(boxes).tolist() == [True, True, False, True]


def test_regions_are_mirrored_with_the_image():
    assert dataset()[0].mirror().ignored.tolist() == [[10, 50, 50, 90]]


def test_without_classes_to_ignore_nothing_changes():
    data = dataset()
    assert with_ignored_classes(data, []) is data


def test_a_class_that_no_box_has_is_named():
    with pytest.raises(
        SppdetError, match=r"data\.ignore_classes: no box is of class 'ignore'; they have cat, dog, unc"
    ):
        with_ignored_classes(dataset(), ["ignore"])
