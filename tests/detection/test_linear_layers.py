"""Margins: an SVM's are its outputs; softmax's are log odds."""

from __future__ import annotations

import numpy as np
import torch

from sppdet.detection.linear_layers import LinearSVMs, Softmax

SOFTMAX = Softmax(np.zeros((3, 4), np.float32), np.zeros(3, np.float32))  # two classes and the background


def test_margins_of_svms_are_their_outputs():
    outputs = np.array([[0.5, -2.0]], np.float32)
    assert LinearSVMs(np.zeros((2, 3)), np.zeros(2)).margins(outputs) is outputs


def test_log_odds_by_hand():
    # Probabilities 0.5, 0.2 and, of the background, 0.3: log(0.5 / 0.5) and log(0.2 / 0.8). A constant does not matter.
    logits = np.log(np.array([[0.5, 0.2, 0.3]])) + 7
    margins = SOFTMAX.margins(logits.astype(np.float32))
    assert margins.shape == (1, 2) and margins.dtype == np.float32
    np.testing.assert_allclose(margins, [[0, np.log(0.25)]], atol=1e-5)


def test_log_odds_are_those_of_the_probabilities():
    logits = np.random.default_rng(0).normal(size=(500, 3)).astype(np.float32) * 4
    probabilities = np.exp(logits.astype(np.float64))
    probabilities = (probabilities / probabilities.sum(axis=1, keepdims=True))[:, :2]
    expected = np.log(probabilities / (1 - probabilities))
    np.testing.assert_allclose(SOFTMAX.margins(logits), expected, rtol=1e-5, atol=1e-5)


def test_log_odds_of_a_window_that_is_all_but_certain():
    """Where 1 - p is 0 in double precision."""
    margins = SOFTMAX.margins(np.array([[40, 0, 0], [300, 0, 0], [-300, 0, 0]], np.float32))[:, 0]
    np.testing.assert_allclose(margins, np.array([40, 300, -300]) - np.log(2), rtol=1e-6)


def test_tensors_have_the_margins_of_arrays():
    logits = np.random.default_rng(0).normal(size=(500, 5)).astype(np.float32) * 40
    margins = SOFTMAX.margins(torch.from_numpy(logits))
    assert margins.dtype == torch.float32
    np.testing.assert_allclose(margins.numpy(), SOFTMAX.margins(logits), rtol=1e-6)
