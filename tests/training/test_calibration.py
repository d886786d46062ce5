"""Calibration: curves against the probabilities that data were drawn with, and folds that the SVMs do not see."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sppdet.config import DEFAULT_THRESHOLD, CalibrationSettings
from sppdet.config.settings import DetectionSettings, SvmSettings
from sppdet.data.dataset import Dataset, Sample
from sppdet.detection.calibration import Calibration, Sigmoid, Steps
from sppdet.detection.detections import Detections
from sppdet.detection.detector import Detector
from sppdet.evaluation.run import detect_all
from sppdet.proposals.search import SelectiveSearch
from sppdet.training import svm
from sppdet.training.calibration import (
    HeldOut,
    _fit_one,
    _fit_without,
    calibrate_detector,
    draw_folds,
    fit_calibration,
    fit_class,
    hold_out,
    of_classes,
)
from sppdet.training.locations import LOCATION, ClassWindows, pool_locations
from sppdet.training.mining import Miner
from sppdet.utils.errors import SppdetError
from sppdet.utils.execution import Execution

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


def test_folds_cover_few_images_once_and_take_a_part_of_many():
    folds = draw_folds(11, CalibrationSettings(folds=3), seed=0)
    assert np.sort(np.concatenate(folds)).tolist() == list(range(11))
    folds = draw_folds(1000, CalibrationSettings(folds=4, images=400), seed=0)
    assert [len(fold) for fold in folds] == [250]
    assert [len(fold) for fold in draw_folds(800, CalibrationSettings(folds=4, images=400), seed=0)] == [200, 200]


def test_a_fold_s_svms_are_those_of_a_fit_without_the_fold_s_windows(random_split, tiny_features):
    split, features = random_split(images=10, classes=2), tiny_features(8)
    settings = SvmSettings(C=0.1, random_negatives=40, max_negatives=60, tolerance=0.001)
    miner = Miner(split, features, [0, 1], settings, 1.0, Execution(workers=1))
    miner.train()
    windows = [miner.windows(k) for k in range(2)]
    folds = [np.array([0, 3, 4]), np.array([1, 2])]
    problem = svm.Problem(C=0.1, tolerance=0.001, max_epochs=1000)
    fitted = _fit_without(split, 10, windows, features, problem, folds, Execution(workers=1))
    for fold, svms in zip(folds, fitted):
        for k, of_class in enumerate(windows):
            keep = ~np.isin(of_class.locations["image"], fold)
            rows = pool_locations(split, features, of_class.locations[keep], 1)
            expected = svm.fit(rows, np.arange(len(rows)), of_class.labels[keep], problem)
            np.testing.assert_allclose(svms.weight[k], expected.weight, atol=0.02)


def test_windows_of_mirror_images_leave_with_their_image():
    locations = np.zeros(3, LOCATION)
    locations["image"] = [2, 8, 4]  # 8 is the mirror image of 2 among 6
    windows = ClassWindows(locations, 2, np.zeros(3, np.float32))
    vectors = np.ones((3, 1), np.float16)
    without_2, without_4 = (
        _fit_one(vectors, 6, svm.Problem(), (np.array([image]), windows, np.arange(3))) for image in (2, 4)
    )
    assert without_2.intercept == svm.never(1).intercept < without_4.intercept  # no positive is left


def test_detections_in_held_out_images_are_worse_than_those_in_images_that_were_learned(random_split, tiny_features):
    split, features = random_split(images=16, classes=2), tiny_features(8)
    settings = SvmSettings(C=0.1, random_negatives=60, max_negatives=80)
    miner = Miner(split, features, [0, 1], settings, 1.0, Execution(workers=1))
    svms = miner.train()
    detector = Detector(
        classes=split.dataset.classes, backbone=None, features=features, search=SelectiveSearch(), classifier=svms,
        regressors=None, detection=DetectionSettings(),
    )  # fmt: skip
    windows = [miner.windows(k) for k in range(2)]
    folds = CalibrationSettings(folds=4)
    held_out = hold_out(split, 16, detector, windows, features, miner.problem, folds, Execution(workers=1))
    learned = detect_all(detector, [split], 1)[1]
    for k, of_class in enumerate(held_out):
        assert of_class.objects == sum((sample.labels == k).sum() for sample in split.dataset)
        assert set(of_class.images.tolist()) <= set(range(16)) and 0 < of_class.right.sum() <= of_class.objects
        of_all = np.concatenate([detections.scores[detections.labels == k] for detections in learned])
        assert not np.array_equal(np.sort(of_all), np.sort(of_class.margins))
    # A class alone has the same detections.
    alone = hold_out(
        split, 16, of_classes(detector, [1]), windows[1:], features, miner.problem, folds, Execution(workers=1)
    )
    np.testing.assert_array_equal(alone[0].right, held_out[1].right)
    np.testing.assert_allclose(alone[0].margins, held_out[1].margins, atol=1e-5)
    calibration = fit_calibration(held_out)
    assert calibration is not None and len(calibration.curves) == 2


# On other images


@dataclass
class Remembering:
    """A stand-in for a detector: a right detection of margin 1 and a wrong one of margin -1 in every image."""

    classes: tuple[str, ...] = ("cat",)
    detection: DetectionSettings = field(default_factory=DetectionSettings)
    calibration: Calibration | None = None

    def predict(self, image: np.ndarray, margin: float) -> Detections:
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
