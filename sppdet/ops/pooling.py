"""Spatial pyramid pooling (He et al. 2014): a rectangle of feature map cells of any size -> a vector of fixed length.

Names: N windows, C channels, L levels, M bins (the sum of n * n over the levels), D = C * M features.

Bins are integer: of a side of h cells, bin i of n covers ``floor(i * h / n)`` to ``ceil((i + 1) * h / n)``, half-open
(the paper's appendix A; what ``adaptive_max_pool2d`` does). Bins of a level may share a row when n does not divide
h, and repeat cells when h < n.

A window's vector is stored bin by bin as ``(M, C)``: level by level in the order of the levels, then row, column,
channel. Written in this order, pooling runs at the speed of memory. The original program has channels outermost within
each level; `to_reference_order` converts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from sppdet.utils import share

_PART = 64  # windows that a thread takes at a time: few enough to share windows of any size evenly
_CHANNELS = 256  # channels of a map that a thread takes at a time, for gradients

_TORCH_TYPES: dict[type[np.generic], torch.dtype] = {np.float32: torch.float32, np.int16: torch.int16}


def bins(levels: Sequence[int]) -> int:
    """Return M, the number of bins of a pyramid.

    Examples:
        >>> bins((6, 3, 2, 1))
        50
    """
    return sum(n * n for n in levels)


def pyramid_pool(
    feature_map: np.ndarray, cells: np.ndarray, levels: Sequence[int], out: np.ndarray | None = None
) -> np.ndarray:
    """Max-pool every window of a feature map.

    The pyramid is nested: the bins of a level that divides a finer one are unions of the finer one's bins (as
    floor(ik * h / nk) = floor(i * h / n)), so they are pooled from those and the map is read once.

    The result equals that of `pyramid_pool_torch` bit for bit, but for the sign of a zero where a bin holds both
    signs. A map must hold no NaN: torch would return NaN, this function may not.

    Runs in as many threads as torch has in the calling thread, which is one in a worker of
    `sppdet.utils.parallel`.

    Args:
        feature_map: float32 ``(H, W, C)``; or int16, the bits of bfloat16 numbers none of which is negative. Such bits
            are ordered as whole numbers are, and half the memory takes a third of the time.
        cells: int ``(N, 4)`` half-open ``x1, y1, x2, y2`` inside the map, of at least one cell each.
        levels: bins per side of each level.
        out: contiguous ``(N, M, C)`` of the map's type, to which the result is written. An array that is reused spares
            page faults, which cost more than pooling itself.

    Returns:
        ``(N, M, C)``, float32 or int16 as the map is; ``out`` where it is passed.

    Raises:
        ValueError: a window is empty or not inside the map, or ``out`` has another shape or type.

    Examples:
        >>> feature_map = np.arange(16, dtype=np.float32).reshape(4, 4, 1)
        >>> pyramid_pool(feature_map, np.array([[1, 0, 4, 3]]), (2, 1)).ravel().tolist()
        [6.0, 7.0, 10.0, 11.0, 11.0]
    """
    from sppdet.ops.pooling_kernel import pool_windows  # Numba takes long to load

    _, width, channels = feature_map.shape
    kind: type[np.generic] = np.int16 if feature_map.dtype == np.int16 else np.float32
    pooled = _output_array(out, (len(cells), bins(levels), channels), kind)
    cells = np.ascontiguousarray(cells, np.int32)
    _check_cells(cells, feature_map)
    flat = np.ascontiguousarray(feature_map, kind).reshape(-1)
    plan = _plan(tuple(levels))

    def work(start: int) -> None:
        part = slice(start, start + _PART)
        pool_windows(flat, width, channels, cells[part], *plan, pooled[part].reshape(-1))

    share(work, range(0, len(cells), _PART))
    return pooled


def _output_array(
    out: np.ndarray | None, shape: tuple[int, int, int], kind: type[np.generic] = np.float32
) -> np.ndarray:
    """Return ``out``, or a new array if it is None.

    Raises:
        ValueError: ``out`` is not a contiguous array of this shape and type.
    """
    # An array of torch begins on a cache line, one of numpy does not.
    pooled = torch.empty(shape, dtype=_TORCH_TYPES[kind]).numpy() if out is None else out
    if pooled.shape != shape or pooled.dtype != kind or not pooled.flags.c_contiguous:
        raise ValueError(f"out must be a contiguous {kind.__name__} array of shape {shape}")
    return pooled


def _check_cells(cells: np.ndarray, feature_map: np.ndarray) -> None:
    """Refuse windows that are not inside the map, as compiled loops read memory unchecked.

    Args:
        cells: int ``(N, 4)`` half-open ``x1, y1, x2, y2``.
        feature_map: ``(H, W, C)``.

    Raises:
        ValueError: a window is empty or not inside the map.
    """
    height, width = feature_map.shape[:2]
    if len(cells) and (cells.min() < 0 or (cells[:, :2] >= cells[:, 2:]).any() or (cells > [width, height] * 2).any()):
        raise ValueError(f"cells must hold at least one cell of the {width} x {height} map each")


def _plan(
    levels: tuple[int, ...],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the levels, the parent of each, the first bin of each, and the order in which they are pooled.

    A parent is the index of the coarsest finer level that the level divides, or -1.
    """
    parents = []
    for n in levels:
        finer = [(other, i) for i, other in enumerate(levels) if other > n and other % n == 0]
        parents.append(min(finer)[1] if finer else -1)
    starts = np.cumsum([0] + [n * n for n in levels[:-1]])
    order = np.argsort([-n for n in levels], kind="stable")
    return np.asarray(levels, np.int64), np.array(parents), starts, order


