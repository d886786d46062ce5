"""The compiled loops of :mod:`sppdet.ops.averaging`.

A bin's average is separable: a cell counts by its row's weight times its column's. So a level of a window is 2 n lists
of weights, one a row and one a column of bins, and costs the same whatever the number of points between cells.
"""

from __future__ import annotations

import numpy as np

from sppdet.utils import compiled

WHOLE_CELLS = -1  # in place of a number of samples: windows are of whole cells, which count alike

_contract = {"contract"}  # a product and a sum may be one instruction


@compiled()
def _room(levels, sides):
    """What :func:`_level` writes to, for both axes and each bin: its first cell, how many, their weights, their sum."""
    n = levels.max()
    return (
        np.empty((2, n), np.int64),
        np.empty((2, n), np.int64),
        np.empty((2, n, sides.max()), np.float32),
        np.empty((2, n), np.float32),
    )


@compiled()
def _level(window, n, samples, sides, first, count, weights, total):
    """The ``n`` bins of a window along x (index 0) and y (1); ``sides`` are the map's width and height."""
    for axis in range(2):
        start, end = window[axis], window[axis + 2]
        if samples == WHOLE_CELLS:
            _cells(start, end, n, first[axis], count[axis], weights[axis], total[axis])
        else:
            _points(start, end, n, samples, sides[axis], first[axis], count[axis], weights[axis], total[axis])


@compiled()
def _cells(start, end, n, first, count, weights, total):
    start, side = int(start), int(end) - int(start)
    for i in range(n):
        first[i] = start + i * side // n
        count[i] = start - (-(i + 1) * side // n) - first[i]
        weights[i, : count[i]] = 1
        total[i] = count[i]


@compiled()
def _points(start, end, n, samples, side, first, count, weights, total):
    """Bilinear weights, in float32 operation by operation as torchvision's ``roi_align`` with ``aligned``.

    Where ``samples`` is 0 a rounding decides how many points a bin has.
    """
    half = np.float32(0.5)
    origin = start - half
    length = (end - half - origin) / np.float32(n)
    points = samples if samples > 0 else int(np.ceil(length))
    for i in range(n):
        last = -1
        for s in range(points):
            place = origin + np.float32(i) * length + (np.float32(s) + half) * length / np.float32(points)
            place = min(max(place, np.float32(0)), np.float32(side - 1))
            low = int(place)
            high = min(low + 1, side - 1)
            if s == 0:
                first[i], last = low, low - 1
            while last < high:
                last += 1
                weights[i, last - first[i]] = 0
            beyond = place - np.float32(low)
            weights[i, low - first[i]] += np.float32(1) - beyond
            weights[i, high - first[i]] += beyond
        count[i] = last - first[i] + 1
        total[i] = points


@compiled(fastmath=_contract)
def _add_weighted(row, row_weight, weights, out):
    """``out (C,)`` += ``row_weight`` times the cells of ``row (n, C)``, each by its weight."""
    n, channels = row.shape
    done = n // 4 * 4
    for t in range(0, done, 4):  # four at a time: the sum is written to memory once for all of them
        w0, w1, w2, w3 = weights[t], weights[t + 1], weights[t + 2], weights[t + 3]
        w0, w1, w2, w3 = w0 * row_weight, w1 * row_weight, w2 * row_weight, w3 * row_weight
        a, b, c, d = row[t], row[t + 1], row[t + 2], row[t + 3]
        for k in range(channels):
            out[k] += w0 * a[k] + w1 * b[k] + w2 * c[k] + w3 * d[k]
    for t in range(done, n):
        weight, a = weights[t] * row_weight, row[t]
        for k in range(channels):
            out[k] += weight * a[k]


@compiled()
def average_windows(conv_map, windows, levels, samples, pooled):
    """``conv_map (H, W, C)`` and float32 ``windows (N, 4)`` -> ``pooled (N, M, C)``."""
    sides = np.array([conv_map.shape[1], conv_map.shape[0]])
    first, count, weights, total = _room(levels, sides)
    for w in range(len(windows)):
        place = 0
        for n in levels:
            _level(windows[w], n, samples, sides, first, count, weights, total)
            for i in range(n):
                for j in range(n):
                    out = pooled[w, place]
                    out[:] = 0
                    left, right = first[0, j], first[0, j] + count[0, j]
                    for t in range(count[1, i]):
                        _add_weighted(conv_map[first[1, i] + t, left:right], weights[1, i, t], weights[0, j], out)
                    whole = total[1, i] * total[0, j]
                    for k in range(len(out)):
                        out[k] /= whole
                    place += 1


@compiled(fastmath=_contract)
def spread_gradient(windows, levels, samples, gradient, start, end, found):
    """Add to ``found (H, W, C)`` each cell's share of each bin's average times the bin's ``gradient (N, M, C)``.

    Only the channels from ``start`` to ``end`` are looked at, so that threads with channels of their own write to
    memory of their own.
    """
    sides = np.array([found.shape[1], found.shape[0]])
    first, count, weights, total = _room(levels, sides)
    for w in range(len(windows)):
        place = 0
        for n in levels:
            _level(windows[w], n, samples, sides, first, count, weights, total)
            for i in range(n):
                for j in range(n):
                    given, whole = gradient[w, place, start:end], total[1, i] * total[0, j]
                    for t in range(count[1, i]):
                        for u in range(count[0, j]):
                            share = weights[1, i, t] * weights[0, j, u] / whole
                            to = found[first[1, i] + t, first[0, j] + u, start:end]
                            for k in range(len(given)):
                                to[k] += share * given[k]
                    place += 1
