"""The compiled loops of `sppdet.ops.pooling.pyramid_pool`, and of its gradient.

Maps are read as flat arrays, in which a position is the index of a number. A rectangle of vectors is described by
``first``, the position of its first vector, by its ``rows`` and ``columns``, and by the distances ``row_step`` and
``column_step`` from one row and one column to the next.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from sppdet.utils import compiled


def _max_of(lanes: int) -> Any:
    """Return a compiled function that takes the maximum of a rectangle of vectors, for ``lanes`` channels.

    The maxima of ``lanes`` channels stay in vector registers over all of the rectangle. Loops that Numba compiles write
    every intermediate maximum to memory and read it again. LLVM splits ``lanes`` into the registers of the processor.
    """

    @intrinsic
    def max_of(
        typing_context: Any,
        source: Any,
        first: Any,
        rows: Any,
        row_step: Any,
        columns: Any,
        column_step: Any,
        out: Any,
        target: Any,
    ) -> Any:
        bits, is_integer = source.dtype.bitwidth, isinstance(source.dtype, types.Integer)
        is_signed = is_integer and source.dtype.signed
        vector = ir.VectorType(ir.IntType(bits) if is_integer else ir.FloatType(), lanes)

        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            source, first, rows, row_step, columns, column_step, out, target = arguments
            source_data, out_data = (
                context.make_array(kind)(context, builder, value).data
                for kind, value in ((signature.args[0], source), (signature.args[6], out))
            )

            def pointer(base: Any, offset: Any) -> Any:
                return builder.bitcast(builder.gep(base, [offset]), vector.as_pointer())

            highest = cgutils.alloca_once(builder, vector)
            builder.store(builder.load(pointer(source_data, first), align=bits // 8), highest)
            with cgutils.for_range(builder, rows) as row:
                line = builder.add(first, builder.mul(row.index, row_step))
                with cgutils.for_range(builder, columns) as column:
                    cell = builder.add(line, builder.mul(column.index, column_step))
                    value = builder.load(pointer(source_data, cell), align=bits // 8)
                    old = builder.load(highest)
                    # This form, not llvm.maxnum, is one instruction on x86.
                    compare_integers = builder.icmp_signed if is_signed else builder.icmp_unsigned
                    compare = compare_integers if is_integer else builder.fcmp_ordered
                    builder.store(builder.select(compare(">", value, old), value, old), highest)
            builder.store(builder.load(highest), pointer(out_data, target), align=bits // 8)
            return context.get_dummy_value()

        n = types.intp
        return types.void(source, n, n, n, n, n, out, n), codegen

    return max_of


_LANES = 64  # floats: four registers of AVX-512, eight of AVX2; bytes: one and two
_max_of_lanes, _max_of_one = _max_of(_LANES), _max_of(1)


@compiled(inline="always")
def _max_into(
    source: np.ndarray,
    first: int,
    rows: int,
    row_step: int,
    columns: int,
    column_step: int,
    out: np.ndarray,
    target: int,
    channels: int,
) -> None:
    """Write the maximum of a rectangle of vectors of ``channels`` numbers to the position ``target`` of ``out``."""
    if channels < _LANES:
        for c in range(channels):
            _max_of_one(source, first + c, rows, row_step, columns, column_step, out, target + c)
        return
    last = channels - _LANES
    for c in range(0, last, _LANES):
        _max_of_lanes(source, first + c, rows, row_step, columns, column_step, out, target + c)
    # Ends at the last channel, and may compute maxima of the block before again.
    _max_of_lanes(source, first + last, rows, row_step, columns, column_step, out, target + last)


@compiled(inline="always")
def _max_of_columns(
    source: np.ndarray,
    first: int,
    rows: int,
    row_step: int,
    columns: int,
    column_step: int,
    out: np.ndarray,
    target: int,
    channels: int,
) -> None:
    """Call `_max_into`, with a literal number of columns if it is small."""
    # Most bins have few cells: with their number known the loops unroll, and there is no branch to be mispredicted.
    if columns == 1:
        _max_into(source, first, rows, row_step, 1, column_step, out, target, channels)
    elif columns == 2:
        _max_into(source, first, rows, row_step, 2, column_step, out, target, channels)
    elif columns == 3:
        _max_into(source, first, rows, row_step, 3, column_step, out, target, channels)
    else:
        _max_into(source, first, rows, row_step, columns, column_step, out, target, channels)


@compiled()
def _max_of_cells(
    source: np.ndarray,
    first: int,
    rows: int,
    row_step: int,
    columns: int,
    column_step: int,
    out: np.ndarray,
    target: int,
    channels: int,
) -> None:
    """Call `_max_of_columns`, with a literal number of rows if it is small."""
    if rows == 1:
        _max_of_columns(source, first, 1, row_step, columns, column_step, out, target, channels)
    elif rows == 2:
        _max_of_columns(source, first, 2, row_step, columns, column_step, out, target, channels)
    elif rows == 3:
        _max_of_columns(source, first, 3, row_step, columns, column_step, out, target, channels)
    else:
        _max_of_columns(source, first, rows, row_step, columns, column_step, out, target, channels)


@compiled()
def pool_windows(
    feature_map: np.ndarray,
    map_width: int,
    channels: int,
    cells: NDArray[np.int32],
    levels: NDArray[np.int64],
    parents: NDArray[np.int64],
    starts: NDArray[np.int64],
    order: NDArray[np.int64],
    pooled: np.ndarray,
    step: int,
) -> None:
    """Pool every window of a map.

    Args:
        feature_map: the map ``(H, W, C)``, flat, float32 or int16.
        map_width: W.
        channels: C.
        cells: ``(N, 4)`` half-open ``x1, y1, x2, y2``.
        levels: bins per side of each level.
        parents: for each level the index of the level whose bins it is pooled from, or -1 for the map.
        starts: for each level its first bin.
        order: the order of levels, parents first.
        pooled: where the vectors ``(M, C)`` of the windows are written, flat, of the map's type.
        step: numbers from the first of a vector to the first of the next.
    """
    line = map_width * channels
    left, right = np.empty(levels.max(), np.int64), np.empty(levels.max(), np.int64)
    for w in range(cells.shape[0]):
        x, y = cells[w, 0], cells[w, 1]
        width, height = cells[w, 2] - x, cells[w, 3] - y
        for level in order:
            n = levels[level]
            target = w * step + starts[level] * channels
            if parents[level] < 0:
                for j in range(n):
                    left[j], right[j] = x + j * width // n, x - (-(j + 1) * width // n)
                for i in range(n):
                    top, bottom = y + i * height // n, y - (-(i + 1) * height // n)
                    for j in range(n):
                        first = top * line + left[j] * channels
                        columns = right[j] - left[j]
                        _max_of_cells(
                            feature_map, first, bottom - top, line, columns, channels, pooled, target, channels
                        )
                        target += channels
            else:
                finer = levels[parents[level]]
                k = finer // n
                for i in range(n):
                    for j in range(n):
                        first = w * step + (starts[parents[level]] + i * k * finer + j * k) * channels
                        _max_of_cells(pooled, first, k, finer * channels, k, channels, pooled, target, channels)
                        target += channels


@intrinsic
def _bits_of(typing_context: Any, value: Any) -> Any:
    """Return the bits of a float32 as an int32."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.int32(types.float32), codegen


