"""Rounded weights: what is stored, and how far the numbers move."""

from __future__ import annotations

import numpy as np

from sppdet.detection.compact import compact_regressors, compact_svms, expand


def test_svms_move_by_the_rounding_of_half_precision():
    weight = np.random.default_rng(0).standard_normal((3, 500)).astype(np.float32)
    stored = compact_svms({"weight": weight, "bias": np.array([0.1, 0.2, 0.3], np.float32)})
    expanded = expand(stored)
    assert stored["weight"].dtype == np.float16 and expanded["weight"].dtype == np.float32
    assert np.abs(expanded["weight"] - weight).max() <= np.abs(weight).max() * 2**-11
    np.testing.assert_array_equal(expanded["bias"], np.array([0.1, 0.2, 0.3], np.float32))


def test_box_regression_moves_by_half_a_step():
    weight = np.random.default_rng(0).standard_normal((3, 4, 500)).astype(np.float32)
    stored = compact_regressors({"weight": weight, "bias": np.zeros((3, 4), np.float32)})
    assert stored["weight"].dtype == np.int8
    error = np.abs(expand(stored)["weight"] - weight)
    assert (error <= stored["step"][..., None] * 0.5001).all()
    np.testing.assert_allclose(stored["step"], np.abs(weight).max(axis=2) / 127)


def test_a_class_without_objects_has_weights_of_zero():
    stored = compact_regressors({"weight": np.zeros((1, 4, 8), np.float32), "bias": np.zeros((1, 4), np.float32)})
    assert not expand(stored)["weight"].any()


def test_layers_that_were_not_rounded_stay_as_they_are():
    layer = {"weight": np.ones((2, 3), np.float32), "bias": np.zeros(2, np.float32)}
    assert expand(layer)["weight"] is layer["weight"]
