"""Hierarchical grouping of segments (Uijlings et al., IJCV 2013, section 3), as OpenCV's selective search does it.

The two most similar neighbours are joined, again and again, until one region is left. The box of every region on the
way is a window. The similarity of two regions is the weighted mean of four numbers from 0 to 1 (section 3.2): colour
and texture (the intersection of their histograms), size (higher for small regions) and fill (higher for regions that
fit into each other).

Names: R regions, P pairs of neighbours, C channels, B = 105 C bins. A histogram counts pixels: for each channel in 25
bins of its value, then for each channel and each of its four derivatives in 20 bins, 10 of negative and 10 of positive
values (`sppdet.proposals.texture`).

Windows equal OpenCV's but for one in some hundreds. Histograms are sums of integers here, so that the order of adding
does not matter, and two similarities that differ by less than OpenCV's rounding may change places.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sppdet.proposals.texture import DIRECTIONS, SLOPES, bins_of_slopes
from sppdet.utils import compiled

_COLOURS = 25  # bins of one channel's values
_FULL = 65535  # share of a bin that holds all pixels of its region
_NONE = np.int64(2**63 - 1)  # key of a pair that no longer exists


@dataclass(frozen=True, eq=False)
class Regions:
    """Sizes, boxes, histograms and neighbours of the R regions of an image.

    Attributes:
        sizes: int32 ``(R,)`` in pixels.
        boxes: int32 ``(R, 4)`` ``x1, y1, x2, y2`` in pixel edges.
        histograms: int32 ``(R, B)`` pixels per bin.
        pairs: int32 ``(P, 2)`` regions that touch, the lower number first, sorted.
    """

    sizes: np.ndarray
    boxes: np.ndarray
    histograms: np.ndarray
    pairs: np.ndarray

    @classmethod
    def of(cls, image: np.ndarray, labels: np.ndarray, count: int) -> Regions:
        """Measure the regions of an image.

        Args:
            image: uint8 ``(H, W, C)``.
            labels: int32 ``(H, W)`` region of each pixel, from 0 to ``count`` - 1.
            count: number of regions.
        """
        histograms = _histograms(image, bins_of_slopes(image), labels, count)
        sizes, boxes, keys = _measure(labels, count)
        return cls(sizes, boxes, histograms, _pairs(keys, count))

    def merged(self, labels: np.ndarray) -> Regions:
        """Return the unions of these regions that ``labels`` names.

        Args:
            labels: int32 ``(R,)`` union of each region; the unions are numbered in the order of their first regions.
        """
        count = int(labels.max()) + 1
        sizes, boxes, histograms = _merge(self.sizes, self.boxes, self.histograms, labels, count)
        return Regions(sizes, boxes, histograms, _pairs(_renumber(self.pairs, labels, count), count))


def group(regions: Regions, weights: tuple[float, float, float, float]) -> np.ndarray:
    """Join regions until one is left.

    Of equally similar pairs the one with the lowest number is joined. The number of a pair is its row in
    ``regions.pairs``; where joining turns two pairs into one, the lower number stays.

    Args:
        regions: R regions.
        weights: of colour, texture, size and fill; their sum is 1.

    Returns:
        int32 ``(2 R - 1, 4)`` boxes ``x1, y1, x2, y2`` in pixel edges: of the regions, then of each region that is
        joined, in the order of joining.

    Examples:
        >>> image = np.zeros((8, 12, 1), np.uint8)
        >>> labels = np.repeat(np.array([0, 1, 2], np.int32), [6, 4, 2])[None].repeat(8, axis=0)
        >>> boxes = group(Regions.of(image, labels, 3), (0, 0, 1, 0))  # the two smallest first
        >>> boxes[3:].tolist()
        [[6, 0, 12, 8], [0, 0, 12, 8]]
    """
    colours = regions.histograms.shape[1] // (_COLOURS + DIRECTIONS * SLOPES) * _COLOURS
    return _group(
        regions.sizes, regions.boxes, regions.histograms, regions.pairs, colours, np.array(weights, np.float64)
    )


@compiled()
def _histograms(image: np.ndarray, slopes: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """Count the histograms ``(R, B)`` of an image uint8 ``(H, W, C)``.

    ``slopes``, uint8 ``(4, H, W * C)``, holds the bins of the derivatives.
    """
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
    # Both halves count all pixels: a positive value counts as 0 in the negative half, and the other way round.
    half = SLOPES // 2
    for r in range(count):
        for start in range(texture, bins, SLOPES):
            negative = histograms[r, start : start + half].sum()
            positive = histograms[r, start + half : start + SLOPES].sum()
            histograms[r, start + half - 1] += positive
            histograms[r, start + half] += negative
    return histograms


@compiled()
def _measure(labels: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Measure sizes and boxes of the regions, and find the keys (`_pairs`) of the pairs that touch.

    Each pixel is compared with the pixels to the left, above, and above to the left; as in OpenCV, not in the first row
    and column.
    """
    height, width = labels.shape
    sizes = np.zeros(count, np.int32)
    boxes = np.empty((count, 4), np.int32)
    boxes[:, :2] = max(height, width)
    boxes[:, 2:] = 0
    keys = np.empty(3 * height * width, np.int64)
    last = np.full(3, -1, np.int64)  # along a border the same pair comes many times in a row
    total = 0
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
                    keys[total] = last[i] = key
                    total += 1
    return sizes, boxes, keys[:total]


