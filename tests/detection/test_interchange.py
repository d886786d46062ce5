"""Detections in the forms of other tools, each checked by the tool itself where it is installed."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from detectors import hand_made_detector
from PIL import Image

from sppdet.detection.detections import Detections
from sppdet.detection.interchange import megadetector_document
from sppdet.utils.errors import SppdetError

CLASSES = ("cat", "dog")
HOW = "needs {}: docs/other-tools.md"


@pytest.fixture
def detections() -> Detections:
    """Return two detections; no coordinate of a box is another's width or height."""
    return Detections([[10, 20, 45, 61], [3, 5, 17, 8]], [1, 0], [0.75, -0.25], CLASSES, [0.9, 0.4])


def test_confidence_is_the_probability_or_a_guess_of_the_same_order(detections):
    np.testing.assert_array_equal(detections.confidence, np.float32([0.9, 0.4]))
    guess = Detections(detections.xyxy, detections.labels, [0.75, 0], CLASSES).confidence
    np.testing.assert_allclose(guess, [1 / (1 + np.exp(-1.5)), 0.5], rtol=1e-6)


@pytest.mark.parametrize("convert", [Detections.to_supervision, lambda _: hand_made().to_sahi()])
def test_a_package_that_is_not_installed_is_one_line(detections, convert, monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    monkeypatch.setitem(sys.modules, "sahi.models.base", None)
    with pytest.raises(SppdetError, match=r"^(supervision|sahi) cannot be imported \(.*\); install it as docs/other"):
        convert(detections)


def test_supervision_draws_the_boxes_where_they_are(detections):
    supervision = pytest.importorskip("supervision", reason=HOW.format("supervision"))
    converted = detections.to_supervision()
    np.testing.assert_array_equal(converted.xyxy, detections.xyxy)
    assert converted.data["class_name"].tolist() == ["dog", "cat"] and converted.class_id.tolist() == [1, 0]
    np.testing.assert_array_equal(converted.confidence, np.float32([0.9, 0.4]))
    assert converted[converted.data["margin"] > 0].data["class_name"].tolist() == ["dog"]
    assert len(detections[:0].to_supervision()) == 0

    annotator = supervision.BoxAnnotator(supervision.Color(255, 255, 255), thickness=1)
    drawn = annotator.annotate(np.zeros((80, 60, 3), np.uint8), converted[:1]).any(axis=2)
    rows, columns = np.flatnonzero(drawn.any(axis=1)), np.flatnonzero(drawn.any(axis=0))
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (20, 61, 10, 45)
    labelled = supervision.LabelAnnotator().annotate(np.zeros((80, 60, 3), np.uint8), converted)
    assert labelled.any()


def test_supervision_counts_the_same_as_the_evaluation(detections):
    """Its mean average precision of detections against themselves is 1, and 0 where boxes are moved."""
    supervision = pytest.importorskip("supervision", reason=HOW.format("supervision"))
    truth = detections.to_supervision()
    metric = supervision.metrics.MeanAveragePrecision()
    assert metric.update([truth], [truth]).compute().map50 == pytest.approx(1)
    moved = Detections(detections.xyxy[:, [1, 0, 3, 2]], detections.labels, detections.scores, CLASSES)
    metric = supervision.metrics.MeanAveragePrecision()
    assert metric.update([moved.to_supervision()], [truth]).compute().map50 == pytest.approx(0)


def hand_made():
    return hand_made_detector(lambda *_: None)


class FourCorners:
    """Reports a dog of 10 x 6 pixels in the bright pixels of an image, as a detector."""

    classes = CLASSES

    def predict(self, image, threshold):
        rows, columns = (np.flatnonzero(image[..., 0].any(axis=axis)) for axis in (1, 0))
        if not len(rows):
            return Detections(np.zeros((0, 4)), np.zeros(0, int), np.zeros(0), CLASSES)
        box = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        return Detections([box, box], [1, 0], [2, -2], CLASSES)


def test_sahi_finds_objects_of_slices_where_they_are_in_the_whole_image():
    sahi = pytest.importorskip("sahi.predict", reason=HOW.format("sahi"))
    from sppdet.detection.interchange import sahi_model

    image = np.zeros((150, 200, 3), np.uint8)
    image[20:26, 30:40], image[110:116, 165:175] = 255, 255
    model = sahi_model(FourCorners(), 0.3)  # type: ignore[arg-type]
    assert model.num_categories == 2 and model.category_names == ["cat", "dog"]
    found = sahi.get_sliced_prediction(
        image, model, slice_height=75, slice_width=100, overlap_height_ratio=0, overlap_width_ratio=0,
        perform_standard_pred=False, verbose=0,
    ).object_prediction_list  # fmt: skip
    assert [(one.category.name, one.bbox.to_xyxy()) for one in sorted(found, key=lambda one: one.bbox.minx)] == [
        ("dog", [30, 20, 40, 26]), ("dog", [165, 110, 175, 116]),
    ]  # fmt: skip
    assert [one.score.value for one in found] == pytest.approx([1 / (1 + np.exp(-4))] * 2)
    # The cat has a confidence of 0.02.
    assert len(sahi.get_prediction(image, model, confidence_threshold=0.01).object_prediction_list) == 2


def test_sahi_runs_a_detector_of_ours():
    """A small detector with random weights: SAHI reports what `predict` does."""
    sahi = pytest.importorskip("sahi.predict", reason=HOW.format("sahi"))
    from detectors import random_detector, two_rectangles

    detector = random_detector()
    expected = detector.predict(two_rectangles(), threshold=None)
    expected = expected[expected.confidence >= 0.45]
    found = sahi.get_prediction(two_rectangles(), detector.to_sahi(0.45)).object_prediction_list
    assert len(found) == len(expected) > 1
    np.testing.assert_allclose([one.bbox.to_xyxy() for one in found], expected.xyxy)
    assert [one.category.name for one in found] == expected.names.tolist()


def test_pipeline_dictionaries_have_the_form_of_transformers(detections):
    """The real pipeline, around a network of random weights."""
    transformers = pytest.importorskip("transformers", reason=HOW.format("transformers"))
    settings = transformers.YolosConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=[32, 32],
        patch_size=16, num_detection_tokens=3, num_labels=2,
    )  # fmt: skip
    pipeline = transformers.pipeline(
        "object-detection",
        model=transformers.YolosForObjectDetection(settings).eval(),
        image_processor=transformers.YolosImageProcessorPil(size={"height": 32, "width": 32}),
    )
    theirs = pipeline(Image.new("RGB", (60, 80)), threshold=0)
    ours = detections.to_transformers()
    assert theirs

    def form(entry: dict) -> dict:
        return {name: form(value) if isinstance(value, dict) else type(value) for name, value in entry.items()}

    assert {json.dumps(form(entry), default=str) for entry in (*theirs, *ours)} == {
        json.dumps(form(theirs[0]), default=str)
    }
    for entry, box in zip(ours, detections.xyxy):
        assert entry["box"] == pipeline._get_bounding_box(torch.from_numpy(box))
    assert [entry["label"] for entry in ours] == ["dog", "cat"]
    assert [entry["score"] for entry in ours] == pytest.approx([0.9, 0.4])


