"""The last layers as arrays, apart from the training and the libraries that it loads: margins and box shifts.

Names: n windows, K classes, D features. A margin is a real number, larger is surer, and 0 is where a class becomes
the better guess; it is no probability.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class LinearSVMs:
    """``margins = vectors @ weight.T + bias`` for K classes: ``(K, D)`` and ``(K,)`` float32."""

    weight: np.ndarray
    bias: np.ndarray

    def margins(self, products: np.ndarray) -> np.ndarray:
        """``(n, K)`` margins of ``vectors @ weight.T + bias``."""
        return products


@dataclass(frozen=True, eq=False)
class Softmax:
    """Fast R-CNN's classifier: K classes and, last, the background: ``(K + 1, D)`` and ``(K + 1,)`` float32.

    Its margin is the log odds of a class, ``log(p / (1 - p))``: it orders windows as the probability p does, and 0
    is where a class is as likely as not.
    """

    weight: np.ndarray
    bias: np.ndarray

    def margins(self, products: np.ndarray) -> np.ndarray:
        """``(n, K)`` log odds of the logits ``(n, K + 1)``."""
        logits = products.astype(np.float64)
        # The others' sum is added up from both sides, and not 1 - p: for a window that is all but certain that is 0.
        before = np.logaddexp.accumulate(logits, axis=1)[:, :-2]
        after = np.logaddexp.accumulate(logits[:, ::-1], axis=1)[:, -2::-1]
        others = np.logaddexp(np.pad(before, ((0, 0), (1, 0)), constant_values=-np.inf), after)
        return (logits[:, :-1] - others).astype(np.float32)


@dataclass(frozen=True, eq=False)
class BoxRegressors:
    """``deltas[n, k] = weight[k] @ vector[n] + bias[k]``: ``(K, 4, D)`` and ``(K, 4)`` float32.

    ``of_head``: the vectors are what the classifier sees, not the pooled ones.
    """

    weight: np.ndarray
    bias: np.ndarray
    of_head: bool = False
