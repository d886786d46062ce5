"""Hierarchical grouping of segments (Uijlings et al., IJCV 2013, section 3), as OpenCV's selective search does it.

The two most similar neighbours are joined until one region is left; every region on the way is a window. Similarity
is a weighted mean of four (section 3.2), each from 0 to 1: colour and texture (the intersection of the regions'
histograms), size (small regions first) and fill (regions that fit into each other).

Names: R regions, P pairs of neighbours, C channels, B = 105 C bins. Histograms hold pixels, bin by bin: for each
channel 25 bins of its value, then for each channel the 20 bins (10 below 0, 10 above) of each of its four
derivatives (:mod:`sppdet.proposals.texture`).

Windows are OpenCV's but for one in some hundreds: histograms are sums of whole numbers here, so that the order of
adding does not matter, and two similarities that differ by less than OpenCV's rounding may change places.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sppdet.proposals.texture import DIRECTIONS, SLOPES, bins_of_slopes
from sppdet.utils import compiled

_COLOURS = 25
_FULL = 65535  # a bin that holds all pixels of its region
_NONE = np.int64(2**63 - 1)  # the key of a pair that is no more


@dataclass(frozen=True, eq=False)
class Regions:
    """Regions of an image as grouping sees them.

    Attributes:
        sizes: int32 ``(R,)`` pixels.
        boxes: int32 ``(R, 4)`` x1, y1, x2, y2, half-open.
        histograms: int32 ``(R, B)``, pixels a bin.
        pairs: int32 ``(P, 2)``, lower region first, sorted: those that touch.
    """

    sizes: np.ndarray
    boxes: np.ndarray
    histograms: np.ndarray
    pairs: np.ndarray

    @classmethod
    def of(cls, image: np.ndarray, labels: np.ndarray, count: int) -> Regions:
        """The ``count`` regions of a uint8 image ``(H, W, C)`` that ``labels`` ``(H, W)`` numbers."""
        histograms = _histograms(image, bins_of_slopes(image), labels, count)
        sizes, boxes, keys = _measure(labels, count)
        return cls(sizes, boxes, histograms, _pairs(keys, count))

    def merged(self, labels: np.ndarray) -> Regions:
        """Regions that are unions of these: ``labels`` ``(R,)`` numbers them, in the order of their first parts."""
        count = int(labels.max()) + 1
        sizes, boxes, histograms = _merge(self.sizes, self.boxes, self.histograms, labels, count)
        return Regions(sizes, boxes, histograms, _pairs(_renumber(self.pairs, labels, count), count))


def group(regions: Regions, weights: tuple[float, float, float, float]) -> np.ndarray:
    """Boxes of the regions and of all that joining makes of them, in the order of joining: int32 ``(2 R - 1, 4)``.

    ``weights`` are those of colour, texture, size and fill; their sum is 1. Of equally similar pairs the one with the
    lowest number is joined: its place in ``regions.pairs``, or the lowest number of the pairs that joining made one.
    """
    colours = regions.histograms.shape[1] // (_COLOURS + DIRECTIONS * SLOPES) * _COLOURS
    return _group(
        regions.sizes, regions.boxes, regions.histograms, regions.pairs, colours, np.array(weights, np.float64)
    )


@compiled()
def _histograms(image, slopes, labels, count):
    """Of the regions of an image uint8 ``(H, W, C)``; ``slopes`` uint8 ``(4, H, W * C)`` are its derivatives' bins."""
    height, width, channels = image.shape
    texture = channels * _COLOURS
    bins = texture + channels * DIRECTIONS * SLOPES
    histograms = np.zeros((count, bins), np.int32)
    for y in range(height):
        for x in range(width):
            histogram = histograms[labels[y, x]]
            for c in range(channels):
                histogram[c * _COLOURS + (image[y, x, c] * np.int32(_COLOURS) >> 8)] += 1
                for d in range(DIRECTIONS):
                    histogram[texture + (c * DIRECTIONS + d) * SLOPES + slopes[d, y, x * channels + c]] += 1
    # Both halves count all pixels: one that rises counts as 0 among the falling ones, and the other way round.
    half = SLOPES // 2
    for r in range(count):
        for start in range(texture, bins, SLOPES):
            falling = histograms[r, start : start + half].sum()
            rising = histograms[r, start + half : start + SLOPES].sum()
            histograms[r, start + half - 1] += rising
            histograms[r, start + half] += falling
    return histograms


