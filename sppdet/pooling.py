"""Spatial pyramid pooling (He et al. 2014): a rectangle of conv cells of any size -> a vector of fixed length.

Names: N windows, C channels, L levels, M bins (the sum of n*n over the levels), D = C * M features.

Bins are integer: of a side of h cells, bin i of n covers ``floor(i * h / n)`` to ``ceil((i + 1) * h / n)``, half-open
(the paper's appendix A; what ``adaptive_max_pool2d`` does). Bins of a level may share a row when n does not divide
h, and repeat cells when h < n.

A window's vector is stored bin by bin: levels as given, rows, columns, channels innermost, ``(M, C)``; this is how
it can be written at memory speed. The original program wrote, level by level, channels outermost:
:func:`to_reference_order` converts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numba import njit
from torch import nn
from torch.nn import functional
from torchvision.ops import roi_pool


def bins(levels: Sequence[int]) -> int:
    """M, the number of bins: 50 for levels 6, 3, 2, 1."""
    return sum(n * n for n in levels)


def pyramid_pool(
    conv_map: np.ndarray, cells: np.ndarray, levels: Sequence[int], out: np.ndarray | None = None
) -> np.ndarray:
    """Max-pool every window: float32 ``(N, M, C)``.

    The pyramid is nested: the bins of a level that divides a finer one are unions of the finer one's bins (as
    floor(ik * h / nk) = floor(i * h / n)), so they are pooled from those and the map is read once.

    Args:
        conv_map: float32 ``(H, W, C)``, contiguous.
        cells: int32 ``(N, 4)`` half-open ``x1, y1, x2, y2`` inside the map, at least one cell each.
        levels: bins a side of each level.
        out: the array to write to; a reused one spares the page faults that cost more than the pooling itself.
    """
    parents, starts, order = _plan(tuple(levels))
    pooled = np.empty((len(cells), bins(levels), conv_map.shape[2]), np.float32) if out is None else out
    _pool_windows(conv_map, cells, np.asarray(levels, np.int64), parents, starts, order, pooled)
    return pooled


def _plan(levels: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each level its parent (the coarsest finer level it divides, or -1), its first bin, and the order of work."""
    parents = [
        min((n, p) for p, n in enumerate(levels) if n > own and n % own == 0)[1]
        if any(n > own and n % own == 0 for n in levels)
        else -1
        for own in levels
    ]
    starts = np.cumsum([0] + [n * n for n in levels[:-1]])
    order = np.argsort([-n for n in levels], kind="stable")
    return np.array(parents), starts, order


@njit(nogil=True, cache=True)
def _pool_windows(conv_map, cells, levels, parents, starts, order, pooled):
    for w in range(cells.shape[0]):
        x, y = cells[w, 0], cells[w, 1]
        width, height = cells[w, 2] - x, cells[w, 3] - y
        for level in order:
            n = levels[level]
            for i in range(n):
                for j in range(n):
                    out = pooled[w, starts[level] + i * n + j]
                    if parents[level] < 0:
                        top, bottom = y + i * height // n, y - (-(i + 1) * height // n)
                        left, right = x + j * width // n, x - (-(j + 1) * width // n)
                        out[:] = conv_map[top, left]
                        for row in range(top, bottom):
                            for column in range(left, right):
                                _max_into(out, conv_map[row, column])
                    else:
                        finer = levels[parents[level]]
                        k = finer // n
                        corner = starts[parents[level]] + i * k * finer + j * k
                        out[:] = pooled[w, corner]
                        for row in range(k):
                            for column in range(k):
                                _max_into(out, pooled[w, corner + row * finer + column])


@njit(nogil=True, cache=True, inline="always")
def _max_into(out, values):
    for c in range(out.shape[0]):
        out[c] = values[c] if values[c] > out[c] else out[c]


