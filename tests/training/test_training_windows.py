"""The windows that a network learns from, and the statistics of their box-regression targets."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from end_to_end_images import Workplace

from sppdet.ops import boxes as geometry
from sppdet.training import training_windows
from sppdet.training.training_windows import sample_windows, target_statistics


@pytest.fixture
def workplace(tmp_path, shapes_root) -> Workplace:
    return Workplace(shapes_root, tmp_path)


# Windows


def test_sampled_windows_have_the_overlaps_that_their_labels_say(random_split):
    split = random_split(images=8, windows=300)
    for i in range(len(split)):
        boxes, labels, nearest = sample_windows(split, i, 16, 0.25, np.random.default_rng(i))
        sample = split.dataset[i]
        overlap = geometry.iou(boxes, sample.boxes)
        best = overlap.max(axis=1)
        foreground = labels < 3
        assert 1 <= foreground.sum() <= 4 and len(boxes) <= 16
        assert (best[foreground] >= 0.5).all()
        assert (labels[foreground] == sample.labels[overlap[foreground].argmax(axis=1)]).all()
        assert foreground[: len(nearest)].all()
        assert (nearest == sample.boxes[overlap[foreground].argmax(axis=1)]).all()
        assert ((best[~foreground] >= 0.1) & (best[~foreground] < 0.5)).all() and (labels[~foreground] == 3).all()


def test_windows_in_a_region_that_is_ignored_are_no_background(random_split):
    split = random_split(images=1, windows=300)
    (sample,) = split.dataset
    left = np.array([[0, 0, 32, 64]], np.float32)
    sample = replace(sample, ignored=left, ignored_labels=np.array([0]))
    split = replace(split, dataset=replace(split.dataset, samples=(sample,)))
    boxes, labels, _ = sample_windows(split, 0, 200, 0.25, np.random.default_rng(0), lowest=0.0)
    background = boxes[labels == 3]
    assert len(background) > 20 and not sample.are_ignored(background).any()


def test_background_may_overlap_no_object(random_split):
    split = random_split(images=1, windows=300)
    boxes, labels, _ = sample_windows(split, 0, 200, 0.25, np.random.default_rng(0), lowest=0.0)
    best = geometry.iou(boxes, split.dataset[0].boxes).max(axis=1)[labels == 3]
    assert (best == 0).any() and (best < 0.5).all()


def test_an_image_without_objects_gives_no_windows(make_split):
    split = make_split([(np.ones((16, 16, 1)), [[0, 0, 8, 8]], [], [])], ("a",))
    boxes, labels, nearest = sample_windows(split, 0, 64, 0.25, np.random.default_rng(0))
    assert boxes.shape == nearest.shape == (0, 4) and labels.shape == (0,)


def test_an_image_without_proposals_gives_its_objects(make_split):
    split = make_split([(np.ones((16, 16, 1)), [], [[0, 0, 8, 8], [8, 8, 16, 16]], [1, 0])], ("a", "b"))
    boxes, labels, _ = sample_windows(split, 0, 64, 0.25, np.random.default_rng(0))
    assert dict(zip(map(tuple, boxes.tolist()), labels.tolist())) == {(0, 0, 8, 8): 1, (8, 8, 16, 16): 0}


# Targets


@pytest.mark.parametrize("flip", [True, False])
def test_targets_are_measured_class_by_class(workplace, flip):
    means, deviations = target_statistics(workplace.split, flip)
    dataset = workplace.split.dataset
    rows = []
    for i, sample in enumerate(dataset):
        views = [(np.concatenate([sample.boxes, workplace.split.proposals(i)]), sample.boxes)]
        views += [tuple(geometry.mirror(boxes, sample.width) for boxes in views[0])] if flip else []
        for windows, objects in views:
            for window in windows:
                overlap = geometry.iou(window[None], objects)[0]
                if overlap.max() >= 0.5:
                    best = overlap.argmax()
                    rows.append((sample.labels[best], geometry.encode(window[None], objects[best][None])[0]))
    for k in range(len(dataset.classes)):
        targets = np.array([target for label, target in rows if label == k])
        assert len(targets) >= 10
        np.testing.assert_allclose(means[k], targets.mean(axis=0), atol=1e-6)
        np.testing.assert_allclose(deviations[k], targets.std(axis=0), atol=1e-5)
    assert (means[:, 0] == pytest.approx(0)) == flip


def test_a_rare_class_has_the_statistics_of_all_classes(workplace, monkeypatch):
    of_classes = target_statistics(workplace.split, True)
    monkeypatch.setattr(training_windows, "_MIN_TARGETS", 10**6)
    means, deviations = target_statistics(workplace.split, True)
    assert (means == means[0]).all() and (deviations == deviations[0]).all()
    assert not (of_classes[1] == of_classes[1][0]).all()
