"""Which windows are positives of a class, and which may be negatives."""

from __future__ import annotations

from dataclasses import replace
from threading import Barrier

import numpy as np
import pytest

from sppdet.config.settings import SvmSettings
from sppdet.training import window_labels
from sppdet.training.window_labels import ImageWindows, WindowLabels


def windows_of(split, features, **settings) -> ImageWindows:
    """Return the windows of the only image of a split."""
    labels = range(len(split.dataset.classes))
    recipe = WindowLabels.of_split(split, features, labels, SvmSettings(**settings), seed=3)
    return ImageWindows.of_image(recipe, 0, split)


def with_first_sample(split, **changes):
    """Return the split with other values of its first sample."""
    first, *others = split.dataset.samples
    return replace(split, dataset=replace(split.dataset, samples=(replace(first, **changes), *others)))


@pytest.fixture
def split(make_split):
    """An image with an object of `a` on its left half and one of `b` on its right half."""
    windows = [[0, 0, 32, 64], [0, 0, 32, 40], [0, 0, 32, 16], [0, 0, 64, 64], [32, 32, 64, 64]]
    content = [(np.ones((16, 16, 1)), windows, [[0, 0, 32, 64], [32, 0, 64, 64]], [0, 1])]
    return make_split(content, ("a", "b"))


def test_windows_that_overlap_an_object_of_the_class_by_enough_are_no_negatives(split, tiny_features):
    windows = windows_of(split, tiny_features(1), negative_overlap=0.3)
    negative = windows.are_negatives(split.proposals(0))
    # IoU with a: 1, 5/8, 1/4, 1/2, 0; with b: 0, 0, 0, 1/2, 1/2.
    assert negative.T.tolist() == [[False, False, True, False, True], [True, True, True, False, False]]
    stricter = windows_of(split, tiny_features(1), negative_overlap=0.2).are_negatives(split.proposals(0))
    assert stricter[2].tolist() == [False, True]


def test_where_a_class_was_not_looked_for_no_window_is_a_negative(split, tiny_features):
    partly = with_first_sample(split, looked_for=np.array([False, True]))
    windows = windows_of(partly, tiny_features(1))
    assert windows.are_negatives(split.proposals(0)).any(axis=0).tolist() == [False, True]
    assert len(windows.positives()[0]) == 2  # its object is an object all the same


def test_windows_in_or_near_a_region_that_is_ignored_are_no_negatives(split, tiny_features):
    region = np.array([[0, 32, 32, 64]], np.float32)
    ignoring = with_first_sample(split, ignored=region, ignored_labels=np.array([1]))
    windows = np.array([[0, 32, 16, 48], [0, 24, 32, 64], [0, 16, 32, 33], [0, 0, 16, 32]], np.float32)
    before, after = (windows_of(s, tiny_features(1)).are_negatives(windows) for s in (split, ignoring))
    assert before[:, 1].all() and after[:, 1].tolist() == [False, False, True, True]
    assert (after[:, 0] == before[:, 0]).all()  # the other class knows of it


def test_of_windows_with_equal_cells_all_must_be_negatives(make_split, tiny_features):
    # The boxes differ by a pixel and have the same cells; the IoU with the object is 0.29 and 0.31.
    boxes = [[0, 0, 18.5, 64], [0, 0, 19.5, 64]]
    split = make_split([(np.ones((16, 16, 1)), boxes, [[0, 0, 64, 64]], [0])], ("a",))
    windows = windows_of(split, tiny_features(1))
    assert windows.are_negatives(windows.boxes).ravel().tolist() == [True, False]
    assert windows.negatives().tolist() == [[False]]


@pytest.mark.parametrize(("overlap", "expected"), [(1.0, 0), (0.8, 0), (0.6, 1)])
def test_windows_that_overlap_an_object_by_enough_are_positives_too(make_split, tiny_features, overlap, expected):
    windows = [[8, 8, 24, 20], [8, 8, 24, 16], [40, 40, 56, 56]]  # IoU 3/4, 1/2 and 0
    split = make_split([(np.ones((16, 16, 1)), windows, [[8, 8, 24, 24]], [0])], ("a",))
    locations, classes = windows_of(split, tiny_features(1), positive_overlap=overlap).positives()
    assert (locations["cells"] * 4).tolist() == [[8, 8, 24, 24], *windows[:expected]]
    assert classes.tolist() == [0] * (1 + expected)


@pytest.mark.parametrize(("per_class", "expected"), [(10000, 20), (7, 7), (0, 1)])
def test_of_windows_near_an_object_a_few_are_drawn_each_cell_once(
    make_split, tiny_features, monkeypatch, per_class, expected
):
    monkeypatch.setattr(window_labels, "_NEAR_PER_CLASS", per_class)
    windows = [[x, y, 60, 60 + z] for x in range(0, 9, 4) for y in range(0, 13, 4) for z in (0, 4)] * 2
    split = make_split([(np.ones((16, 16, 1)), [*windows, [0, 0, 8, 8]], [[0, 0, 64, 64]], [0])], ("a",))
    cells = windows_of(split, tiny_features(1), positive_overlap=0.5).positives()[0]["cells"]
    assert len(cells) == 1 + expected < 1 + len(windows) // 2
    assert len(np.unique(cells[1:], axis=0)) == expected


def test_threads_read_the_maps_of_several_images_at_once(make_split, tiny_features, monkeypatch):
    content = [(np.ones((16, 16, 1)), [[0, 0, 32, 64]], [[0, 0, 32, 64]], [0])]
    split, meeting = make_split(content * 2, ("a",)), Barrier(2)
    read = type(split).maps

    def maps(self, i):
        meeting.wait(timeout=20)  # for the other thread
        return read(self, i)

    monkeypatch.setattr(type(split), "maps", maps)
    recipe = WindowLabels.of_split(split, tiny_features(1), [0], SvmSettings(), seed=3)
    locations = [of_image for of_image, _ in recipe.each(ImageWindows.positives, split, [0, 1], 2, "positives")]
    assert [len(of_image) for of_image in locations] == [1, 1]
