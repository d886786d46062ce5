"""Calibration: curves against the probabilities that data were drawn with, and other images."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sppdet.config import DEFAULT_THRESHOLD
from sppdet.config.settings import DetectionSettings
from sppdet.data.dataset import Dataset, Sample
from sppdet.data.large_images import Pixels
from sppdet.detection.calibration import Calibration, Sigmoid, Steps
from sppdet.detection.detections import Detections
from sppdet.training.calibration import (
    calibrate_detector,
    fit_calibration,
    fit_class,
)
from sppdet.training.held_out import HeldOut
from sppdet.utils.errors import SppdetError

TRUE = Sigmoid(3.0, -1.0)


def drawn(count: int, curve=TRUE, seed: int = 0, objects: int | None = None) -> HeldOut:
    """Return detections that are right with the probability of a curve."""
    rng = np.random.default_rng(seed)
    margins = rng.uniform(-1.5, 1.5, count).astype(np.float32)
    right = rng.random(count) < curve(margins)
    return HeldOut(margins, right, rng.integers(0, 40, count), int(right.sum()) if objects is None else objects)


def test_many_detections_give_the_curve_that_they_were_drawn_with():
    curve, _ = fit_class(drawn(20_000), Sigmoid(1.0, 1.0), 0.0)
    margins = np.linspace(-1.5, 1.5, 50)
    np.testing.assert_allclose(curve(margins), TRUE(margins), atol=0.03)


def test_isotonic_regression_is_taken_where_the_curve_is_no_sigmoid():
    uneven = Steps((-1.5, -0.5, -0.4, 0.9, 1.0, 1.5), (0.02, 0.02, 0.5, 0.5, 0.95, 0.95))
    curve, _ = fit_class(drawn(5000, uneven), TRUE, 0.0)
    assert isinstance(curve, Steps)
    margins = np.array([-1.0, 0.2, 1.3])
    np.testing.assert_allclose(curve(margins), uneven(margins), atol=0.06)


def test_a_class_without_detections_has_the_curve_and_the_threshold_of_all_classes():
    none = HeldOut(np.zeros(0, np.float32), np.zeros(0, bool), np.zeros(0, np.int64), 3)
    calibration = fit_calibration([drawn(2000), none])
    margins = np.linspace(-1.5, 1.5, 20)
    np.testing.assert_allclose(calibration.curves[1](margins), calibration.shared(margins), atol=1e-3)
    assert calibration.thresholds[1] == calibration.shared_threshold


def test_a_few_detections_move_the_shared_curve_a_little():
    few = drawn(5, Sigmoid(3.0, 4.0))
    curve, _ = fit_class(few, TRUE, 0.0)
    assert isinstance(curve, Sigmoid)
    assert 0 < curve(np.array([0.0]))[0] - TRUE(np.array([0.0]))[0] < 0.25


def test_without_detections_there_is_no_calibration():
    none = HeldOut(np.zeros(0, np.float32), np.zeros(0, bool), np.zeros(0, np.int64), 0)
    assert fit_calibration([none, none]) is None


def test_detections_that_are_all_right_or_all_wrong_give_an_increasing_curve():
    for right in (True, False):
        held_out = drawn(200)
        held_out = HeldOut(held_out.margins, np.full(200, right), held_out.images, 200)
        (curve,), (threshold,) = (lambda c: (c.curves, c.thresholds))(fit_calibration([held_out]))
        values = curve(np.linspace(-1.5, 1.5, 20))
        assert (np.diff(values) >= 0).all() and (values.mean() > 0.8) == right
        assert np.isfinite(threshold)


def test_the_threshold_is_where_f1_is_best():
    # Above 0.5 all are right, below all are wrong; there are many objects, so that the shared threshold hardly counts.
    margins = np.linspace(-1, 1, 201).astype(np.float32)
    held_out = HeldOut(margins, margins > 0.5, np.arange(201), 10_000)
    best = np.argmax([2 * (margins[margins >= t] > 0.5).sum() / ((margins >= t).sum() + 10_000) for t in margins])
    _, threshold = fit_class(held_out, TRUE, DEFAULT_THRESHOLD)
    assert threshold == pytest.approx(margins[best], abs=0.02)


# On other images


@dataclass
class Remembering:
    """A stand-in for a detector: a right detection of margin 1 and a wrong one of margin -1 in every image."""

    classes: tuple[str, ...] = ("cat",)
    detection: DetectionSettings = field(default_factory=DetectionSettings)
    calibration: Calibration | None = None

    def predict_pixels(self, pixels: Pixels, margin: float) -> Detections:
        assert margin == self.detection.min_margin
        return Detections([[0, 0, 8, 8], [20, 20, 30, 30]], [0, 0], [1.0, -1.0], self.classes)


def images_of_cats(folder: Path, count: int) -> Dataset:
    path = folder / "cat.png"
    Image.new("RGB", (40, 40)).save(path)
    box, label, difficult = np.array([[0, 0, 8, 8]], np.float32), np.zeros(1, np.int64), np.zeros(1, bool)
    return Dataset(("cat",), tuple(Sample(str(n), path, 40, 40, box, label, difficult) for n in range(count)))


def test_a_detector_is_calibrated_on_other_images(tmp_path):
    detector = calibrate_detector(Remembering(), images_of_cats(tmp_path, 60), workers=1)
    wrong, right = detector.calibration.probabilities(np.zeros(2, int), np.array([-1.0, 1.0]))
    assert right > 0.9 and wrong < 0.1
    assert detector.calibration.thresholds[0] == pytest.approx(0, abs=0.1)


def test_other_classes_are_named(tmp_path):
    with pytest.raises(SppdetError, match="its classes are cat, those of the detector are dog"):
        calibrate_detector(Remembering(("dog",)), images_of_cats(tmp_path, 2))
