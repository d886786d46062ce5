"""The last product of detection: many vectors times few weights, exactly for classifiers and roughly for boxes.

Names: n vectors, D features, K exact weights (classifiers), R rough weights (box regressors).
"""

from __future__ import annotations

import numpy as np
import torch

_STEP = 16  # columns; the number of columns is a multiple of it


class Products:
    """Exact and rough weights, prepared for products with float32 and bfloat16 vectors.

    Processors with bfloat16 multiply it at twice the rate of float32, add in float32 and round the sum to 8 bits, which
    is enough for rough weights. An exact weight is split into the sum of two bfloat16 numbers, high and low. The
    product with high is computed a second time, minus the rounded first one, which gives the rounding error; together
    they have 16 bits.

    Args:
        exact: float32 ``(K, D)``.
        rough: float32 ``(R, D)``; None for none.
        half: whether there will be bfloat16 vectors.

    Attributes:
        counts: K and R.

    Examples:
        >>> products = Products(np.float32([[1, 0], [1, 1]]), np.float32([[0, 2]]))
        >>> exact, rough = products(torch.tensor([[3.0, 4.0]]))
        >>> exact.tolist(), rough.tolist()
        ([[3.0, 7.0]], [[8.0]])
    """

    def __init__(self, exact: np.ndarray, rough: np.ndarray | None = None, half: bool = False):
        rough = exact[:0] if rough is None else rough
        self.counts = (len(exact), len(rough))
        weights = [torch.from_numpy(exact), torch.from_numpy(rough)]
        self._float32 = _columns(weights)
        if half:
            high = weights[0].bfloat16()
            self._bfloat16 = _columns([high, (weights[0] - high.float()).bfloat16(), weights[1].bfloat16()])

    def __call__(self, vectors: torch.Tensor, features: slice = slice(None)) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the products of vectors with the exact and with the rough weights.

        Args:
            vectors: float32 or bfloat16 ``(n, d)``.
            features: which d of the D features the vectors hold.

        Returns:
            Float32 ``(n, K)`` and ``(n, R)``.
        """
        exact, rough = self.counts
        if vectors.dtype == torch.float32:
            products = torch.mm(vectors, self._float32[features])
            return products[:, :exact], products[:, exact : exact + rough]
        weights = self._bfloat16[features]
        products = torch.mm(vectors, weights)
        padded = _padded(exact)
        error = torch.addmm(products[:, :padded], vectors, weights[:, :padded], beta=-1)
        high, low = products[:, :exact], products[:, exact : 2 * exact]
        return (
            high.float() + error[:, :exact].float() + low.float(),
            products[:, 2 * exact : 2 * exact + rough].float(),
        )


def _padded(count: int) -> int:
    """Return the multiple of the step that ``count`` columns are padded to."""
    return -(-count // _STEP) * _STEP


def _columns(weights: list[torch.Tensor]) -> torch.Tensor:
    """Return weights ``(n, D)`` side by side as the columns of ``(D, N)``.

    N is padded with zeros to a multiple of the step: otherwise the products of a class would depend on the number of
    other classes.
    """
    count = sum(map(len, weights))
    rows = weights[0].new_zeros(_padded(count), weights[0].shape[1])
    torch.cat(weights, out=rows[:count])
    return rows.T
