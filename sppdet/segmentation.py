"""Graph-based segmentation of a picture (Felzenszwalb and Huttenlocher, IJCV 2004), for several k at once.

Pixels are nodes, 4-neighbours are joined by an edge whose weight is the distance of their smoothed colours. Edges are
taken lightest first; one joins two segments if it weighs no more than each segment's heaviest edge so far plus
k / pixels. Then, lightest first again, the edges that were refused join segments of fewer than ``min_size`` pixels.

What does not depend on k is done once: smoothing, weights, order, and all of the joining up to where the values of k
part. Two segments that every k has built alike are joined for all of them if the smallest k allows it; an edge that
only some allow stops both. The stopped pieces, some 20,000, and the edges between them are the small graph on which
each k goes on alone.

Names: H, W, C height, width and channels of the picture; P pieces; K values of k. Edge 2p goes from pixel p (counted
row by row) to its right neighbour, edge 2p + 1 to the one below; of equal weights the lower number comes first.
Arithmetic is in a fixed order without fused operations, so that every machine gives the same segments.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import njit

# Weights are float32 cut to 12 bits of mantissa; those below 2^-7 of a grey level are 0. Up to 512, above the
# distance of any two 8-bit colours of four channels, that is 16 bits: one counting sort brings them in order.
_CUT = 11
_LEAST = int(np.float32(2**-7).view(np.int32)) >> _CUT
_STOPPED = np.float32(-1)


def segment(image: np.ndarray, ks: Sequence[float], sigma: float, min_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Segment a uint8 picture ``(H, W, C)`` with every k of ``ks``, after smoothing by ``sigma`` pixels.

    Returns:
        ``pieces``: int32 ``(H, W)``, the parts of the picture that no k divides, numbered by first pixel.
        ``labels``: int32 ``(K, P)``, the segment of each piece, again numbered by first pixel: the segmentation with
        ``ks[i]`` is ``labels[i][pieces]``.
    """
    height, width = image.shape[:2]
    edges, weights = sorted_edges(smooth(image, sigma))
    return _segment(edges, weights, height, width, np.asarray(ks, np.float32), min_size)


def smooth(image: np.ndarray, sigma: float) -> np.ndarray:
    """A uint8 picture ``(H, W, C)`` through a Gaussian, float32; kernel size and reflected border are OpenCV's."""
    height, width, channels = image.shape
    radius = (round(8 * max(sigma, 0) + 1) | 1) // 2
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / max(sigma, 1e-3)) ** 2)
    # In steps of 2^-16, so that the last bit of some machine's exp() never shows.
    kernel = np.rint(kernel / kernel.sum() * 2**16).astype(np.float32) / np.float32(2**16)
    padded = np.pad(image, ((radius, radius), (radius, radius), (0, 0)), "reflect")
    return _convolve(padded.reshape(len(padded), -1), kernel, height, width * channels, channels).reshape(image.shape)