@compiled()
def pool_coded_windows(
    codes: NDArray[np.uint8],
    map_width: int,
    scale: NDArray[np.float32],
    offset: NDArray[np.float32],
    cells: NDArray[np.int32],
    levels: NDArray[np.int64],
    parents: NDArray[np.int64],
    starts: NDArray[np.int64],
    order: NDArray[np.int64],
    pooled: np.ndarray,
    step: int,
) -> None:
    """Pool every window of a map of codes, and decode the maxima while they are in the processor's nearest memory.

    Args:
        codes: the codes ``(H, W, C)``, flat.
        map_width: W.
        scale: ``(C,)``.
        offset: ``(C,)``; a code stands for ``offset + scale * code``.
        cells: ``(N, 4)`` half-open ``x1, y1, x2, y2``.
        levels, parents, starts, order: as for `pool_windows`.
        pooled: where the vectors ``(M, C)`` are written, flat: float32, or int16 for the bits of bfloat16.
        step: as for `pool_windows`.
    """
    channels, bins = len(scale), starts[-1] + levels[-1] ** 2
    maxima = np.empty(bins * channels, np.uint8)
    for w in range(cells.shape[0]):
        pool_windows(codes, map_width, channels, cells[w : w + 1], levels, parents, starts, order, maxima, 0)
        for m in range(bins):
            row = maxima[m * channels : (m + 1) * channels]
            out = pooled[w * step + m * channels : w * step + (m + 1) * channels]
            if pooled.itemsize == 4:
                for c in range(channels):
                    out[c] = np.float32(row[c]) * scale[c] + offset[c]
            else:  # to the nearest bfloat16, of two to the even one
                for c in range(channels):
                    value = np.float32(row[c]) * scale[c] + offset[c]
                    bits: np.int32 = _bits_of(value)  # type: ignore[call-arg]
                    out[c] = (bits + np.int32(0x7FFF) + ((bits >> np.int32(16)) & np.int32(1))) >> np.int32(16)


@compiled()
def spread_gradient(
    feature_map: NDArray[np.float32],
    cells: NDArray[np.int32],
    levels: NDArray[np.int64],
    starts: NDArray[np.int64],
    pooled: NDArray[np.float32],
    gradient: NDArray[np.float32],
    first: int,
    last: int,
    out: NDArray[np.float32],
) -> None:
    """Add each bin's gradient to the first of its cells, row by row, that holds the bin's maximum.

    Args:
        feature_map: ``(H, W, C)``.
        cells: ``(N, 4)`` half-open ``x1, y1, x2, y2``.
        levels: bins per side of each level.
        starts: for each level its first bin.
        pooled: ``(N, M, C)`` result of pooling.
        gradient: ``(N, M, C)`` gradient of that result.
        first: first channel; the others are left alone, so that threads with other channels write to other numbers.
        last: last channel, exclusive.
        out: ``(H, W, C)`` gradient of the map, to which is added.
    """
    rest = np.empty(last - first, np.float32)  # the part of the gradient that no cell has received yet
    for w in range(cells.shape[0]):
        x, y = cells[w, 0], cells[w, 1]
        width, height = cells[w, 2] - x, cells[w, 3] - y
        for level in range(len(levels)):
            n = levels[level]
            for i in range(n):
                top, bottom = y + i * height // n, y - (-(i + 1) * height // n)
                for j in range(n):
                    left, right = x + j * width // n, x - (-(j + 1) * width // n)
                    index = starts[level] + i * n + j
                    rest[:] = gradient[w, index, first:last]
                    highest = pooled[w, index, first:last]
                    for row in range(top, bottom):
                        for column in range(left, right):
                            values, sums = feature_map[row, column, first:last], out[row, column, first:last]
                            for c in range(len(rest)):
                                received = rest[c] if values[c] == highest[c] else np.float32(0)
                                sums[c] += received
                                rest[c] -= received
