"""Curves from margins to probabilities: their values, their description in model.json, and what they refuse."""

from __future__ import annotations

import json

import numpy as np
import pytest

from sppdet.detection.calibration import Calibration, Sigmoid, Steps

CALIBRATION = Calibration((Sigmoid(2.0, 0.5), Steps((-1.0, 0.0, 1.0), (0.1, 0.1, 0.9))), (-0.25, 0.5), Sigmoid(1, 0), 0)


def test_each_class_has_its_curve():
    labels, margins = np.array([1, 0, 1]), np.array([0.5, 0.25, 7.0], np.float32)
    assert CALIBRATION.probabilities(labels, margins).tolist() == pytest.approx([0.5, 1 / (1 + np.exp(-1)), 0.9])


def test_curves_never_decrease_and_stay_in_0_to_1():
    margins = np.concatenate([[-1e9], np.linspace(-3, 3, 200), [1e9]])
    for curve in CALIBRATION.curves:
        values = curve(margins)
        assert (np.diff(values) >= 0).all() and values.min() >= 0 and values.max() <= 1


def test_a_description_restores_the_calibration_through_json():
    assert Calibration.restore(json.loads(json.dumps(CALIBRATION.description()))) == CALIBRATION


def test_log_odds_are_turned_into_the_probabilities_that_they_mean():
    calibration = Calibration.of_log_odds(2, -0.5)
    assert calibration.probabilities(np.array([1]), np.array([np.log(3)]))[0] == pytest.approx(0.75)
    assert calibration.thresholds == (-0.5, -0.5)


@pytest.mark.parametrize(
    "change",
    [
        {"slope": -1.0, "intercept": 0.0, "threshold": 0.0},
        {"slope": "x", "intercept": 0.0, "threshold": 0.0},
        {"margins": [0.0, 1.0], "probabilities": [0.9, 0.1], "threshold": 0.0},
        {"margins": [1.0, 0.0], "probabilities": [0.1, 0.9], "threshold": 0.0},
        {"margins": [0.0], "probabilities": [1.5], "threshold": 0.0},
        {"margins": [], "probabilities": [], "threshold": 0.0},
        {"slope": 1.0, "intercept": 0.0},
        {"slope": 1.0, "intercept": 0.0, "threshold": float("nan")},
        {},
    ],
)
def test_a_damaged_description_is_refused(change):
    description = CALIBRATION.description()
    description["classes"][0] = change
    with pytest.raises((LookupError, TypeError, ValueError)):
        Calibration.restore(description)
