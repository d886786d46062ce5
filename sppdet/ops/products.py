"""The last product of detection: many vectors with a few weights, the classifier's exact, the box regressors' not.

Names: n vectors, D features, K exact weights, R rough ones.
"""

from __future__ import annotations

import numpy as np
import torch

_STEP = 16  # columns


class Products:
    """Weights ``exact`` ``(K, D)`` and ``rough`` ``(R, D)``, ready to multiply vectors of float32 and of bfloat16.

    Processors that have bfloat16 multiply it at twice the rate of float32, add up in float32 and round what comes out
    to 8 bits, enough for rough weights. An exact one is cut into two numbers of bfloat16, and its product is computed
    again, less its own rounded value, which says what the rounding has left over: 16 bits of both.

    Args:
        half: whether vectors of bfloat16 will come.
    """

    def __init__(self, exact: np.ndarray, rough: np.ndarray | None = None, half: bool = False):
        rough = exact[:0] if rough is None else rough
        self.counts = (len(exact), len(rough))
        weights = [torch.from_numpy(exact), torch.from_numpy(rough)]
        self._whole = _columns(weights)
        if half:
            high = weights[0].bfloat16()
            self._halves = _columns([high, (weights[0] - high.float()).bfloat16(), weights[1].bfloat16()])

    def __call__(self, vectors: torch.Tensor, features: slice = slice(None)) -> tuple[torch.Tensor, torch.Tensor]:
        """Float32 ``(n, K)`` and ``(n, R)`` products of vectors that hold these ``features`` of the D."""
        exact, rough = self.counts
        if vectors.dtype == torch.float32:
            found = torch.mm(vectors, self._whole[features])
            return found[:, :exact], found[:, exact : exact + rough]
        weights = self._halves[features]
        found = torch.mm(vectors, weights)
        again = -(-exact // _STEP) * _STEP
        left = torch.addmm(found[:, :again], vectors, weights[:, :again], beta=-1)
        high, low, rest = found[:, :exact], found[:, exact : 2 * exact], found[:, 2 * exact : 2 * exact + rough]
        return high.float() + left[:, :exact].float() + low.float(), rest.float()


def _columns(weights: list[torch.Tensor]) -> torch.Tensor:
    """Weights ``(n, D)`` one below the other as the columns of ``(D, N)``.

    N goes in steps, with zeros, or the products of a class would depend on how many others there are.
    """
    count = sum(map(len, weights))
    rows = weights[0].new_zeros(-(-count // _STEP) * _STEP, weights[0].shape[1])
    torch.cat(weights, out=rows[:count])
    return rows.T
