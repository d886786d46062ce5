"""Spatial pyramid pooling in PyTorch, with gradients; the bins are those of `sppdet.ops.pooling`.

Names: N windows, B maps, C channels, L levels, M bins (the sum of n * n over the levels).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from sppdet.ops.pooling import bins, level_plan, pyramid_pool
from sppdet.utils import share

_CHANNELS = 256  # channels of a map that a thread takes at a time, for gradients


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

    Maps in float32 on the CPU are pooled by compiled loops, all others by `pyramid_pool_nested`, with the same values
    and gradients as those of `pyramid_pool_torch`.

    Args:
        feature_map: ``(C, H, W)`` on any device.
        cells: int ``(N, 4)`` half-open ``x1, y1, x2, y2`` inside the map.
        levels: bins per side of each level.

    Returns:
        ``(N, M, C)`` on the map's device.
    """
    if feature_map.device.type == "cpu" and feature_map.dtype == torch.float32:
        return _CompiledPyramid.apply(feature_map, cells, levels)
    return pyramid_pool_nested(feature_map, torch.from_numpy(np.asarray(cells)), levels)


def pyramid_pool_nested(feature_map: torch.Tensor, cells: torch.Tensor, levels: Sequence[int]) -> torch.Tensor:
    """Max-pool every window by torchvision's ``roi_pool``, and coarser levels from the finer ones that hold them.

    Each bin is a RoI of its own, with whole edges: ``roi_pool`` divides a RoI by floats, and a bin would read one more
    row where a quotient falls just above a whole number.

    Args:
        feature_map: ``(C, H, W)`` on any device.
        cells: int ``(N, 4)`` half-open ``x1, y1, x2, y2`` inside the map.
        levels: bins per side of each level.

    Returns:
        ``(N, M, C)`` on the map's device.
    """
    from torchvision.ops import roi_pool  # takes longer to import than torch

    cells = cells.to(feature_map.device, torch.int64)
    _, parents, _, order = level_plan(tuple(levels))
    pooled: dict[int, torch.Tensor] = {}
    for level in order.tolist():
        n = levels[level]
        if parents[level] < 0:
            rois = _bins(cells, n).to(feature_map)
            maxima = roi_pool(feature_map[None], [rois], 1)
            pooled[level] = maxima.view(len(cells), n, n, feature_map.shape[0]).permute(0, 3, 1, 2)
        else:
            pooled[level] = functional.max_pool2d(pooled[parents[level]], levels[parents[level]] // n)
    return torch.cat([pooled[level].flatten(2) for level in range(len(levels))], dim=2).transpose(1, 2)


def _bins(cells: torch.Tensor, n: int) -> torch.Tensor:
    """Return the bins of each window row by row: ``(N n n, 4)`` ``x1, y1, x2, y2``, the last cells included."""
    steps = torch.arange(n, device=cells.device)
    corner, size = cells[:, None, :2], (cells[:, 2:] - cells[:, :2])[:, None]
    first = corner + steps[:, None] * size // n  # (N, n, 2)
    last = corner - (-(steps[:, None] + 1) * size // n) - 1
    edges = torch.cat([first, last], 2)  # (N, n, 4): x edges of the columns, y edges of the rows
    grid = edges[:, None].expand(-1, n, -1, -1).clone()  # (N, row, column, 4)
    grid[..., 1::2] = edges[:, :, None, 1::2]
    return grid.flatten(0, 2)


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
        levels, _, starts, _ = level_plan(tuple(context.levels))

        def work(first: int) -> None:
            last = min(first + _CHANNELS, channels)
            spread_gradient(channels_last, cells, levels, starts, pooled, bin_gradient, first, last, map_gradient)

        share(work, range(0, channels, _CHANNELS))
        return torch.from_numpy(map_gradient).permute(2, 0, 1), None, None


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