def test_megadetectors_document(detections):
    images = [
        {"file": "a.jpg", "detections": detections.to_megadetector((100, 200))},
        {"file": "b.jpg", "detections": None, "failure": "image access failure"},
    ]
    document = json.loads(json.dumps(megadetector_document(images, CLASSES, "runs/x")))
    assert document["detection_categories"] == {"1": "cat", "2": "dog"}
    assert document["images"][0]["detections"] == [
        {"category": "2", "conf": 0.9, "bbox": [0.1, 0.1, 0.35, 0.205]},
        {"category": "1", "conf": 0.4, "bbox": [0.03, 0.025, 0.14, 0.015]},
    ]


def test_megadetectors_own_validator_and_drawing_read_the_document(detections):
    validator = pytest.importorskip(
        "megadetector.postprocessing.validate_batch_results", reason=HOW.format("megadetector")
    )
    images = [
        {"file": "a.jpg", "detections": detections.to_megadetector((100, 200))},
        {"file": "b.jpg", "detections": None, "failure": "image access failure"},
    ]
    document = json.loads(json.dumps(megadetector_document(images, CLASSES, "runs/x")))
    result = validator.validate_batch_results(document)["validation_results"]
    assert result["errors"] == [] and result["warnings"] == []
    assert dict(result["detection_category_id_to_count"]) == {"1": 1, "2": 1}
    from megadetector.visualization.visualization_utils import render_detection_bounding_boxes

    image = Image.new("RGB", (100, 200))
    render_detection_bounding_boxes(document["images"][0]["detections"][:1], image, label_map=None, thickness=1)
    # A line of one pixel on each edge of 10 20 45 61; the tool cuts fractions of pixels off.
    np.testing.assert_allclose(image.getbbox(), (10, 20, 46, 62), atol=1)
