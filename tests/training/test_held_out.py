"""Detections in images that SVMs did not learn from."""

from __future__ import annotations

import numpy as np

from sppdet.config.settings import CalibrationSettings, DetectionSettings, SvmSettings
from sppdet.detection.detector import Detector
from sppdet.evaluation.run import detect_all
from sppdet.proposals.search import SelectiveSearch
from sppdet.training import svm
from sppdet.training.calibration import fit_calibration, of_classes
from sppdet.training.held_out import _fit_one, _fit_without, briefly, draw_folds, hold_out, join_folds
from sppdet.training.locations import LOCATION, ClassWindows, pool_locations
from sppdet.training.mining import Miner
from sppdet.utils.execution import Execution


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
    fitted = _fit_without(split, features, windows, problem, folds, Execution(workers=1))
    for fold, svms in zip(folds, fitted):
        for k, of_class in enumerate(windows):
            keep = ~np.isin(of_class.locations["image"], fold)
            rows = pool_locations(split, features, of_class.locations[keep], 1)
            expected = svm.fit(rows, np.arange(len(rows)), of_class.labels[keep], problem)
            np.testing.assert_allclose(svms.weight[k], expected.weight, atol=0.02)


def test_fits_elsewhere_are_those_that_are_made_here(random_split, tiny_features, request):
    split, features = random_split(images=10, classes=3), tiny_features(8)
    miner = Miner(split, features, [0, 1, 2], SvmSettings(C=0.1, random_negatives=40), 1.0, Execution(workers=1))
    miner.train()
    windows = [miner.windows(k) for k in (2, 0)]
    folds = [np.array([0, 3, 4]), np.array([1, 2])]

    def fits() -> list:
        return _fit_without(split, features, windows, miner.problem, folds, Execution(workers=1))

    here, sent = fits(), request.getfixturevalue("elsewhere")
    for svms, expected in zip(fits(), here, strict=True):
        np.testing.assert_array_equal(svms.weight, expected.weight)
        np.testing.assert_array_equal(svms.bias, expected.bias)
    assert sent == [2]


def test_windows_of_mirror_images_leave_with_their_image():
    locations = np.zeros(3, LOCATION)
    locations["image"] = [2, 8, 4]  # 8 is the mirror image of 2 among 6
    windows = ClassWindows(locations, 2, np.zeros(3, np.float32))
    vectors = np.ones((3, 1), np.float16)
    without_2, without_4 = (
        _fit_one(vectors, 3, 6, svm.Problem(), (np.array([image]), windows, np.arange(3), None)) for image in (2, 4)
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
    folds = draw_folds(16, CalibrationSettings(folds=4), seed=3)
    execution, problem = Execution(workers=1), briefly(miner.problem)
    held_out = join_folds(hold_out(split, detector, windows, problem, folds, execution), [0, 1])
    learned = detect_all(detector, [split], 1)[1]
    for k, of_class in enumerate(held_out):
        assert of_class.objects == sum((sample.labels == k).sum() for sample in split.dataset)
        assert set(of_class.images.tolist()) <= set(range(16)) and 0 < of_class.right.sum() <= of_class.objects
        of_all = np.concatenate([detections.scores[detections.labels == k] for detections in learned])
        assert not np.array_equal(np.sort(of_all), np.sort(of_class.margins))
    # A class alone has the same detections.
    of_one = of_classes(detector, [1])
    alone = join_folds(hold_out(split, of_one, windows[1:], problem, folds, execution), [1])
    np.testing.assert_array_equal(alone[0].right, held_out[1].right)
    np.testing.assert_allclose(alone[0].margins, held_out[1].margins, atol=1e-5)
    calibration = fit_calibration(held_out)
    assert calibration is not None and len(calibration.curves) == 2
