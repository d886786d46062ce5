"""Margins: an SVM's are its products, softmax's are log odds that keep the order of the probabilities."""

from __future__ import annotations

import numpy as np

from sppdet.detection.linear_layers import LinearSVMs, Softmax


def test_an_svms_margins_are_its_products():
    products = np.array([[0.5, -2.0]], np.float32)
    assert LinearSVMs(np.zeros((2, 3)), np.zeros(2)).margins(products) is products


def test_log_odds_by_hand():
    # Two classes and background, with probabilities 0.5, 0.2 and 0.3: log 1 and log 0.25.
    logits = np.log(np.array([[0.5, 0.2, 0.3]])) + 7
    margins = softmax().margins(logits.astype(np.float32))
    assert margins.shape == (1, 2) and margins.dtype == np.float32
    np.testing.assert_allclose(margins, [[0, np.log(0.25)]], atol=1e-5)


def test_log_odds_order_windows_as_the_probabilities_do_and_stay_finite():
    logits = np.random.default_rng(0).normal(size=(500, 3)).astype(np.float32) * 8
    probability = np.exp(logits - logits.max(1, keepdims=True), dtype=np.float64)
    probability /= probability.sum(1, keepdims=True)
    margins = softmax().margins(logits)
    for k in range(2):
        assert (np.diff(margins[np.argsort(probability[:, k]), k]) >= -1e-5).all()
        assert ((margins[:, k] > 0) == (probability[:, k] > 0.5)).all()
    assert np.isfinite(softmax().margins(np.array([[300, 0, 0], [-300, 0, 0]], np.float32))).all()


def test_log_odds_of_a_window_that_is_all_but_certain():
    np.testing.assert_allclose(softmax().margins(np.array([[40, 0, 0]], np.float32))[0, 0], 40 - np.log(2), rtol=1e-6)


def softmax() -> Softmax:
    return Softmax(np.zeros((3, 4), np.float32), np.zeros(3, np.float32))
