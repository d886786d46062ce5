"""The compiled loops of :func:`sppdet.pooling.pyramid_pool`, and of its gradient."""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from sppdet.utils import compiled


def _max_of(lanes: int):
    """A compiled function that takes the maximum of a rectangle of vectors, ``lanes`` channels at a time.

    ``lanes`` numbers stay in vector registers over all the rectangle, which Numba cannot be talked into: its loops
    write each intermediate maximum to memory and read it again. LLVM splits them into what the processor has.
    """

    @intrinsic
    def max_of(typing_context, source, first, rows, row_step, columns, column_step, out, to):
        bits, whole = source.dtype.bitwidth, isinstance(source.dtype, types.Integer)
        vector = ir.VectorType(ir.IntType(bits) if whole else ir.FloatType(), lanes)

        def codegen(context, builder, signature, arguments):
            source, first, rows, row_step, columns, column_step, out, to = arguments
            read, write = (
                context.make_array(kind)(context, builder, value).data
                for kind, value in ((signature.args[0], source), (signature.args[6], out))
            )

            def place(base, offset):
                return builder.bitcast(builder.gep(base, [offset]), vector.as_pointer())

            highest = cgutils.alloca_once(builder, vector)
            builder.store(builder.load(place(read, first), align=bits // 8), highest)
            with cgutils.for_range(builder, rows) as row:
                line = builder.add(first, builder.mul(row.index, row_step))
                with cgutils.for_range(builder, columns) as column:
                    cell = builder.add(line, builder.mul(column.index, column_step))
                    value, old = builder.load(place(read, cell), align=bits // 8), builder.load(highest)
                    # This form, not llvm.maxnum, is one instruction on x86.
                    compare = builder.icmp_signed if whole else builder.fcmp_ordered
                    builder.store(builder.select(compare(">", value, old), value, old), highest)
            builder.store(builder.load(highest), place(write, to), align=bits // 8)
            return context.get_dummy_value()

        n = types.intp
        return types.void(source, n, n, n, n, n, out, n), codegen

    return max_of


_LANES = 64  # of floats four registers of AVX-512, eight of AVX2
_max_of_lanes, _max_of_one = _max_of(_LANES), _max_of(1)


@compiled(inline="always")
def _max_into(source, first, rows, row_step, columns, column_step, out, to, channels):
    """``out[to:to + channels]`` = the maximum of the vectors at ``first + row * row_step + column * column_step``."""
    whole = channels // _LANES * _LANES
    for c in range(0, whole, _LANES):
        _max_of_lanes(source, first + c, rows, row_step, columns, column_step, out, to + c)
    for c in range(whole, channels):
        _max_of_one(source, first + c, rows, row_step, columns, column_step, out, to + c)


@compiled(inline="always")
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


@compiled()
def _max_of_cells(source, first, rows, row_step, columns, column_step, out, to, channels):
    if rows == 1:
        _max_of_columns(source, first, 1, row_step, columns, column_step, out, to, channels)
    elif rows == 2:
        _max_of_columns(source, first, 2, row_step, columns, column_step, out, to, channels)
    elif rows == 3:
        _max_of_columns(source, first, 3, row_step, columns, column_step, out, to, channels)
    else:
        _max_of_columns(source, first, rows, row_step, columns, column_step, out, to, channels)


@compiled()
def pool_windows(conv_map, map_width, channels, cells, levels, parents, starts, order, pooled):
    """``conv_map`` and ``pooled``, both float32 or both int16, are flat; positions in them are counted in numbers."""
    bins = starts[-1] + levels[-1] ** 2
    line = map_width * channels
    left, right = np.empty(levels.max(), np.int64), np.empty(levels.max(), np.int64)
    for w in range(cells.shape[0]):
        x, y = cells[w, 0], cells[w, 1]
        width, height = cells[w, 2] - x, cells[w, 3] - y
        for level in order:
            n = levels[level]
            to = (w * bins + starts[level]) * channels
            if parents[level] < 0:
                for j in range(n):
                    left[j], right[j] = x + j * width // n, x - (-(j + 1) * width // n)
                for i in range(n):
                    top, bottom = y + i * height // n, y - (-(i + 1) * height // n)
                    for j in range(n):
                        first = top * line + left[j] * channels
                        columns = right[j] - left[j]
                        _max_of_cells(conv_map, first, bottom - top, line, columns, channels, pooled, to, channels)
                        to += channels
            else:
                finer = levels[parents[level]]
                k = finer // n
                for i in range(n):
                    for j in range(n):
                        first = (w * bins + starts[parents[level]] + i * k * finer + j * k) * channels
                        _max_of_cells(pooled, first, k, finer * channels, k, channels, pooled, to, channels)
                        to += channels


@compiled()
def spread_gradient(conv_map, cells, levels, starts, pooled, gradient, first, last, out):
    """Add each bin's gradient to the first of its cells, row by row, that holds the bin's maximum.

    ``conv_map`` and ``out`` are ``(H, W, C)``, ``pooled`` and ``gradient`` ``(N, M, C)``; only the channels from
    ``first`` to ``last`` are looked at, so that threads with channels of their own write to cells of their own.
    """
    rest = np.empty(last - first, np.float32)  # what no cell has been given yet
    for w in range(cells.shape[0]):
        x, y = cells[w, 0], cells[w, 1]
        width, height = cells[w, 2] - x, cells[w, 3] - y
        for level in range(len(levels)):
            n = levels[level]
            for i in range(n):
                top, bottom = y + i * height // n, y - (-(i + 1) * height // n)
                for j in range(n):
                    left, right = x + j * width // n, x - (-(j + 1) * width // n)
                    place = starts[level] + i * n + j
                    rest[:] = gradient[w, place, first:last]
                    highest = pooled[w, place, first:last]
                    for row in range(top, bottom):
                        for column in range(left, right):
                            values, to = conv_map[row, column, first:last], out[row, column, first:last]
                            for c in range(len(rest)):
                                given = rest[c] if values[c] == highest[c] else np.float32(0)
                                to[c] += given
                                rest[c] -= given
