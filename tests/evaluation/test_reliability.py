"""The expected calibration error against closed forms, and which detections it counts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sppdet.data.dataset import Dataset, Sample
from sppdet.detection.detections import Detections
from sppdet.evaluation.reliability import expected_calibration_error, measure_reliability

BOX, OTHER, HARD = [0, 0, 10, 10], [50, 50, 60, 60], [80, 80, 90, 90]


def test_perfect_probabilities_have_no_error():
    probability = np.repeat([0.25, 0.75], 4)
    right = np.array([1, 0, 0, 0, 1, 1, 1, 0], bool)
    assert expected_calibration_error(probability, right) == 0


def test_the_error_is_the_mean_difference_over_the_detections():
    rng = np.random.default_rng(0)
    probability, right = rng.random(5000), rng.random(5000) < 0.3
    number = np.minimum((10 * probability).astype(int), 9)
    each = [abs(probability[number == k].mean() - right[number == k].mean()) for k in number]
    assert expected_calibration_error(probability, right) == pytest.approx(np.mean(each), abs=2e-5)


def test_a_probability_of_one_is_in_the_last_bin():
    assert expected_calibration_error(np.array([1.0, 0.95]), np.array([True, False])) == pytest.approx(0.475)


def test_difficult_objects_do_not_count_and_a_second_detection_of_an_object_is_wrong():
    boxes, difficult = np.array([BOX, HARD], np.float32), np.array([False, True])
    sample = Sample("1", Path("1.jpg"), 100, 100, boxes, np.zeros(2, np.int64), difficult)
    detections = Detections([BOX, HARD, BOX, OTHER], [0] * 4, [4, 3, 2, 1], ("cat",), [0.95, 0.8, 0.5, 0.05])
    result = measure_reliability(Dataset(("cat",), (sample,)), [detections])
    assert result is not None
    assert [(entry["low"], entry["detections"], entry["right"]) for entry in result["bins"]] == [
        (0.0, 1, 0.0),
        (0.5, 1, 0.0),
        (0.9, 1, 1.0),
    ]
    assert result["error"] == pytest.approx((0.05 + 0.5) / 2)  # the detection of 0.05 is left out
    assert result["error_of_all"] == pytest.approx((0.05 + 0.5 + 0.05) / 3)


def test_without_probabilities_there_is_nothing_to_measure():
    sample = Sample("1", Path("1.jpg"), 100, 100, np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0, bool))
    detections = Detections([BOX], [0], [1.0], ("cat",))
    assert measure_reliability(Dataset(("cat",), (sample,)), [detections]) is None
