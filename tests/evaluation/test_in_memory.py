"""Figures of detections and of detectors, without a run's folder."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from evaluation_data import dataset_of, image_of, random_detections

from sppdet.data.dataset import Dataset
from sppdet.data.large_images import Pixels
from sppdet.data.voc import read_voc
from sppdet.detection.detections import Detections
from sppdet.evaluation.coco import evaluate_coco
from sppdet.evaluation.in_memory import evaluate_detections, evaluate_detector
from sppdet.evaluation.voc import evaluate_voc
from sppdet.utils.errors import SppdetError


def test_figures_of_detections_are_vocs_and_cocos():
    dataset, detections = random_detections(20, seed=1)
    result = evaluate_detections(dataset, detections, iou_threshold=0.6)
    assert result.pop("coco") == evaluate_coco(dataset, detections)
    assert result == evaluate_voc(dataset, detections, 0.6)


def test_detections_of_classes_that_were_not_looked_for_do_not_count():
    dataset, detections = random_detections(20, seed=1)
    unknown = np.zeros(len(dataset.classes), bool)
    empty = Detections(np.zeros((0, 4)), np.zeros(0, int), np.zeros(0), detections[3].classes)
    without = evaluate_detections(dataset, [*detections[:3], empty, *detections[4:]])
    samples = list(dataset.samples)
    samples[3] = replace(samples[3], looked_for=unknown)
    assert evaluate_detections(replace(dataset, samples=tuple(samples)), detections) == without
    assert without != evaluate_detections(dataset, detections)


@dataclass
class Remembering:
    """A stand-in for a detector, which knows the detections of each image by the image's pixels."""

    classes: tuple[str, ...]
    detections: dict[bytes, Detections]

    def predict_pixels(self, pixels: Pixels, threshold: float | None) -> Detections:
        assert threshold is None, "mAP counts every score"
        return self.detections[pixels.read((0, 0, pixels.width, pixels.height)).tobytes()]


@pytest.fixture
def dataset(shapes_root) -> Dataset:
    """The six test images of the drawn data set."""
    return read_voc(shapes_root, "test")


def remembering(dataset: Dataset, shift: float) -> Remembering:
    """Return a detector that finds every object, ``shift`` of its width to the right of it."""
    detections = {}
    for n, sample in enumerate(dataset):
        boxes = sample.boxes.copy()
        boxes[:, [0, 2]] += shift * (boxes[:, 2:3] - boxes[:, 0:1])
        scores = np.arange(len(boxes), dtype=np.float32) - n
        detections[sample.read().tobytes()] = Detections(boxes, sample.labels, scores, dataset.classes)
    return Remembering(dataset.classes, detections)


@pytest.mark.parametrize("workers", [1, 3])
def test_a_detector_is_run_on_every_image_in_order(dataset, workers):
    detector = remembering(dataset, shift=0.3)  # IoU 0.7 / 1.3 = 0.54
    result = evaluate_detector(detector, dataset, workers=workers)
    assert result["mAP"] == 100 and result["coco"]["AP50"] == pytest.approx(100)
    assert result["coco"]["AP75"] == 0
    assert evaluate_detector(detector, dataset, iou_threshold=0.6)["mAP"] == 0


def test_mirrored_samples_are_read_mirrored(dataset):
    mirrored = replace(dataset, samples=tuple(sample.mirror() for sample in dataset))
    assert evaluate_detector(remembering(mirrored, shift=0), mirrored)["mAP"] == 100


def test_a_data_set_with_other_classes_is_refused():
    detector = Remembering(("cat", "cow"), {})
    with pytest.raises(SppdetError) as caught:
        evaluate_detector(detector, dataset_of(image_of("a"), classes=("cow", "cat")))
    assert str(caught.value) == (
        "the data set's classes (cow, cat) are not the detector's (cat, cow); read it with classes=detector.classes"
    )