def _pairs(keys: np.ndarray, count: int) -> np.ndarray:
    """Return sorted pairs ``(P, 2)``, each once, from keys: lower region times ``count`` plus higher region."""
    keys = np.unique(keys)
    return np.stack([keys // max(count, 1), keys % max(count, 1)], axis=1).astype(np.int32)


@compiled()
def _renumber(pairs: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """Return the keys of the pairs of unions: ``labels`` holds the union of each region."""
    keys = np.empty(len(pairs), np.int64)
    total = 0
    for i in range(len(pairs)):
        a, b = labels[pairs[i, 0]], labels[pairs[i, 1]]
        if a != b:
            keys[total] = np.int64(min(a, b)) * count + max(a, b)
            total += 1
    return keys[:total]


@compiled()
def _merge(
    sizes: np.ndarray, boxes: np.ndarray, histograms: np.ndarray, labels: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return sizes, boxes and histograms of the unions of regions that ``labels`` names."""
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
def _absorb(
    sizes: np.ndarray,
    boxes: np.ndarray,
    histograms: np.ndarray,
    a: int,
    size: int,
    box: np.ndarray,
    histogram: np.ndarray,
) -> None:
    """Add a region to region ``a``."""
    sizes[a] += size
    boxes[a, 0] = min(boxes[a, 0], box[0])
    boxes[a, 1] = min(boxes[a, 1], box[1])
    boxes[a, 2] = max(boxes[a, 2], box[2])
    boxes[a, 3] = max(boxes[a, 3], box[3])
    row = histograms[a]
    for i in range(len(row)):
        row[i] += histogram[i]


@compiled()
def _normalise(shares: np.ndarray, histogram: np.ndarray, size: int) -> None:
    """Write the shares of a region's pixels that its bins hold, as uint16 up to ``_FULL``."""
    scale = np.float32(_FULL) / np.float32(size)
    for i in range(len(shares)):
        shares[i] = np.uint16(np.float32(histogram[i]) * scale)


@compiled()
def _intersection(a: np.ndarray, b: np.ndarray) -> np.int32:
    """Return the sum of the smaller shares of two histograms."""
    total = np.int32(0)
    for i in range(len(a)):  # from 0: with an index that might be negative, no vector instructions are used
        total = np.int32(total + np.int32(min(a[i], b[i])))
    return total


@compiled()
def _similarity(
    a: int,
    b: int,
    sizes: np.ndarray,
    boxes: np.ndarray,
    shares: np.ndarray,
    colours: int,
    weights: np.ndarray,
    pixels: int,
) -> np.int64:
    """Return the similarity of regions ``a`` and ``b`` times 2^30, of an image of ``pixels`` pixels."""
    bins = shares.shape[1]
    # Shares add up to _FULL for each channel's values and for each half of each derivative.
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
def _set(tree: np.ndarray, leaf: int, key: np.int64) -> None:
    """Set the key of a leaf of a tournament tree: entry i holds the lower key of entries 2i and 2i + 1."""
    leaf += len(tree) // 2
    tree[leaf] = key
    while leaf > 1:
        leaf //= 2
        tree[leaf] = min(tree[2 * leaf], tree[2 * leaf + 1])


@compiled()
def _group(
    sizes: np.ndarray,
    boxes: np.ndarray,
    histograms: np.ndarray,
    pairs: np.ndarray,
    colours: int,
    weights: np.ndarray,
) -> np.ndarray:
    """Return the boxes of `group`; the first ``colours`` bins of a histogram are those of colour."""
    count = len(sizes)
    pixels = sizes.sum()
    sizes, boxes, histograms = sizes.copy(), boxes.copy(), histograms.copy()
    shares = np.empty(histograms.shape, np.uint16)
    for r in range(count):
        _normalise(shares[r], histograms[r], sizes[r])

    # Pair p has two halves: 2p in the list of its first region, 2p + 1 in the list of its second one. others[h] is the
    # region at the other end of half h, lists[r] the first half in the list of region r, following[h] the half after h
    # in its list; -1 ends a list.
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

    windows = np.empty((2 * count, 4), np.int32)
    windows[:count] = boxes
    total = count
    alive = np.ones(len(pairs), np.bool_)
    seen = np.full(count, -1, np.int32)  # working memory of _contract
    while tree[1] < _NONE:
        p = tree[1] & 0xFFFFFFFF
        a, b = others[2 * p + 1], others[2 * p]
        alive[p] = False
        _set(tree, p, _NONE)
        _absorb(sizes, boxes, histograms, a, sizes[b], boxes[b], histograms[b])
        _normalise(shares[a], histograms[a], sizes[a])
        windows[total] = boxes[a]
        total += 1
        _contract(a, b, others, lists, following, alive, seen, tree)
        half = lists[a]
        while half >= 0:
            if alive[half >> 1]:
                t = others[half]
                seen[t] = -1
                similarity = _similarity(a, t, sizes, boxes, shares, colours, weights, pixels)
                _set(tree, half >> 1, _key(half >> 1, similarity))
            half = following[half]
    return windows[:total]


@compiled()
def _key(pair: int, similarity: np.int64) -> np.int64:
    """Return a key that is lowest for the most similar pair, and among equals for the pair with the lowest number."""
    return ((np.int64(1) << 30) - similarity) << 32 | np.int64(pair)


@compiled()
def _contract(
    a: int,
    b: int,
    others: np.ndarray,
    lists: np.ndarray,
    following: np.ndarray,
    alive: np.ndarray,
    seen: np.ndarray,
    tree: np.ndarray,
) -> None:
    """Give the pairs of region ``b`` to region ``a``. Of two pairs with the same region the lower number stays.

    ``seen`` ends up with the half by which region ``a`` touches each neighbour; the caller sets it back to -1.
    """
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
