"""The last product of detection: many vectors times few weights, exactly for classifiers and roughly for boxes.

Names: n vectors, D features, K exact weights (classifiers), R rough weights (box regressors).
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

_STEP = 16  # columns; the number of columns is a multiple of it


def as_tensor(vectors: np.ndarray) -> torch.Tensor:
    """Return vectors as a tensor that shares their memory; int16 holds the bits of bfloat16 numbers."""
    import torch

    tensor = torch.from_numpy(vectors)
    return tensor.view(torch.bfloat16) if vectors.dtype == np.int16 else tensor


class Products:
    """Exact and rough weights, prepared for products with float32 and bfloat16 vectors.

    Processors with bfloat16 multiply it at twice the rate of float32, add in float32 and round the sum to 8 bits, which
    is enough for rough weights. An exact weight is split into the sum of two bfloat16 numbers, high and low. The
    product with high is computed a second time, minus the rounded first one, which gives the rounding error; together
    they have 16 bits.

    Float32 products are torch's where the program has loaded torch, else numpy's, which differ by rounding: torch's do
    not depend on the number of classes, bit by bit, which training relies on, and are faster, but take long to load.

    Args:
        exact: float32 ``(K, D)``.
        rough: float32 ``(R, D)``; None for none.
        half: whether there will be bfloat16 vectors.

    Attributes:
        counts: K and R.

    Examples:
        >>> products = Products(np.float32([[1, 0], [1, 1]]), np.float32([[0, 2]]))
        >>> exact, rough = products(np.float32([[3, 4]]))
        >>> exact.tolist(), rough.tolist()
        ([[3.0, 7.0]], [[8.0]])
    """

    def __init__(self, exact: np.ndarray, rough: np.ndarray | None = None, half: bool = False):
        rough = exact[:0] if rough is None else rough
        self.counts = (len(exact), len(rough))
        self._float32 = _columns(exact, rough)
        self._devices: dict[str, torch.Tensor] = {}
        if half:
            import torch

            high = torch.from_numpy(exact).bfloat16()
            low = (torch.from_numpy(exact) - high.float()).bfloat16()
            parts = [high, low, torch.from_numpy(rough).bfloat16()]
            self._bfloat16 = as_tensor(_columns(*(part.view(torch.int16).numpy() for part in parts)))

    def on(self, device: str) -> torch.Tensor:
        """Return the weights in float32 on a device, as columns ``(D, N)``: exact ones, rough ones, and zeros."""
        import torch

        if device not in self._devices:
            self._devices[device] = torch.from_numpy(self._float32).to(device)
        return self._devices[device]

    def __call__(self, vectors: np.ndarray, features: slice = slice(None)) -> tuple[np.ndarray, np.ndarray]:
        """Return the products of vectors with the exact and with the rough weights.

        Args:
            vectors: ``(n, d)``, float32, or int16 for the bits of bfloat16 numbers.
            features: which d of the D features the vectors hold.

        Returns:
            Float32 ``(n, K)`` and ``(n, R)``.
        """
        exact, rough = self.counts
        if vectors.dtype == np.float32:
            products = _multiply(vectors, self._float32[features])
            return products[:, :exact], products[:, exact : exact + rough]
        import torch

        halves, weights = as_tensor(vectors), self._bfloat16[features]
        rounded = torch.mm(halves, weights)
        padded = _padded(exact)
        error = torch.addmm(rounded[:, :padded], halves, weights[:, :padded], beta=-1)
        high, low = rounded[:, :exact], rounded[:, exact : 2 * exact]
        return (
            (high.float() + error[:, :exact].float() + low.float()).numpy(),
            rounded[:, 2 * exact : 2 * exact + rough].float().numpy(),
        )


def _multiply(vectors: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the float32 product of two matrices."""
    torch = sys.modules.get("torch")
    if torch is None:
        return vectors @ weights
    return torch.mm(torch.from_numpy(vectors), torch.from_numpy(weights)).numpy()


def _padded(count: int) -> int:
    """Return the multiple of the step that ``count`` columns are padded to."""
    return -(-count // _STEP) * _STEP


def _columns(*weights: np.ndarray) -> np.ndarray:
    """Return weights ``(n, D)`` side by side as the columns of ``(D, N)``.

    N is padded with zeros to a multiple of the step: otherwise the products of a class would depend on the number of
    other classes.
    """
    count = sum(map(len, weights))
    rows = np.zeros((_padded(count), weights[0].shape[1]), weights[0].dtype)
    np.concatenate(weights, out=rows[:count])
    return rows.T