@compiled()
def _measure(labels, count):
    """Sizes and boxes of the regions, and keys of the pairs: regions that touch from the left, above or above left.

    In the first row and column OpenCV looks for no pairs.
    """
    height, width = labels.shape
    sizes = np.zeros(count, np.int32)
    boxes = np.empty((count, 4), np.int32)
    boxes[:, :2] = max(height, width)
    boxes[:, 2:] = 0
    keys = np.empty(3 * height * width, np.int64)
    last = np.full(3, -1, np.int64)  # along a border a pair comes many times in a row
    found = 0
    for y in range(height):
        for x in range(width):
            a = labels[y, x]
            sizes[a] += 1
            box = boxes[a]
            box[0] = min(box[0], x)
            box[1] = min(box[1], y)
            box[2] = max(box[2], x + 1)
            box[3] = max(box[3], y + 1)
            if y == 0 or x == 0:
                continue
            for i, (dy, dx) in enumerate(((0, 1), (1, 0), (1, 1))):
                b = labels[y - dy, x - dx]
                key = np.int64(min(a, b)) * count + max(a, b)
                if a != b and key != last[i]:
                    keys[found] = last[i] = key
                    found += 1
    return sizes, boxes, keys[:found]


def _pairs(keys: np.ndarray, count: int) -> np.ndarray:
    keys = np.unique(keys)
    return np.stack([keys // max(count, 1), keys % max(count, 1)], axis=1).astype(np.int32)


@compiled()
def _renumber(pairs, labels, count):
    keys = np.empty(len(pairs), np.int64)
    found = 0
    for i in range(len(pairs)):
        a, b = labels[pairs[i, 0]], labels[pairs[i, 1]]
        if a != b:
            keys[found] = np.int64(min(a, b)) * count + max(a, b)
            found += 1
    return keys[:found]


@compiled()
def _merge(sizes, boxes, histograms, labels, count):
    new_sizes = np.zeros(count, np.int32)
    new_boxes = np.empty((count, 4), np.int32)
    new_histograms = np.zeros((count, histograms.shape[1]), np.int32)
    for r in range(len(labels)):
        a = labels[r]
        if new_sizes[a] == 0:
            new_boxes[a] = boxes[r]
        _absorb(new_sizes, new_boxes, new_histograms, a, sizes[r], boxes[r], histograms[r])
    return new_sizes, new_boxes, new_histograms


@compiled()
def _absorb(sizes, boxes, histograms, a, size, box, histogram):
    """Region ``a`` grows by another."""
    sizes[a] += size
    boxes[a, 0] = min(boxes[a, 0], box[0])
    boxes[a, 1] = min(boxes[a, 1], box[1])
    boxes[a, 2] = max(boxes[a, 2], box[2])
    boxes[a, 3] = max(boxes[a, 3], box[3])
    row = histograms[a]
    for i in range(len(row)):
        row[i] += histogram[i]


@compiled()
def _normalise(shares, histogram, size):
    scale = np.float32(_FULL) / np.float32(size)
    for i in range(len(shares)):
        shares[i] = np.uint16(np.float32(histogram[i]) * scale)


@compiled()
def _intersection(a, b):
    total = np.int32(0)
    for i in range(len(a)):  # from 0: an index that might be negative would cost the vector instructions
        total = np.int32(total + np.int32(min(a[i], b[i])))
    return total


@compiled()
def _similarity(a, b, sizes, boxes, shares, colours, weights, pixels):
    """Of regions ``a`` and ``b``, from 0 to 1, in steps of 2^-30."""
    bins = shares.shape[1]
    # Shares add up to _FULL a channel, and to _FULL for each half of each derivative.
    colour = _intersection(shares[a, :colours], shares[b, :colours]) / (_FULL * (colours / _COLOURS))
    texture = _intersection(shares[a, colours:], shares[b, colours:]) / (_FULL * ((bins - colours) / (SLOPES / 2)))
    width = max(boxes[a, 2], boxes[b, 2]) - min(boxes[a, 0], boxes[b, 0])
    height = max(boxes[a, 3], boxes[b, 3]) - min(boxes[a, 1], boxes[b, 1])
    both = np.int64(sizes[a]) + sizes[b]
    size = 1 - both / pixels
    fill = 1 - (np.int64(width) * height - both) / pixels
    total = weights[0] * colour + weights[1] * texture + weights[2] * size + weights[3] * fill
    return np.int64(total * 2**30)


@compiled()
def _set(tree, leaf, key):
    """In a tournament tree (the winner of i's children 2i and 2i + 1 stands at i), the lowest key wins."""
    leaf += len(tree) // 2
    tree[leaf] = key
    while leaf > 1:
        leaf //= 2
        tree[leaf] = min(tree[2 * leaf], tree[2 * leaf + 1])


@compiled()
def _group(sizes, boxes, histograms, pairs, colours, weights):
    count = len(sizes)
    pixels = sizes.sum()
    sizes, boxes, histograms = sizes.copy(), boxes.copy(), histograms.copy()
    shares = np.empty(histograms.shape, np.uint16)
    for r in range(count):
        _normalise(shares[r], histograms[r], sizes[r])

    # Pair p has two halves: 2p in the list of its first region, 2p + 1 in that of its second. others[h] is the region
    # at the other end of h, lists[r] the first half in r's list, following[h] the next one; -1 is the end.
    others = np.empty(2 * len(pairs), np.int32)
    lists = np.full(count, -1, np.int32)
    following = np.empty(2 * len(pairs), np.int32)
    leaves = 1
    while leaves < len(pairs):
        leaves *= 2
    tree = np.full(2 * leaves, _NONE)
    for p in range(len(pairs)):
        a, b = pairs[p]
        others[2 * p], others[2 * p + 1] = b, a
        following[2 * p], following[2 * p + 1] = lists[a], lists[b]
        lists[a], lists[b] = 2 * p, 2 * p + 1
        tree[leaves + p] = _key(p, _similarity(a, b, sizes, boxes, shares, colours, weights, pixels))
    for i in range(leaves - 1, 0, -1):
        tree[i] = min(tree[2 * i], tree[2 * i + 1])

    found = np.empty((2 * count, 4), np.int32)
    found[:count] = boxes
    made = count
    alive = np.ones(len(pairs), np.bool_)
    seen = np.full(count, -1, np.int32)  # by which half the region at hand was last seen to touch each other one
    while tree[1] < _NONE:
        p = tree[1] & 0xFFFFFFFF
        a, b = others[2 * p + 1], others[2 * p]
        alive[p] = False
        _set(tree, p, _NONE)
        _absorb(sizes, boxes, histograms, a, sizes[b], boxes[b], histograms[b])
        _normalise(shares[a], histograms[a], sizes[a])
        found[made] = boxes[a]
        made += 1
        _contract(a, b, others, lists, following, alive, seen, tree)
        half = lists[a]
        while half >= 0:
            if alive[half >> 1]:
                t = others[half]
                seen[t] = -1
                similarity = _similarity(a, t, sizes, boxes, shares, colours, weights, pixels)
                _set(tree, half >> 1, _key(half >> 1, similarity))
            half = following[half]
    return found[:made]


@compiled()
def _key(pair, similarity):
    return ((np.int64(1) << 30) - similarity) << 32 | np.int64(pair)


@compiled()
def _contract(a, b, others, lists, following, alive, seen, tree):
    """Region ``a`` takes over ``b``'s pairs. Of two pairs with the same region the lower number stays."""
    kept = -1
    for half in (lists[a], lists[b]):
        while half >= 0:
            after = following[half]
            if alive[half >> 1]:
                t = others[half]
                twin = seen[t]
                drop = max(half, twin) >> 1 if twin >= 0 else -1
                if drop >= 0:
                    alive[drop] = False
                    _set(tree, drop, _NONE)
                if drop != half >> 1:
                    seen[t] = half
                    others[half ^ 1] = a
                    following[half] = kept
                    kept = half
            half = after
    lists[a] = kept
