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

import numpy as np
from numpy.typing import NDArray

from sppdet.ops.coded_maps import CodedMap
from sppdet.utils import share

_PART = 64  # windows that a thread takes at a time: few enough to share windows of any size evenly
_CACHE_LINE = 64  # bytes


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

    The result equals that of `sppdet.ops.pooling_torch.pyramid_pool_torch` bit for bit, but for the sign of a zero
    where a bin holds both signs. A map must hold no NaN: torch would return NaN, this function may not.

    Runs in as many threads as `sppdet.utils.thread_count` says.

    Args:
        feature_map: float32 ``(H, W, C)``; or int16, the bits of bfloat16 numbers none of which is negative. Such bits
            are ordered as whole numbers are, and half the memory takes a third of the time.
        cells: int ``(N, 4)`` half-open ``x1, y1, x2, y2`` inside the map, of at least one cell each.
        levels: bins per side of each level.
        out: ``(N, M, C)`` of the map's type, to which the result is written; each window's part is contiguous. It may
            be some columns of longer vectors. An array that is reused spares page faults, which cost more than pooling
            itself.

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
    pooled, numbers, step = _output(out, (len(cells), bins(levels), channels), kind)
    cells = np.ascontiguousarray(cells, np.int32)
    _check_cells(cells, feature_map)
    flat = np.ascontiguousarray(feature_map, kind).reshape(-1)
    plan = level_plan(tuple(levels))

    def work(start: int) -> None:
        pool_windows(flat, width, channels, cells[start : start + _PART], *plan, numbers[start * step :], step)

    share(work, range(0, len(cells), _PART))
    return pooled


def pyramid_pool_coded(
    coded_map: CodedMap,
    cells: np.ndarray,
    levels: Sequence[int],
    bfloat16: bool = False,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Max-pool every window of a map of codes, and decode the maxima.

    The order of numbers is that of their codes, so bytes are compared: a quarter of the memory of float32. The result
    is that of `pyramid_pool` on the decoded map bit for bit.

    Args:
        coded_map: the map, of C channels.
        cells: int ``(N, 4)`` half-open ``x1, y1, x2, y2`` inside the map, of at least one cell each.
        levels: bins per side of each level.
        bfloat16: whether the result is rounded to bfloat16.
        out: where the result is written, as for `pyramid_pool`.

    Returns:
        ``(N, M, C)``: float32, or int16 that holds the bits of bfloat16; ``out`` where it is passed.

    Raises:
        ValueError: a window is empty or not inside the map, or ``out`` has another shape or type.

    Examples:
        >>> from sppdet.ops import encode_map
        >>> coded_map = encode_map(np.linspace(-1, 1, 16, dtype=np.float32).reshape(4, 4, 1))
        >>> pyramid_pool_coded(coded_map, np.array([[0, 0, 1, 1], [1, 0, 4, 4]]), (1,)).ravel().tolist()
        [-1.0, 1.0]
    """
    from sppdet.ops.pooling_kernel import pool_coded_windows  # Numba takes long to load

    _, width, channels = coded_map.shape
    kind: type[np.generic] = np.int16 if bfloat16 else np.float32
    pooled, numbers, step = _output(out, (len(cells), bins(levels), channels), kind)
    cells = np.ascontiguousarray(cells, np.int32)
    _check_cells(cells, coded_map.codes)
    codes, scale, offset = coded_map.codes.reshape(-1), coded_map.scale, coded_map.offset
    plan = level_plan(tuple(levels))

    def work(start: int) -> None:
        part = cells[start : start + _PART]
        pool_coded_windows(codes, width, scale, offset, part, *plan, numbers[start * step :], step)

    share(work, range(0, len(cells), _PART))
    return pooled


def _output(
    out: np.ndarray | None, shape: tuple[int, int, int], kind: type[np.generic]
) -> tuple[np.ndarray, np.ndarray, int]:
    """Return ``out``, or a new array if it is None; its numbers, flat; and how many from one window to the next.

    Raises:
        ValueError: ``out`` does not have this shape and type, or the part of a window is not contiguous.
    """
    pooled = aligned_array(shape, kind) if out is None else out
    if pooled.shape != shape or pooled.dtype != kind or not (len(pooled) == 0 or pooled[0].flags.c_contiguous):
        raise ValueError(f"out must be a {kind.__name__} array of shape {shape}, contiguous in each window")
    step = pooled.strides[0] // pooled.itemsize
    count = (len(pooled) - 1) * step + shape[1] * shape[2] if len(pooled) else 0
    return pooled, np.lib.stride_tricks.as_strided(pooled, (count,), (pooled.itemsize,)), step


def aligned_array(shape: tuple[int, ...], kind: type[np.generic]) -> np.ndarray:
    """Return an array that begins on a cache line, which those of numpy do not."""
    size = int(np.prod(shape)) * np.dtype(kind).itemsize
    memory = np.empty(size + _CACHE_LINE, np.uint8)
    start = -memory.ctypes.data % _CACHE_LINE
    return memory[start : start + size].view(kind).reshape(shape)


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


def level_plan(
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
