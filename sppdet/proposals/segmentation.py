"""Graph-based segmentation of an image (Felzenszwalb and Huttenlocher, IJCV 2004), for several k at once.

Pixels are nodes, 4-neighbours are joined by an edge whose weight is the distance of their smoothed colours. Edges are
taken lightest first; one joins two segments if it weighs no more than each segment's heaviest edge so far plus
k / pixels. Then, lightest first again, the edges that were refused join segments of fewer than ``min_size`` pixels.

What does not depend on k is done once: smoothing, weights, order, and all of the joining up to where the values of k
part. Two segments that every k has built alike are joined for all of them if the smallest k allows it; an edge that
only some allow stops both. The stopped pieces, some 20,000, and the edges between them are the small graph on which
each k goes on alone.

Names: H, W, C height, width and channels of the image; P pieces; K values of k. Edge 2p goes from pixel p (counted
row by row) to its right neighbour, edge 2p + 1 to the one below; of equal weights the lower number comes first.
The arithmetic is that of OpenCV's GraphSegmentation, so that segments are the same but for what a tie decides there.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sppdet.utils import compiled


def segment(image: np.ndarray, ks: Sequence[float], sigma: float, min_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Segment a uint8 image ``(H, W, C)`` with every k of ``ks``, after smoothing by ``sigma`` pixels.

    Returns:
        ``pieces``: int32 ``(H, W)``, the parts of the image that no k divides, numbered by first pixel.
        ``labels``: int32 ``(K, P)``, the segment of each piece, again numbered by first pixel: the segmentation with
        ``ks[i]`` is ``labels[i][pieces]``.
    """
    height, width = image.shape[:2]
    edges, weights = sorted_edges(smooth(image, sigma))
    return _segment(edges, weights, height, width, np.asarray(ks, np.float32), min_size)


def smooth(image: np.ndarray, sigma: float) -> np.ndarray:
    """A uint8 image ``(H, W, C)`` through a Gaussian, float32."""
    import cv2

    sigma = max(sigma, 0.001)  # OpenCV's segmentation does so too
    return cv2.GaussianBlur(image.astype(np.float32), (0, 0), sigma).reshape(image.shape)


