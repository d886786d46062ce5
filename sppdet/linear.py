"""SVMs and box regressors once they are trained: arrays, apart from the training and the libraries that it loads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class LinearSVMs:
    """``margins = vectors @ weight.T + bias`` for K classes: ``(K, D)`` and ``(K,)`` float32."""

    weight: np.ndarray
    bias: np.ndarray


@dataclass(frozen=True, eq=False)
class BoxRegressors:
    """``deltas[n, k] = weight[k] @ vector[n] + bias[k]``: ``(K, 4, D)`` and ``(K, 4)`` float32."""

    weight: np.ndarray
    bias: np.ndarray