def sorted_edges(smoothed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers (int32) and weights (float32, in grey levels) of the edges of ``(H, W, C)``, lightest first."""
    height, width = smoothed.shape[:2]
    keys = (_distances(smoothed).view(np.int32) >> _CUT) - _LEAST
    edges, keys = _sort(np.maximum(keys, 0).reshape(-1).astype(np.uint16), height, width)
    weights = ((keys.astype(np.int32) + _LEAST) << _CUT).view(np.float32)
    weights[keys == 0] = 0
    return edges, weights


@njit(nogil=True, cache=True)
def _convolve(padded, kernel, height, length, step):
    """Along rows of ``length`` values, of which neighbours are ``step`` apart, then along columns."""
    taps = len(kernel)
    rows = np.zeros((height + taps - 1, length), np.float32)
    for y in range(height + taps - 1):
        for t in range(taps):
            for x in range(length):
                rows[y, x] += kernel[t] * np.float32(padded[y, x + t * step])
    out = np.zeros((height, length), np.float32)
    for y in range(height):
        for t in range(taps):
            for x in range(length):
                out[y, x] += kernel[t] * rows[y + t, x]
    return out


@njit(nogil=True, cache=True)
def _distances(smoothed):
    """float32 ``(H, W, 2)``: weights of the edges to the right and down; 0 for those that leave the picture."""
    height, width, channels = smoothed.shape
    distances = np.zeros((height, width, 2), np.float32)
    for y in range(height):
        for x in range(width):
            right = down = np.float32(0)
            for c in range(channels):
                value = smoothed[y, x, c]
                if x + 1 < width:
                    right += (smoothed[y, x + 1, c] - value) ** 2
                if y + 1 < height:
                    down += (smoothed[y + 1, x, c] - value) ** 2
            distances[y, x, 0] = np.sqrt(right)
            distances[y, x, 1] = np.sqrt(down)
    return distances


@njit(nogil=True, cache=True)
def _exists(edge, height, width):
    pixel = edge >> 1
    return pixel < (height - 1) * width if edge & 1 else (pixel + 1) % width != 0


@njit(nogil=True, cache=True)
def _sort(keys, height, width):
    """A stable counting sort of the edges that exist: their numbers and keys."""
    starts = np.zeros(2**16 + 1, np.int64)
    for edge in range(len(keys)):
        if _exists(edge, height, width):
            starts[keys[edge] + 1] += 1
    starts = np.cumsum(starts)
    edges = np.empty(starts[-1], np.int32)
    ordered = np.empty(starts[-1], np.uint16)
    for edge in range(len(keys)):
        if _exists(edge, height, width):
            place = starts[keys[edge]]
            starts[keys[edge]] += 1
            edges[place] = edge
            ordered[place] = keys[edge]
    return edges, ordered


@njit(nogil=True, cache=True)
def _find(parents, node):
    """The root of ``node``'s tree, which points to itself. Trees are two deep at most nearly always."""
    root = parents[parents[node]]
    while parents[root] != root:
        root = parents[parents[root]]
    parents[node] = root
    return root


@njit(nogil=True, cache=True)
def _join(parents, sizes, a, b):
    """Join the trees of two roots; the larger one's root stays, and is returned."""
    if sizes[a] < sizes[b]:
        a, b = b, a
    parents[b] = a
    sizes[a] += sizes[b]
    return a


@njit(nogil=True, cache=True)
def _number(parents):
    """Numbers from 0 for the trees, in the order of their first nodes: of every node, and how many."""
    numbers = np.full(len(parents), -1, np.int32)
    of_node = np.empty(len(parents), np.int32)
    count = 0
    for node in range(len(parents)):
        root = _find(parents, node)
        if numbers[root] < 0:
            numbers[root] = count
            count += 1
        of_node[node] = numbers[root]
    return of_node, count


@njit(nogil=True, cache=True)
def _segment(edges, weights, height, width, ks, min_size):
    pieces, sizes, heaviest, ends, kept = _common(edges, weights, height, width, ks.min(), ks.max())
    labels = np.empty((len(ks), len(sizes)), np.int32)
    for i in range(len(ks)):
        labels[i] = _finish(sizes.copy(), heaviest, ends, kept, ks[i], min_size)
    merged, firsts = _refinement(labels)
    for pixel in range(len(pieces)):
        pieces[pixel] = merged[pieces[pixel]]
    return pieces.reshape(height, width), labels[:, firsts]


@njit(nogil=True, cache=True)
def _common(edges, weights, height, width, least, most):
    """The joins that are the same for every k from ``least`` to ``most``, and what is left to do.

    Returns the piece of each pixel; of each piece its size and heaviest edge; the pieces that each edge left joins
    ``(edges, 2)``, and its weight. An edge that every k refuses is left too: small segments may need it.
    """
    pixels = height * width
    parents = np.arange(pixels).astype(np.int32)
    sizes = np.ones(pixels, np.int32)
    heaviest = np.zeros(pixels, np.float32)
    limits = np.full(pixels, least, np.float32)  # heaviest + least / size, of a root that has not stopped
    left = np.empty(len(edges), np.int32)
    waiting = 0
    for i in range(len(edges)):
        pixel = edges[i] >> 1
        a = _find(parents, pixel)
        b = _find(parents, pixel + (width if edges[i] & 1 else 1))
        if a == b:
            continue
        weight = weights[i]
        if weight <= limits[a] and weight <= limits[b]:
            a = _join(parents, sizes, a, b)
            heaviest[a] = weight
            limits[a] = weight + least / np.float32(sizes[a])
            continue
        left[waiting] = i
        waiting += 1
        if _may_join(a, weight, limits, heaviest, sizes, most) and _may_join(b, weight, limits, heaviest, sizes, most):
            limits[a] = limits[b] = _STOPPED
    of_pixel, count = _number(parents)
    roots = np.empty(count, np.int32)
    for pixel in range(pixels):
        roots[of_pixel[pixel]] = parents[pixel]
    ends = np.empty((waiting, 2), np.int32)
    for j in range(waiting):
        edge = edges[left[j]]
        ends[j, 0] = of_pixel[edge >> 1]
        ends[j, 1] = of_pixel[(edge >> 1) + (width if edge & 1 else 1)]
    return of_pixel, sizes[roots], heaviest[roots], ends, weights[left[:waiting]]


@njit(nogil=True, cache=True)
def _may_join(a, weight, limits, heaviest, sizes, most):
    return limits[a] == _STOPPED or weight <= heaviest[a] + most / np.float32(sizes[a])


@njit(nogil=True, cache=True)
def _finish(sizes, heaviest, ends, weights, k, min_size):
    """The segment of each piece, for one k."""
    parents = np.arange(len(sizes)).astype(np.int32)
    limits = heaviest + k / sizes.astype(np.float32)
    refused = np.empty(len(ends), np.int32)
    waiting = 0
    for i in range(len(ends)):
        a = _find(parents, ends[i, 0])
        b = _find(parents, ends[i, 1])
        if a != b:
            if weights[i] <= limits[a] and weights[i] <= limits[b]:
                a = _join(parents, sizes, a, b)
                limits[a] = weights[i] + k / np.float32(sizes[a])
            else:
                refused[waiting] = i
                waiting += 1
    for i in refused[:waiting]:
        a = _find(parents, ends[i, 0])
        b = _find(parents, ends[i, 1])
        if a != b and (sizes[a] < min_size or sizes[b] < min_size):
            _join(parents, sizes, a, b)
    return _number(parents)[0]


@njit(nogil=True, cache=True)
def _refinement(labels):
    """Pieces with equal columns of ``labels`` ``(K, P)`` become one: the new number of each, and a piece of each."""
    count = labels.shape[1]
    firsts = np.empty(count, np.int32)
    merged = np.empty(count, np.int32)
    slots = 1
    while slots < 2 * count:
        slots *= 2
    table = np.full(slots, -1, np.int32)  # of a hash with open addressing
    found = 0
    for piece in range(count):
        slot = 0
        for label in labels[:, piece]:
            slot = (slot * 31 + label) * 0x9E3779B1 & (slots - 1)
        while table[slot] >= 0 and (labels[:, firsts[table[slot]]] != labels[:, piece]).any():
            slot = (slot + 1) & (slots - 1)
        if table[slot] < 0:
            table[slot] = found
            firsts[found] = piece
            found += 1
        merged[piece] = table[slot]
    return merged, firsts[:found]
