"""Detections: arrays that fit each other, indexed like an array, iterated like a list."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from sppdet.data.dataset import Dataset, Sample
from sppdet.detection.detections import Detections
from sppdet.detection.drawing import draw_detections
from sppdet.evaluation.coco import write_coco_ground_truth

CLASSES = ("cat", "dog")
BOXES = [[0, 0, 4, 4], [8, 8, 16, 20], [1, 2, 3, 4.125]]


@pytest.fixture
def detections() -> Detections:
    """A dog, a cat and a dog."""
    return Detections(BOXES, [1, 0, 1], [0.75, 0.5, -0.123456789], CLASSES)


# Construction


def test_lists_become_arrays(detections):
    assert detections.xyxy.dtype == np.float32 and detections.xyxy.tolist() == BOXES
    assert detections.labels.dtype == np.int64 and detections.scores.dtype == np.float32
    assert Detections([], [], []).xyxy.shape == (0, 4)
    assert Detections([], [], [], list(CLASSES)).classes == CLASSES


def test_arrays_of_the_right_types_are_not_copied():
    arrays = np.zeros((2, 4), np.float32), np.zeros(2, np.int64), np.zeros(2, np.float32)
    detections = Detections(*arrays)
    assert (detections.xyxy, detections.labels, detections.scores) == arrays
    assert detections.boxes is detections.xyxy


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((BOXES, [0, 1], [1, 2, 3]), "3 boxes, 2 labels and 3 scores; give one of each per detection"),
        (([0, 0, 4, 4], [0], [1]), r"shapes \(4,\), \(1,\) and \(1,\); give \(N, 4\), \(N,\) and \(N,\)"),
        (([[0, 0, 4]], [0], [1]), r"shapes \(1, 3\)"),
        ((BOXES, [[0, 1, 0]], [1, 2, 3]), r"\(1, 3\)"),
        ((BOXES, [0, 1, 0.5], [1, 2, 3]), "labels are float64; give integers"),
        ((BOXES, [0, 2, 1], [1, 2, 3], CLASSES), "labels from 0 to 2 are outside 0..1, the indices of 2 classes"),
        ((BOXES, [0, -1, 1], [1, 2, 3], CLASSES), "labels from -1 to 1 are outside"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        Detections(*arguments)
    assert "\n" not in str(caught.value)


def test_fields_cannot_be_assigned(detections):
    with pytest.raises(dataclasses.FrozenInstanceError):
        detections.scores = np.zeros(2)


# Access


def test_an_integer_gives_one_detection(detections):
    for row in (1, -2, np.int64(1)):
        xyxy, label, name, score = detections[row]
        assert (xyxy.tolist(), label, name, score) == (BOXES[1], 0, "cat", 0.5)
    with pytest.raises(IndexError):
        detections[3]


@pytest.mark.parametrize(
    ("rows", "scores"),
    [
        (slice(1), [0.75]),
        (slice(None, None, -2), [-0.125, 0.75]),
        ([1, 0], [0.5, 0.75]),
        (np.array([2, 2]), [-0.125, -0.125]),
        ([True, False, True], [0.75, -0.125]),
        (np.zeros(3, bool), []),
        ([], []),
    ],
)
def test_slices_masks_and_indices_give_detections(rows, scores):
    chosen = Detections(BOXES, [1, 0, 1], [0.75, 0.5, -0.125], CLASSES)[rows]
    assert isinstance(chosen, Detections) and chosen.classes == CLASSES
    assert chosen.scores.tolist() == scores
    assert chosen.xyxy.tolist() == [BOXES[[0.75, 0.5, -0.125].index(score)] for score in scores]


def test_iteration_yields_every_detection(detections):
    assert [(one.name, one.label, one.xyxy.tolist()) for one in detections] == [
        ("dog", 1, BOXES[0]),
        ("cat", 0, BOXES[1]),
        ("dog", 1, BOXES[2]),
    ]
    assert len(detections) == 3 and detections.names.tolist() == ["dog", "cat", "dog"]
    assert detections[detections.names == "dog"].labels.tolist() == [1, 1]
    assert isinstance(next(iter(detections)).score, float)


def test_classes_without_names_are_numbered():
    detections = Detections(BOXES[:1], [7], [1])
    assert detections.names.tolist() == ["7"] and detections[0].name == next(iter(detections)).name == "7"


def test_a_threshold_is_the_lowest_score_kept(detections):
    assert detections.above(0.5).scores.tolist() == [0.75, 0.5]
    assert len(detections.above(0.51)) == 1 and len(detections.above(-1)) == 3


def test_probabilities_go_with_their_detections_and_the_threshold_means_them():
    detections = Detections(BOXES, [1, 0, 1], [0.75, 0.5, -0.125], CLASSES, [0.5, 0.75, 0.25])
    assert detections.above(0.5).scores.tolist() == [0.75, 0.5]
    assert [one.probability for one in detections[[2, 1]]] == [0.25, 0.75]
    assert detections.to_list()[1] == {"label": "cat", "probability": 0.75, "score": 0.5, "box": BOXES[1]}
    assert Detections.merge([detections, detections[:1]]).probabilities.tolist() == [0.5, 0.75, 0.25, 0.5]
    assert Detections.merge([detections, Detections(BOXES[:1], [0], [1], CLASSES)]).probabilities is None
    with pytest.raises(ValueError, match="3 scores and probabilities of shape"):
        Detections(BOXES, [1, 0, 1], [0.75, 0.5, -0.125], CLASSES, [0.5])


def test_one_class(detections):
    assert detections.of_class("dog").xyxy.tolist() == [BOXES[0], BOXES[2]]
    with pytest.raises(ValueError, match="'cow' is none of the classes: cat, dog"):
        detections.of_class("cow")


def test_merged_detections_keep_their_order(detections):
    merged = Detections.merge([detections[1:], detections[:0], detections[:1]])
    assert merged.names.tolist() == ["cat", "dog", "dog"] and merged.classes == CLASSES
    assert merged.xyxy.tolist() == [BOXES[1], BOXES[2], BOXES[0]]
    assert len(Detections.merge([])) == 0


def test_only_detections_of_the_same_classes_are_merged(detections):
    with pytest.raises(ValueError, match=r"classes \['dog', 'cat'\] are not \['cat', 'dog'\]"):
        Detections.merge([detections, Detections([], [], [], ("dog", "cat"))])


def test_the_text_form_counts_classes(detections):
    assert repr(detections) == "Detections(3: dog 2, cat 1; scores 0.75 to -0.12)"
    assert repr(detections[:0]) == "Detections(0)"
    many = Detections(np.zeros((7, 4)), np.arange(7), np.ones(7))
    assert repr(many) == "Detections(7: 0 1, 1 1, 2 1, 3 1, 4 1, ...; scores 1.00 to 1.00)"


# Export


def test_json_like_list_is_rounded(detections):
    entries = detections.to_list()
    assert entries[2] == {"label": "dog", "score": -0.12346, "box": [1.0, 2.0, 3.0, 4.12]}
    assert json.loads(json.dumps(entries)) == entries
    assert Detections(BOXES[:1], [7], [1]).to_list()[0]["label"] == 7


def test_coco_entries_are_what_pycocotools_reads(detections, tmp_path):
    """Average precision is 1 where the detections are the ground truth, too."""
    sample = Sample("7", Path("7.jpg"), 64, 64, detections.xyxy, detections.labels, np.zeros(3, bool))
    write_coco_ground_truth(tmp_path / "truth.json", Dataset(CLASSES, (sample,)))
    truth = COCO(str(tmp_path / "truth.json"))
    (image_id,) = truth.getImgIds()
    entries = detections.to_coco(image_id)
    assert entries[1] == {"image_id": image_id, "category_id": 1, "bbox": [8, 8, 8, 12], "score": 0.5}
    measure = COCOeval(truth, truth.loadRes(json.loads(json.dumps(entries))), "bbox")
    measure.evaluate()
    measure.accumulate()
    measure.summarize()
    assert measure.stats[0] == pytest.approx(1)


def test_drawing_takes_every_kind_of_image(detections, tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    expected = draw_detections(image, detections)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "png")
    for form in (image, Image.fromarray(image), file.getvalue()):
        np.testing.assert_array_equal(detections.draw(form), expected)
