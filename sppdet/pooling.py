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

from collections.abc import Callable, Sequence
from threading import Thread

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
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

    Equal to :func:`pyramid_pool_torch` bit for bit, but for the sign of a zero where a bin holds both. A map must
    hold no NaN: where one does, torch says NaN and this may not.

    Uses as many threads as torch does in the calling thread; a worker of :mod:`sppdet.parallel` has one.

    Args:
        conv_map: float32 ``(H, W, C)``.
        cells: int ``(N, 4)`` half-open ``x1, y1, x2, y2`` inside the map, at least one cell each.
        levels: bins a side of each level.
        out: float32 ``(N, M, C)``, contiguous, the array to write to; a reused one spares the page faults that cost
            more than the pooling itself.
    """
    height, width, channels = conv_map.shape
    shape = (len(cells), bins(levels), channels)
    pooled = np.empty(shape, np.float32) if out is None else out
    if pooled.shape != shape or pooled.dtype != np.float32 or not pooled.flags.c_contiguous:
        raise ValueError(f"out must be a contiguous float32 array of shape {shape}")
    cells = np.ascontiguousarray(cells, np.int32)
    # The kernel reads memory unchecked.
    if len(cells) and (cells.min() < 0 or (cells[:, :2] >= cells[:, 2:]).any() or (cells > [width, height] * 2).any()):
        raise ValueError(f"cells must hold at least one cell of the {width} x {height} map each")
    flat = np.ascontiguousarray(conv_map, np.float32).reshape(-1)
    plan = _plan(tuple(levels))

    def work(start: int) -> None:
        part = slice(start, start + _PART)
        _pool_windows(flat, width, channels, cells[part], *plan, pooled[part].reshape(-1))

    _share(work, range(0, len(cells), _PART))
    return pooled


_PART = 64  # windows that a thread takes at a time: small enough to share windows of any size evenly


def _share(work: Callable[[int], None], items: Sequence[int]) -> None:
    """Call ``work`` on every item in this thread and, where torch would use more than one, in others beside it."""
    left = iter(items)  # its next() holds the interpreter's lock: no item is taken twice

    def take() -> None:
        for item in left:
            work(item)

    helpers = [Thread(target=take) for _ in range(min(torch.get_num_threads(), len(items)) - 1)]
    for helper in helpers:
        helper.start()
    take()
    for helper in helpers:
        helper.join()


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


def _max_of(lanes: int):
    """A compiled function that takes the maximum of a rectangle of vectors, ``lanes`` channels at a time.

    ``lanes`` floats stay in vector registers over all the rectangle, which Numba cannot be talked into: its loops
    write each intermediate maximum to memory and read it again. LLVM splits them into what the processor has.
    """
    vector = ir.VectorType(ir.FloatType(), lanes)

    @intrinsic
    def max_of(typing_context, source, first, rows, row_step, columns, column_step, out, to):
        def codegen(context, builder, signature, arguments):
            source, first, rows, row_step, columns, column_step, out, to = arguments
            read, write = (
                context.make_array(kind)(context, builder, value).data
                for kind, value in ((signature.args[0], source), (signature.args[6], out))
            )

            def place(base, offset):
                return builder.bitcast(builder.gep(base, [offset]), vector.as_pointer())

            highest = cgutils.alloca_once(builder, vector)
            builder.store(builder.load(place(read, first), align=4), highest)
            with cgutils.for_range(builder, rows) as row:
                line = builder.add(first, builder.mul(row.index, row_step))
                with cgutils.for_range(builder, columns) as column:
                    cell = builder.add(line, builder.mul(column.index, column_step))
                    value, old = builder.load(place(read, cell), align=4), builder.load(highest)
                    # This form, not llvm.maxnum, is one instruction on x86.
                    builder.store(builder.select(builder.fcmp_ordered(">", value, old), value, old), highest)
            builder.store(builder.load(highest), place(write, to), align=4)
            return context.get_dummy_value()

        n = types.intp
        return types.void(source, n, n, n, n, n, out, n), codegen

    return max_of


_LANES = 64  # four registers of AVX-512, eight of AVX2
_max_of_lanes, _max_of_one = _max_of(_LANES), _max_of(1)


@njit(nogil=True, cache=True, inline="always")
def _max_into(source, first, rows, row_step, columns, column_step, out, to, channels):
    """``out[to:to + channels]`` = the maximum of the vectors at ``first + row * row_step + column * column_step``."""
    whole = channels // _LANES * _LANES
    for c in range(0, whole, _LANES):
        _max_of_lanes(source, first + c, rows, row_step, columns, column_step, out, to + c)
    for c in range(whole, channels):
        _max_of_one(source, first + c, rows, row_step, columns, column_step, out, to + c)


@njit(nogil=True, cache=True, inline="always")
def _max_of_columns(source, first, rows, row_step, columns, column_step, out, to, channels):
    # Most bins have few cells: with their number known the loops unroll, and there is no branch to be mispredicted.
    if columns == 1:
        _max_into(source, first, rows, row_step, 1, column_step, out, to, channels)
    elif columns == 2:
        _max_into(source, first, rows, row_step, 2, column_step, out, to, channels)
    elif columns == 3:
        _max_into(source, first, rows, row_step, 3, column_step, out, to, channels)
    else:
        _max_into(source, first, rows, row_step, columns, column_step, out, to, channels)


@njit(nogil=True, cache=True)
def _max_of_cells(source, first, rows, row_step, columns, column_step, out, to, channels):
    if rows == 1:
        _max_of_columns(source, first, 1, row_step, columns, column_step, out, to, channels)
    elif rows == 2:
        _max_of_columns(source, first, 2, row_step, columns, column_step, out, to, channels)
    elif rows == 3:
        _max_of_columns(source, first, 3, row_step, columns, column_step, out, to, channels)
    else:
        _max_of_columns(source, first, rows, row_step, columns, column_step, out, to, channels)


@njit(nogil=True, cache=True)
def _pool_windows(conv_map, map_width, channels, cells, levels, parents, starts, order, pooled):
    """``conv_map`` and ``pooled`` are flat; positions in them are counted in floats."""
    bins = starts[-1] + levels[-1] ** 2
    for w in range(cells.shape[0]):
        x, y = cells[w, 0], cells[w, 1]
        width, height = cells[w, 2] - x, cells[w, 3] - y
        for level in order:
            n = levels[level]
            for i in range(n):
                for j in range(n):
                    to = (w * bins + starts[level] + i * n + j) * channels
                    if parents[level] < 0:
                        top, bottom = y + i * height // n, y - (-(i + 1) * height // n)
                        left, right = x + j * width // n, x - (-(j + 1) * width // n)
                        first, line = (top * map_width + left) * channels, map_width * channels
                        _max_of_cells(conv_map, first, bottom - top, line, right - left, channels, pooled, to, channels)
                    else:
                        finer = levels[parents[level]]
                        k = finer // n
                        first = (w * bins + starts[parents[level]] + i * k * finer + j * k) * channels
                        _max_of_cells(pooled, first, k, finer * channels, k, channels, pooled, to, channels)


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
    _, parents, _, order = _plan(tuple(levels))
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