def pyramid_pool_torch(feature_map: torch.Tensor, cells: np.ndarray, levels: Sequence[int]) -> torch.Tensor:
    """Max-pool every window in plain PyTorch, one by one: slow, differentiable, the reference of the tests.

    Args:
        feature_map: ``(C, H, W)``.
        cells: int ``(N, 4)`` half-open ``x1, y1, x2, y2`` inside the map.
        levels: bins per side of each level.

    Returns:
        ``(N, M, C)``.
    """
    if len(cells) == 0:
        return feature_map.new_zeros((0, bins(levels), feature_map.shape[0]))
    windows = [feature_map[:, y1:y2, x1:x2] for x1, y1, x2, y2 in np.asarray(cells).tolist()]
    pooled = [torch.cat([functional.adaptive_max_pool2d(w, n).flatten(1) for n in levels], 1) for w in windows]
    return torch.stack(pooled).transpose(1, 2)


def pyramid_pool_batch(feature_map: torch.Tensor, cells: np.ndarray, levels: Sequence[int]) -> torch.Tensor:
    """Max-pool every window, differentiable and fast, for training.

    Maps in float32 on the CPU are pooled by compiled loops, with the values and gradients of
    `pyramid_pool_torch`. All other maps are pooled by torchvision's ``roi_pool``, and coarser levels from finer
    ones. On whole cells torchvision's bins are those of this module up to rounding: where a quotient of floats falls
    just above a whole number, a bin reads one more row.

    Args:
        feature_map: ``(C, H, W)`` on any device.
        cells: int ``(N, 4)`` half-open ``x1, y1, x2, y2`` inside the map.
        levels: bins per side of each level.

    Returns:
        ``(N, M, C)`` on the map's device.
    """
    if feature_map.device.type == "cpu" and feature_map.dtype == torch.float32:
        return _CompiledPyramid.apply(feature_map, cells, levels)
    from torchvision.ops import roi_pool  # takes longer to import than torch

    rois = torch.from_numpy(np.asarray(cells) - [0, 0, 1, 1]).to(feature_map)  # the last cell belongs to a RoI
    _, parents, _, order = _plan(tuple(levels))
    pooled: dict[int, torch.Tensor] = {}
    for level in order.tolist():
        n = levels[level]
        if parents[level] < 0:
            pooled[level] = roi_pool(feature_map[None], [rois], n)
        else:
            pooled[level] = functional.max_pool2d(pooled[parents[level]], levels[parents[level]] // n)
    return torch.cat([pooled[level].flatten(2) for level in range(len(levels))], dim=2).transpose(1, 2)


class _CompiledPyramid(torch.autograd.Function):
    """Pooling by `pyramid_pool`, with a compiled gradient."""

    @staticmethod
    def forward(context: Any, feature_map: torch.Tensor, cells: np.ndarray, levels: Sequence[int]) -> torch.Tensor:
        """Return ``(N, M, C)`` of a map ``(C, H, W)``."""
        channels_last = feature_map.permute(1, 2, 0).contiguous()
        pooled = torch.from_numpy(pyramid_pool(channels_last.detach().numpy(), cells, levels))
        context.save_for_backward(channels_last, pooled)
        context.cells, context.levels = cells, levels
        return pooled

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """Return the gradient of the map ``(C, H, W)``."""
        from sppdet.ops.pooling_kernel import spread_gradient  # Numba takes long to load

        channels_last, pooled = (tensor.numpy() for tensor in context.saved_tensors)
        map_gradient, channels = np.zeros_like(channels_last), channels_last.shape[2]
        cells, bin_gradient = np.ascontiguousarray(context.cells, np.int32), gradient.contiguous().numpy()
        levels, _, starts, _ = _plan(tuple(context.levels))

        def work(first: int) -> None:
            last = min(first + _CHANNELS, channels)
            spread_gradient(channels_last, cells, levels, starts, pooled, bin_gradient, first, last, map_gradient)

        share(work, range(0, channels, _CHANNELS))
        return torch.from_numpy(map_gradient).permute(2, 0, 1), None, None


def to_reference_order(vectors: np.ndarray, levels: Sequence[int]) -> np.ndarray:
    """Convert vectors ``(N, M, C)`` to ``(N, D)`` in the order of the original program.

    That order is level by level, then channel, row, column; `SpatialPyramidPooling` has it too.

    Examples:
        >>> to_reference_order(np.array([[[1, 10], [2, 20], [3, 30], [4, 40], [5, 50]]]), (2, 1)).tolist()
        [[1, 2, 3, 4, 10, 20, 30, 40, 5, 50]]
    """
    edges = np.cumsum([n * n for n in levels])[:-1]
    parts = np.split(vectors, edges, axis=1)
    return np.concatenate([part.transpose(0, 2, 1).reshape(len(vectors), -1) for part in parts], axis=1)


def unique_windows(cells: np.ndarray, scales: np.ndarray) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Group windows that cover the same cells at the same scale, as one vector serves all windows of a group.

    Args:
        cells: int ``(N, 4)``, each number below 4096.
        scales: int ``(N,)`` index of the scale of each window.

    Returns:
        ``first``, ``(U,)``: index of one window of each group. ``group``, ``(N,)``: the group of every window, so that
        ``cells[first][group]`` equals ``cells``.

    Examples:
        >>> first, group = unique_windows(np.array([[1, 0, 2, 2], [0, 0, 2, 2], [1, 0, 2, 2]]), np.array([0, 0, 0]))
        >>> first.tolist(), group.tolist()
        ([1, 0], [1, 0, 1])
    """
    # One 64-bit key per window: no map has 4096 cells per side, no image 2^16 scales.
    key = scales.astype(np.int64)
    for column in cells.T:
        key = key * 4096 + column
    _, first, group = np.unique(key, return_index=True, return_inverse=True)
    return first, group.reshape(-1)


class SpatialPyramidPooling(nn.Module):
    """A layer that turns a map of any size into a vector of fixed length: ``(B, C, H, W) -> (B, C * M)``.

    Vectors are in the order of the original program: level by level, then channel, row, column.

    Args:
        levels: bins per side of each level, or one number: 3 means 1, 2, 3.
        mode: ``max`` or ``average``.

    Raises:
        ValueError: levels are not positive, or the mode is another.

    Examples:
        >>> pool = SpatialPyramidPooling((2, 1))
        >>> pool(torch.arange(16.0).reshape(1, 1, 4, 4)).tolist()
        [[5.0, 7.0, 13.0, 15.0, 15.0]]
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
        """Return the vectors ``(B, C * M)`` of maps ``(B, C, H, W)``."""
        pool = functional.adaptive_max_pool2d if self.mode == "max" else functional.adaptive_avg_pool2d
        return torch.cat([pool(x, n).flatten(1) for n in self.levels], dim=1)

    def output_dim(self, channels: int) -> int:
        """Return D, the length of the vector of a map with this many channels.

        Examples:
            >>> SpatialPyramidPooling(3).output_dim(32)
            448
        """
        return channels * bins(self.levels)

    def extra_repr(self) -> str:
        """Return the settings, which ``repr`` shows."""
        return f"levels={self.levels}, mode={self.mode!r}"
