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
from torch import nn
from torch.nn import functional

from sppdet.utils import share


def bins(levels: Sequence[int]) -> int:
    """M, the number of bins: 50 for levels 6, 3, 2, 1."""
    return sum(n * n for n in levels)


def pyramid_pool(
    conv_map: np.ndarray, cells: np.ndarray, levels: Sequence[int], out: np.ndarray | None = None
) -> np.ndarray:
    """Max-pool every window: ``(N, M, C)``, float32 or int16 as the map is.

    The pyramid is nested: the bins of a level that divides a finer one are unions of the finer one's bins (as
    floor(ik * h / nk) = floor(i * h / n)), so they are pooled from those and the map is read once.

    Equal to :func:`pyramid_pool_torch` bit for bit, but for the sign of a zero where a bin holds both. A map must
    hold no NaN: where one does, torch says NaN and this may not.

    Uses as many threads as torch does in the calling thread; a worker of :mod:`sppdet.utils.parallel` has one.

    Args:
        conv_map: float32 ``(H, W, C)``; or int16, the bits of bfloat16 numbers none of which is negative: their order
            is that of whole numbers, and half the memory takes a third of the time.
        cells: int ``(N, 4)`` half-open ``x1, y1, x2, y2`` inside the map, at least one cell each.
        levels: bins a side of each level.
        out: ``(N, M, C)`` of the map's kind, contiguous, the array to write to; a reused one spares the page faults
            that cost more than the pooling itself.
    """
    from sppdet.ops.pooling_kernel import pool_windows  # Numba takes long to load

    _, width, channels = conv_map.shape
    kind = np.int16 if conv_map.dtype == np.int16 else np.float32
    pooled = output_array(out, (len(cells), bins(levels), channels), kind)
    cells = np.ascontiguousarray(cells, np.int32)
    check_cells(cells, conv_map)
    flat = np.ascontiguousarray(conv_map, kind).reshape(-1)
    plan = _plan(tuple(levels))

    def work(start: int) -> None:
        part = slice(start, start + PART)
        pool_windows(flat, width, channels, cells[part], *plan, pooled[part].reshape(-1))

    share(work, range(0, len(cells), PART))
    return pooled


_KINDS = {np.float32: torch.float32, np.int16: torch.int16}
PART = 64  # windows that a thread takes at a time: small enough to share windows of any size evenly


def output_array(out: np.ndarray | None, shape: tuple[int, int, int], kind: type = np.float32) -> np.ndarray:
    """``out``, or a new array where it is None: torch's begin on a cache line, numpy's do not."""
    pooled = torch.empty(shape, dtype=_KINDS[kind]).numpy() if out is None else out
    if pooled.shape != shape or pooled.dtype != kind or not pooled.flags.c_contiguous:
        raise ValueError(f"out must be a contiguous {kind.__name__} array of shape {shape}")
    return pooled


def check_cells(cells: np.ndarray, conv_map: np.ndarray) -> None:
    """Refuse windows ``(N, 4)`` that are not inside the map ``(H, W, C)``: compiled loops read memory unchecked."""
    height, width = conv_map.shape[:2]
    if len(cells) and (cells.min() < 0 or (cells[:, :2] >= cells[:, 2:]).any() or (cells > [width, height] * 2).any()):
        raise ValueError(f"cells must hold at least one cell of the {width} x {height} map each")


def _plan(levels: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The levels, for each its parent (the coarsest finer level it divides, or -1) and first bin; the order of work."""
    parents = [
        min((n, p) for p, n in enumerate(levels) if n > own and n % own == 0)[1]
        if any(n > own and n % own == 0 for n in levels)
        else -1
        for own in levels
    ]
    starts = np.cumsum([0] + [n * n for n in levels[:-1]])
    order = np.argsort([-n for n in levels], kind="stable")
    return np.asarray(levels, np.int64), np.array(parents), starts, order


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
    """The same, differentiable and quick, for training: ``(C, H, W)`` on any device -> ``(N, M, C)``.

    In float32 on the CPU by the compiled loops, equal to the plain form in values and in gradients. Elsewhere by
    `roi_pool`, and coarser levels from finer ones: on whole cells torchvision's bins are ours up to its rounding;
    where a quotient of floats falls a hair above a whole number a bin reads a row more.
    """
    if conv_map.device.type == "cpu" and conv_map.dtype == torch.float32:
        return _CompiledPyramid.apply(conv_map, cells, levels)
    from torchvision.ops import roi_pool  # takes longer to import than torch

    rois = torch.from_numpy(np.asarray(cells) - [0, 0, 1, 1]).to(conv_map)  # the last cell belongs to a RoI
    _, parents, _, order = _plan(tuple(levels))
    pooled: dict[int, torch.Tensor] = {}
    for level in order.tolist():
        n = levels[level]
        if parents[level] < 0:
            pooled[level] = roi_pool(conv_map[None], [rois], n)
        else:
            pooled[level] = functional.max_pool2d(pooled[parents[level]], levels[parents[level]] // n)
    return torch.cat([pooled[level].flatten(2) for level in range(len(levels))], dim=2).transpose(1, 2)


class _CompiledPyramid(torch.autograd.Function):
    @staticmethod
    def forward(context, conv_map: torch.Tensor, cells: np.ndarray, levels: Sequence[int]) -> torch.Tensor:
        channels_last = conv_map.permute(1, 2, 0).contiguous()
        pooled = torch.from_numpy(pyramid_pool(channels_last.detach().numpy(), cells, levels))
        context.save_for_backward(channels_last, pooled)
        context.cells, context.levels = cells, levels
        return pooled

    @staticmethod
    def backward(context, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        from sppdet.ops.pooling_kernel import spread_gradient  # Numba takes long to load

        channels_last, pooled = (tensor.numpy() for tensor in context.saved_tensors)
        found, channels = np.zeros_like(channels_last), channels_last.shape[2]
        cells, gradient = np.ascontiguousarray(context.cells, np.int32), gradient.contiguous().numpy()
        levels, _, starts, _ = _plan(tuple(context.levels))

        def work(first: int) -> None:
            last = min(first + CHANNELS, channels)
            spread_gradient(channels_last, cells, levels, starts, pooled, gradient, first, last, found)

        share(work, range(0, channels, CHANNELS))
        return torch.from_numpy(found).permute(2, 0, 1), None, None


CHANNELS = 256  # of a map that a thread takes at a time, for gradients


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
    # One 64-bit key a window: no map has 4096 cells a side, no image 2^16 scales.
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