def pyramid_pool_torch(conv_map: torch.Tensor, cells: np.ndarray, levels: Sequence[int]) -> torch.Tensor:
    """The same in plain PyTorch, window by window: slow, differentiable, the oracle of the tests.

    ``conv_map`` is ``(C, H, W)``; the result ``(N, M, C)``.
    """
    if len(cells) == 0:
        return conv_map.new_zeros((0, bins(levels), conv_map.shape[0]))
    windows = [conv_map[:, y1:y2, x1:x2] for x1, y1, x2, y2 in np.asarray(cells).tolist()]
    pooled = [torch.cat([functional.adaptive_max_pool2d(w, n).flatten(1) for n in levels], 1) for w in windows]
    return torch.stack(pooled).transpose(1, 2)


def pyramid_pool_batch(conv_map: torch.Tensor, cells: np.ndarray, levels: Sequence[int]) -> torch.Tensor:
    """The same, differentiable and quick, for training: levels that divide no finer one by `roi_pool`, the rest nested.

    ``conv_map`` is float32 ``(C, H, W)`` on any device; the result ``(N, M, C)``. On whole cells, torchvision's bins
    are ours up to its rounding: where a quotient of floats falls a hair above a whole number a bin reads a row more.
    """
    rois = torch.from_numpy(np.asarray(cells) - [0, 0, 1, 1]).to(conv_map)  # the last cell belongs to a RoI
    parents, _, order = _plan(tuple(levels))
    pooled: dict[int, torch.Tensor] = {}
    for level in order.tolist():
        n = levels[level]
        if parents[level] < 0:
            pooled[level] = roi_pool(conv_map[None], [rois], n)
        else:
            pooled[level] = functional.max_pool2d(pooled[parents[level]], levels[parents[level]] // n)
    return torch.cat([pooled[level].flatten(2) for level in range(len(levels))], dim=2).transpose(1, 2)


def to_reference_order(vectors: np.ndarray, levels: Sequence[int]) -> np.ndarray:
    """``(N, M, C)`` -> ``(N, D)`` in the original program's order: level by level, then channel, row, column."""
    edges = np.cumsum([n * n for n in levels])[:-1]
    parts = np.split(vectors, edges, axis=1)
    return np.concatenate([part.transpose(0, 2, 1).reshape(len(vectors), -1) for part in parts], axis=1)


def unique_windows(cells: np.ndarray, scales: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Windows that cover the same cells at the same scale have the same vector: pool once, share.

    Returns:
        ``first``: ``(U,)`` index of one window of each group; ``group``: ``(N,)`` the group of every window, so
        that ``cells[first][group]`` equals ``cells``.
    """
    # One 64-bit key a window: no map has 4096 cells a side, no picture 2^16 scales.
    key = scales.astype(np.int64)
    for column in cells.T:
        key = key * 4096 + column
    _, first, group = np.unique(key, return_index=True, return_inverse=True)
    return first, group.reshape(-1)


class SpatialPyramidPooling(nn.Module):
    """A whole map of any size to a vector of fixed length: ``(B, C, H, W) -> (B, C * M)``.

    Args:
        levels: bins a side of each level, or one number: 3 means 1, 2, 3.
        mode: ``max`` or ``average``.

    The vector is in the reference's order: levels as given, then channel, row, column.
    """

    def __init__(self, levels: int | Sequence[int] = (6, 3, 2, 1), mode: str = "max"):
        super().__init__()
        self.levels = tuple(range(1, levels + 1)) if isinstance(levels, int) else tuple(levels)
        if not self.levels or min(self.levels) < 1:
            raise ValueError(f"levels must be positive, got {levels!r}")
        if mode not in ("max", "average"):
            raise ValueError(f"mode must be 'max' or 'average', got {mode!r}")
        self.mode = mode

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pool = functional.adaptive_max_pool2d if self.mode == "max" else functional.adaptive_avg_pool2d
        return torch.cat([pool(x, n).flatten(1) for n in self.levels], dim=1)

    def output_dim(self, channels: int) -> int:
        return channels * bins(self.levels)

    def extra_repr(self) -> str:
        return f"levels={self.levels}, mode={self.mode!r}"