def sorted_edges(smoothed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers (int32) and weights (float32, in grey levels) of the edges of ``(H, W, C)``, lightest first."""
    return _sort(_distances(smoothed))


@compiled()
def _distances(smoothed):
    """float32 ``(H, W, 2)``: weights of the edges to the right and down; -1 for those that leave the image."""
    height, width, channels = smoothed.shape
    rows = smoothed.reshape(height, width * channels)
    distances = np.full((height, width, 2), np.float32(-1))
    squares = np.empty(width * channels, np.float64)
    for y in range(height):
        _lengths(distances[y, : width - 1, 0], rows[y], rows[y, channels:], squares, channels)
        if y + 1 < height:
            _lengths(distances[y, :, 1], rows[y], rows[y + 1], squares, channels)
    return distances


@compiled()
def _lengths(out, a, b, squares, channels):
    """``out`` = the distances of the colours of two rows of pixels; ``squares`` is room for what lies between."""
    for i in range(len(b)):
        squares[i] = np.float64(a[i] - b[i]) ** 2  # C++ squares by pow(), in double precision
    for x in range(len(out)):
        total = np.float32(0)
        for c in range(channels):
            total = np.float32(total + squares[x * channels + c])
        out[x] = np.sqrt(total)


_DIGIT = 11  # bits: three passes, and their counts stay in the first cache


@compiled()
def _sort(distances):
    """A stable radix sort of the edges that exist by their distances ``(H, W, 2)``: their numbers and weights."""
    bits = distances.reshape(-1).view(np.int32)  # in the order of the floats, as none that counts is below 0
    keys = np.empty(len(bits), np.int64)
    found = 0
    counts = np.zeros((3, 1 << _DIGIT), np.int64)
    for edge in range(len(bits)):
        if bits[edge] >= 0:
            keys[found] = np.int64(bits[edge]) << 32 | edge
            found += 1
            for digit in range(3):
                counts[digit, bits[edge] >> digit * _DIGIT & (1 << _DIGIT) - 1] += 1
    keys, others = keys[:found], np.empty(found, np.int64)
    for digit in range(3):
        starts = np.cumsum(counts[digit]) - counts[digit]
        for key in keys:
            at = key >> 32 + digit * _DIGIT & (1 << _DIGIT) - 1
            others[starts[at]] = key
            starts[at] += 1
        keys, others = others, keys
    edges, weights = np.empty(found, np.int32), np.empty(found, np.int32)
    for place in range(found):
        edges[place] = keys[place] & 0xFFFFFFFF
        weights[place] = keys[place] >> 32
    return edges, weights.view(np.float32)


@compiled()
def _find(parents, node):
    """The root of ``node``'s tree, which points to itself. Trees are two deep at most nearly always."""
    root = parents[parents[node]]
    while parents[root] != root:
        root = parents[parents[root]]
    parents[node] = root
    return root


@compiled()
def _join(parents, sizes, a, b):
    """Join the trees of two roots; the larger one's root stays, and is returned."""
    if sizes[a] < sizes[b]:
        a, b = b, a
    parents[b] = a
    sizes[a] += sizes[b]
    return a


@compiled()
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


@compiled()
def _segment(edges, weights, height, width, ks, min_size):
    pieces, sizes, heaviest, ends, kept = _common(edges, weights, height, width, ks.min(), ks.max())
    labels = np.empty((len(ks), len(sizes)), np.int32)
    for i in range(len(ks)):
        labels[i] = _finish(sizes.copy(), heaviest, ends, kept, ks[i], min_size)
    merged, firsts = _refinement(labels)
    for pixel in range(len(pieces)):
        pieces[pixel] = merged[pieces[pixel]]
    return pieces.reshape(height, width), labels[:, firsts]


@compiled()
def _common(edges, weights, height, width, least, most):
    """The joins that are the same for every k from ``least`` to ``most``, and what is left to do.

    Returns the piece of each pixel; of each piece its size and heaviest edge; the pieces that each edge left joins
    ``(edges, 2)``, and its weight. An edge that every k refuses is left too: small segments may need it.
    """
    parents = np.arange(height * width).astype(np.int32)
    # Of a root, side by side for the cache: size, below 0 once it has stopped, and the bits of its heaviest edge.
    state = np.zeros((height * width, 2), np.int32)
    state[:, 0] = 1
    sizes, heaviest = state[:, 0], state.view(np.float32)[:, 1]
    left = np.empty(len(edges), np.int32)
    waiting = 0
    for i in range(len(edges)):
        pixel = edges[i] >> 1
        a = _find(parents, pixel)
        b = _find(parents, pixel + (width if edges[i] & 1 else 1))
        if a == b:
            continue
        weight = weights[i]
        stopped_a, stopped_b = sizes[a] < 0, sizes[b] < 0
        if not (stopped_a or stopped_b) and weight <= min(
            _limit(a, sizes, heaviest, least), _limit(b, sizes, heaviest, least)
        ):
            heaviest[_join(parents, sizes, a, b)] = weight
            continue
        left[waiting] = i
        waiting += 1
        # What has stopped may have grown by now, for some k.
        may_a = stopped_a or weight <= _limit(a, sizes, heaviest, most)
        may_b = stopped_b or weight <= _limit(b, sizes, heaviest, most)
        if may_a and may_b:
            sizes[a], sizes[b] = -abs(sizes[a]), -abs(sizes[b])
    pieces, count = _number(parents)
    roots = np.empty(count, np.int32)
    for pixel in range(len(pieces)):
        roots[pieces[pixel]] = parents[pixel]
    ends, kept = _lightest(edges, left[:waiting], pieces, count, width)
    return pieces, np.abs(sizes[roots]), heaviest[roots], ends, weights[kept]


@compiled()
def _limit(a, sizes, heaviest, k):
    """The heaviest edge that may join segment ``a`` to another."""
    return heaviest[a] + k / np.float32(sizes[a])


@compiled()
def _lightest(edges, left, pieces, count, width):
    """Of the edges ``left`` between two pieces the first: if it does not join them, no other will.

    Returns the pieces, and which edges these are.
    """
    slots = 1
    while slots < 2 * len(left):
        slots *= 2
    table = np.full(slots, -1, np.int64)  # of a hash with open addressing
    ends = np.empty((len(left), 2), np.int32)
    kept = np.empty(len(left), np.int32)
    found = 0
    for i in left:
        pixel = edges[i] >> 1
        a, b = pieces[pixel], pieces[pixel + (width if edges[i] & 1 else 1)]
        key = np.int64(min(a, b)) * count + max(a, b)
        slot = (key * 0x9E3779B1 >> 20) & (slots - 1)
        while table[slot] >= 0 and table[slot] != key:
            slot = (slot + 1) & (slots - 1)
        if table[slot] < 0:
            table[slot] = key
            ends[found, 0], ends[found, 1] = a, b
            kept[found] = i
            found += 1
    return ends[:found], kept[:found]


@compiled()
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


@compiled()
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
