"""The trained linear layers behind the features, as arrays: margins and box regressions.

They are apart from their training, and so load without its libraries.

Names: n windows, K classes, D features of a vector. A margin is a real number: the larger, the surer, and 0 is the
decision boundary. It is not a probability.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sppdet.ops import Array, is_tensor

if TYPE_CHECKING:  # detection does not load torch unless it needs it
    import torch


@dataclass(frozen=True, eq=False)
class LinearSVMs:
    """One linear SVM per class: ``margins = vectors @ weight.T + bias``.

    Attributes:
        weight: ``(K, D)`` float32.
        bias: ``(K,)`` float32.
    """

    weight: np.ndarray
    bias: np.ndarray

    def margins(self, outputs: Array) -> Array:
        """Return the margins ``(n, K)`` of ``outputs = vectors @ weight.T + bias``: the outputs themselves."""
        return outputs


@dataclass(frozen=True, eq=False)
class Softmax:
    """Fast R-CNN's classifier of K classes and, last, the background.

    Its margin is the log odds of a class, ``log(p / (1 - p))``: it orders windows as the probability p does, and is 0
    where p is one half.

    Attributes:
        weight: ``(K + 1, D)`` float32.
        bias: ``(K + 1,)`` float32.
    """

    weight: np.ndarray
    bias: np.ndarray

    def margins(self, outputs: Array) -> Array:
        """Return the log odds ``(n, K)`` of the logits ``outputs = vectors @ weight.T + bias``, ``(n, K + 1)``.

        They are an array, or a tensor if the logits are one.

        Examples:
            >>> softmax = Softmax(np.zeros((3, 2)), np.zeros(3))
            >>> softmax.margins(np.log([[0.5, 0.2, 0.3]])).round(3)  # log(0.5 / 0.5) and log(0.2 / 0.8)
            array([[ 0.   , -1.386]], dtype=float32)
        """
        if is_tensor(outputs):
            return _log_odds(outputs.double()).float()
        logits = outputs.astype(np.float64)
        # The sum over the other classes is added up from both sides: 1 - p would be 0 for a window of which the
        # network is all but certain.
        before = np.logaddexp.accumulate(logits, axis=1)[:, :-2]
        after = np.logaddexp.accumulate(logits[:, ::-1], axis=1)[:, -2::-1]
        others = np.logaddexp(np.pad(before, ((0, 0), (1, 0)), constant_values=-np.inf), after)
        return (logits[:, :-1] - others).astype(np.float32)


@dataclass(frozen=True, eq=False)
class BoxRegressors:
    """Box regression of each class: ``deltas[n, k] = weight[k] @ vectors[n] + bias[k]``.

    The deltas dx, dy, dw, dh are those of `sppdet.ops.boxes.decode`.

    Attributes:
        weight: ``(K, 4, D)`` float32.
        bias: ``(K, 4)`` float32.
        of_head: whether the vectors are those that the classifier sees, and not the pooled ones.
    """

    weight: np.ndarray
    bias: np.ndarray
    of_head: bool = False

    def beside_fc7(self, dimension: int) -> BoxRegressors:
        """Return regressors of pooled vectors as those of the classifier's vectors, which begin with the pooled one.

        They move boxes as before. Detection then multiplies each vector once, by the weights of classifier and boxes.

        Args:
            dimension: length of the classifier's vectors.
        """
        missing = dimension - self.weight.shape[2]
        return BoxRegressors(np.pad(self.weight, [(0, 0), (0, 0), (0, missing)]), self.bias, of_head=True)


def _log_odds(logits: torch.Tensor) -> torch.Tensor:
    """Return what `Softmax.margins` does, as operations of torch."""
    import torch

    before = torch.logcumsumexp(logits, dim=1)[:, :-2]
    after = torch.logcumsumexp(logits.flip(1), dim=1).flip(1)[:, 1:]
    others = torch.logaddexp(torch.nn.functional.pad(before, (1, 0), value=-torch.inf), after)
    return logits[:, :-1] - others
