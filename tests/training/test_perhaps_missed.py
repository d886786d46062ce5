"""Objects that the labels perhaps miss: which detections they are, and what is learned without them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sppdet.config.settings import DetectionSettings, SvmSettings
from sppdet.detection.detections import Detections
from sppdet.detection.detector import Detector
from sppdet.proposals.search import SelectiveSearch
from sppdet.training.held_out import FoldDetections, briefly, hold_out
from sppdet.training.mining import Miner
from sppdet.training.perhaps_missed import PerhapsMissed, all_folds, find_perhaps_missed, ignore_perhaps_missed
from sppdet.utils.execution import Execution

HERE, THERE, BESIDE, APART = [0, 0, 16, 16], [32, 0, 48, 16], [0, 32, 16, 48], [32, 32, 48, 48]


@pytest.fixture
def dataset(make_split):
    """Two images, each with an object of `a` and one of `b`."""
    return make_split([(np.ones((16, 16, 1)), [], [HERE, THERE], [0, 1])] * 2, ("a", "b")).dataset


def folds_of(dataset, *rows) -> list[FoldDetections]:
    """Return the detections of two folds of an image each, from rows of (image, box, label, margin)."""
    folds = []
    for image in (1, 0):
        of_image = [row for row in rows if row[0] == image]
        boxes, labels, margins = (np.array([row[n] for row in of_image]) for n in (1, 2, 3))
        entry = Detections(boxes.reshape(-1, 4).astype(np.float32), labels.astype(np.int64), margins, dataset.classes)
        folds.append(FoldDetections(np.array([image]), dataset[image : image + 1], [entry]))
    return folds


RIGHT = [(0, HERE, 0, 0.5), (1, HERE, 0, 1.5)]  # the median margin of right detections is 1


@pytest.mark.parametrize(
    ("box", "margin", "expected"),
    [
        (BESIDE, 1.2, True),
        (BESIDE, 0.9, False),  # not sure enough
        ([0, 0, 16, 32], 1.2, False),  # near an object of the class
        (THERE, 1.2, False),  # an object of another class
        ([32, 8, 48, 24], 1.2, True),  # overlaps it by a third
    ],
)
def test_sure_detections_far_from_every_label_are_perhaps_missed(dataset, box, margin, expected):
    folds = folds_of(dataset, *RIGHT, (1, box, 0, margin))
    of_a, of_b = find_perhaps_missed(folds, [0, 1], near=0.3)
    assert of_a.rows() == ([(1, box, pytest.approx(margin))] if expected else [])
    assert of_b.rows() == []  # none is right


def test_a_class_that_was_not_looked_for_and_ignored_regions_miss_nothing(dataset):
    first, second = dataset
    first = replace(first, looked_for=np.array([False, True]))
    second = replace(second, ignored=np.array([APART], np.float32), ignored_labels=np.array([0]))
    data = replace(dataset, samples=(first, second))
    rows = [*RIGHT, (0, BESIDE, 0, 3.0), (1, APART, 0, 3.0), (1, BESIDE, 0, 2.0)]
    assert find_perhaps_missed(folds_of(data, *rows), [0], near=0.3)[0].rows() == [(1, BESIDE, 2.0)]


def test_they_are_ignored_in_their_image_and_its_mirror_image(make_split):
    split = make_split([(np.ones((16, 16, 1)), [], [HERE], [0])] * 2, ("a", "b")).with_mirror_images()
    found = PerhapsMissed(np.array([1]), np.array([BESIDE], np.float32), np.ones(1, np.float32))
    marked = ignore_perhaps_missed(split, 2, [0, 1], [PerhapsMissed.none(), found])
    assert [sample.ignored_of(1).tolist() for sample in marked.dataset] == [[], [BESIDE], [], [[48, 32, 64, 48]]]
    assert not any(len(sample.ignored_of(0)) for sample in marked.dataset)


def test_every_image_is_in_one_fold():
    for images in (1, 3, 205):
        folds = all_folds(images, seed=3)
        assert np.sort(np.concatenate(folds)).tolist() == list(range(images)) and len(folds) == min(4, images)


def test_they_survive_being_written():
    found = PerhapsMissed(np.array([1]), np.array([BESIDE], np.float32), np.ones(1, np.float32))
    assert PerhapsMissed.restore(found.tensors()).rows() == found.rows() == [(1, BESIDE, 1.0)]


@pytest.fixture
def half_labelled(make_split):
    """Twenty images with two bright objects each, of which one has no label in every other image."""
    rng, content = np.random.default_rng(0), []
    for i in range(20):
        conv_map = rng.random((16, 16, 4)) * 0.2
        conv_map[:4, :4, 0] = conv_map[8:12, 8:12, 0] = 1.0
        windows = [[x, y, x + 16, y + 16] for x in range(0, 49, 8) for y in range(0, 49, 8)]
        boxes = [HERE, APART] if i % 2 else [HERE]
        content.append((conv_map, windows, boxes, [0] * len(boxes)))
    return make_split(content, ("a",))


def test_objects_without_a_label_are_found_and_are_no_background_any_more(half_labelled, tiny_features):
    split, features, execution = half_labelled, tiny_features(4), Execution(workers=1)
    settings = SvmSettings(C=0.1, random_negatives=200, max_negatives=400, hard_per_image=20)
    miner = Miner(split, features, [0], settings, 1.0, execution)
    before = miner.train()
    detector = Detector(
        classes=split.dataset.classes, backbone=None, features=features, search=SelectiveSearch(), classifier=before,
        regressors=None, detection=DetectionSettings(),
    )  # fmt: skip
    folds = hold_out(split, detector, [miner.windows(0)], briefly(miner.problem), all_folds(20, seed=3), execution)
    (found,) = find_perhaps_missed(folds, [0], near=0.3)
    assert set(found.images.tolist()) <= set(range(0, 20, 2)) and len(found.images) >= 5
    assert (found.boxes == APART).all()
    marked = ignore_perhaps_missed(split, 20, [0], [found])
    after = miner.relearn(marked)

    def negatives_on_the_object() -> set[int]:
        locations = miner.cache.locations[miner.cache.negatives(0)]
        on_it = (locations["cells"] == np.array(APART) / 4).all(axis=1)
        return set(locations["image"][on_it].tolist())

    assert not negatives_on_the_object() & set(found.images.tolist())

    def margin(svms) -> float:
        vector = features.of_boxes(split.maps(1), np.array([APART], np.float32), (64, 64))
        return float((vector @ svms.weight.T + svms.bias)[0, 0])

    assert margin(after) > margin(before)
