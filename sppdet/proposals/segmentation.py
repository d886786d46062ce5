"""Graph-based segmentation of an image (Felzenszwalb and Huttenlocher, IJCV 2004), for several k at once.

Pixels are nodes. An edge connects two 4-neighbours; its weight is the distance of their smoothed colours. Edges are
visited in order of weight, lightest first. An edge joins two segments if its weight is at most
(heaviest edge in the segment) + k / (pixels of the segment) for both segments. Then the refused edges, lightest first
again, join segments of fewer than ``min_size`` pixels to their neighbours.

Work that does not depend on k is done once: smoothing, weights, sorting, and the joins that all values of k have in
common. As long as two segments are equal for every k, they are joined for every k if the smallest k allows it. An edge
that only some values of k allow stops both segments. The stopped segments, some 20,000 pieces of an image, and the
edges between them form a small graph, on which each k continues alone.

Names: H, W, C height, width and channels of the image; P pieces; K values of k; E edges. Edge 2p goes from pixel p
(counted row by row) to its right neighbour, edge 2p + 1 to the pixel below. Of equal weights the lower number comes
first. The arithmetic is that of OpenCV's GraphSegmentation, so that segments differ only where OpenCV's unstable sort
decides between equal weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sppdet.utils import compiled


def segment(image: np.ndarray, ks: Sequence[float], sigma: float, min_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Segment an image with every k of ``ks``.

    Args:
        image: uint8 ``(H, W, C)``.
        ks: K thresholds; a larger k gives larger segments.
        sigma: standard deviation of the smoothing, in pixels.
        min_size: pixels of the smallest segment.

    Returns:
        ``pieces``, int32 ``(H, W)``: the number of each pixel's piece. No k divides a piece. And ``labels``, int32
        ``(K, P)``: the number of each piece's segment. The segmentation with ``ks[i]`` is ``labels[i][pieces]``.
        Pieces and segments are numbered in the order of their first pixels.

    Examples:
        >>> image = np.zeros((4, 6, 1), np.uint8)
        >>> image[:, 4:] = 200
        >>> pieces, labels = segment(image, ks=(10, 10_000), sigma=0.0, min_size=1)
        >>> pieces[0].tolist()
        [0, 0, 0, 0, 1, 1]
        >>> labels.tolist()
        [[0, 1], [0, 0]]
    """
    height, width = image.shape[:2]
    edges, weights = sorted_edges(smooth(image, sigma))
    return _segment(edges, weights, height, width, np.asarray(ks, np.float32), min_size)


def smooth(image: np.ndarray, sigma: float) -> np.ndarray:
    """Return a uint8 image ``(H, W, C)`` smoothed by a Gaussian of ``sigma`` pixels, float32."""
    import cv2

    sigma = max(sigma, 0.001)  # as OpenCV's segmentation does
    return cv2.GaussianBlur(image.astype(np.float32), (0, 0), sigma).reshape(image.shape)


def sorted_edges(smoothed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return numbers and weights of the edges of an image, lightest first.

    Args:
        smoothed: float32 ``(H, W, C)``.

    Returns:
        int32 ``(E,)`` and float32 ``(E,)``, in grey levels.
    """
    return _sort(_distances(smoothed))


@compiled()
def _distances(smoothed: np.ndarray) -> np.ndarray:
    """Return the weights of the edges to the right and down, float32 ``(H, W, 2)``; -1 at the image's last pixels."""
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
def _lengths(out: np.ndarray, a: np.ndarray, b: np.ndarray, squares: np.ndarray, channels: int) -> None:
    """Write the distances of the colours of two rows of pixels to ``out``; ``squares`` is working memory."""
    for i in range(len(b)):
        squares[i] = np.float64(a[i] - b[i]) ** 2  # as OpenCV, which squares by pow() in double precision
    for x in range(len(out)):
        total = np.float32(0)
        for c in range(channels):
            total = np.float32(total + squares[x * channels + c])
        out[x] = np.sqrt(total)


_DIGIT = 11  # bits per pass of the radix sort: three passes, whose counts stay in the first-level cache


@compiled()
def _sort(distances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sort the edges by their weights ``(H, W, 2)``, negative ones left out: numbers and weights of the edges.

    A stable radix sort.
    """
    bits = distances.reshape(-1).view(np.int32)  # ordered as the floats are, because these are not negative
    keys = np.empty(len(bits), np.int64)
    total = 0
    counts = np.zeros((3, 1 << _DIGIT), np.int64)
    for edge in range(len(bits)):
        if bits[edge] >= 0:
            keys[total] = np.int64(bits[edge]) << 32 | edge
            total += 1
            for digit in range(3):
                counts[digit, bits[edge] >> digit * _DIGIT & (1 << _DIGIT) - 1] += 1
    keys, sorted_keys = keys[:total], np.empty(total, np.int64)
    for digit in range(3):
        starts = np.cumsum(counts[digit]) - counts[digit]
        for key in keys:
            value = key >> 32 + digit * _DIGIT & (1 << _DIGIT) - 1
            sorted_keys[starts[value]] = key
            starts[value] += 1
        keys, sorted_keys = sorted_keys, keys
    edges, weights = np.empty(total, np.int32), np.empty(total, np.int32)
    for i in range(total):
        edges[i] = keys[i] & 0xFFFFFFFF
        weights[i] = keys[i] >> 32
    return edges, weights.view(np.float32)


@compiled()
def _find(parents: np.ndarray, node: int) -> int:
    """Return the root of the tree of ``node``, and shorten the path to it. A root is its own parent."""
    root = parents[parents[node]]
    while parents[root] != root:
        root = parents[parents[root]]
    parents[node] = root
    return root


@compiled()
def _join(parents: np.ndarray, sizes: np.ndarray, a: int, b: int) -> int:
    """Join the trees of two roots; return the root of the larger tree, which becomes the root of both."""
    if sizes[a] < sizes[b]:
        a, b = b, a
    parents[b] = a
    sizes[a] += sizes[b]
    return a


@compiled()
def _number(parents: np.ndarray) -> tuple[np.ndarray, int]:
    """Number the trees from 0 in the order of their first nodes; return the number of each node, and of trees."""
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
def _segment(
    edges: np.ndarray, weights: np.ndarray, height: int, width: int, ks: np.ndarray, min_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return ``pieces`` and ``labels`` as `segment` does, from sorted edges."""
    pieces, sizes, heaviest, ends, kept = _common(edges, weights, height, width, ks.min(), ks.max())
    labels = np.empty((len(ks), len(sizes)), np.int32)
    for i in range(len(ks)):
        labels[i] = _finish(sizes.copy(), heaviest, ends, kept, ks[i], min_size)
    merged, firsts = _refinement(labels)
    for pixel in range(len(pieces)):
        pieces[pixel] = merged[pieces[pixel]]
    return pieces.reshape(height, width), labels[:, firsts]


@compiled()
def _common(
    edges: np.ndarray, weights: np.ndarray, height: int, width: int, lowest_k: float, highest_k: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Do the joins that are the same for every k from ``lowest_k`` to ``highest_k``.

    Returns:
        The piece of each pixel; for each piece its size and its heaviest edge; for each edge that remains between
        pieces the two pieces ``(E, 2)`` and its weight. Edges that every k refuses remain too, as small segments
        may need them.
    """
    parents = np.arange(height * width).astype(np.int32)
    # For each root, side by side for the cache: its size, negative once it has stopped, and its heaviest edge.
    state = np.zeros((height * width, 2), np.int32)
    state[:, 0] = 1
    sizes, heaviest = state[:, 0], state.view(np.float32)[:, 1]
    remaining = np.empty(len(edges), np.int32)
    count = 0
    for i in range(len(edges)):
        pixel = edges[i] >> 1
        a = _find(parents, pixel)
        b = _find(parents, pixel + (width if edges[i] & 1 else 1))
        if a == b:
            continue
        weight = weights[i]
        stopped_a, stopped_b = sizes[a] < 0, sizes[b] < 0
        if not (stopped_a or stopped_b) and weight <= min(
            _limit(a, sizes, heaviest, lowest_k), _limit(b, sizes, heaviest, lowest_k)
        ):
            heaviest[_join(parents, sizes, a, b)] = weight
            continue
        remaining[count] = i
        count += 1
        # A stopped segment may have grown since, for some k: whether that k allows the edge is not known.
        may_a = stopped_a or weight <= _limit(a, sizes, heaviest, highest_k)
        may_b = stopped_b or weight <= _limit(b, sizes, heaviest, highest_k)
        if may_a and may_b:
            sizes[a], sizes[b] = -abs(sizes[a]), -abs(sizes[b])
    pieces, piece_count = _number(parents)
    roots = np.empty(piece_count, np.int32)
    for pixel in range(len(pieces)):
        roots[pieces[pixel]] = parents[pixel]
    ends, kept = _lightest(edges, remaining[:count], pieces, piece_count, width)
    return pieces, np.abs(sizes[roots]), heaviest[roots], ends, weights[kept]


@compiled()
def _limit(a: int, sizes: np.ndarray, heaviest: np.ndarray, k: float) -> float:
    """Return the weight of the heaviest edge that may join segment ``a`` to another."""
    return heaviest[a] + k / np.float32(sizes[a])


@compiled()
def _lightest(
    edges: np.ndarray, remaining: np.ndarray, pieces: np.ndarray, count: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Keep the lightest of the ``remaining`` edges between any two pieces: if it is refused, so are the others.

    Returns:
        The two pieces of each edge that is kept ``(E, 2)``, and which edges these are ``(E,)``.
    """
    slots = 1
    while slots < 2 * len(remaining):
        slots *= 2
    table = np.full(slots, -1, np.int64)  # hash table with open addressing
    ends = np.empty((len(remaining), 2), np.int32)
    kept = np.empty(len(remaining), np.int32)
    total = 0
    for i in remaining:
        pixel = edges[i] >> 1
        a, b = pieces[pixel], pieces[pixel + (width if edges[i] & 1 else 1)]
        key = np.int64(min(a, b)) * count + max(a, b)
        slot = (key * 0x9E3779B1 >> 20) & (slots - 1)
        while table[slot] >= 0 and table[slot] != key:
            slot = (slot + 1) & (slots - 1)
        if table[slot] < 0:
            table[slot] = key
            ends[total, 0], ends[total, 1] = a, b
            kept[total] = i
            total += 1
    return ends[:total], kept[:total]


@compiled()
def _finish(
    sizes: np.ndarray, heaviest: np.ndarray, ends: np.ndarray, weights: np.ndarray, k: float, min_size: int
) -> np.ndarray:
    """Return the segment of each piece for one k; ``sizes`` is overwritten."""
    parents = np.arange(len(sizes)).astype(np.int32)
    limits = heaviest + k / sizes.astype(np.float32)
    refused = np.empty(len(ends), np.int32)
    count = 0
    for i in range(len(ends)):
        a = _find(parents, ends[i, 0])
        b = _find(parents, ends[i, 1])
        if a != b:
            if weights[i] <= limits[a] and weights[i] <= limits[b]:
                a = _join(parents, sizes, a, b)
                limits[a] = weights[i] + k / np.float32(sizes[a])
            else:
                refused[count] = i
                count += 1
    for i in refused[:count]:
        a = _find(parents, ends[i, 0])
        b = _find(parents, ends[i, 1])
        if a != b and (sizes[a] < min_size or sizes[b] < min_size):
            _join(parents, sizes, a, b)
    return _number(parents)[0]


@compiled()
def _refinement(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Merge pieces that are in the same segment for every k, that is, with equal columns of ``labels`` ``(K, P)``.

    Returns:
        The new number of each piece ``(P,)``, and for each new number the first piece that has it.
    """
    count = labels.shape[1]
    firsts = np.empty(count, np.int32)
    merged = np.empty(count, np.int32)
    slots = 1
    while slots < 2 * count:
        slots *= 2
    table = np.full(slots, -1, np.int32)  # hash table with open addressing
    total = 0
    for piece in range(count):
        slot = 0
        for label in labels[:, piece]:
            slot = (slot * 31 + label) * 0x9E3779B1 & (slots - 1)
        while table[slot] >= 0 and (labels[:, firsts[table[slot]]] != labels[:, piece]).any():
            slot = (slot + 1) & (slots - 1)
        if table[slot] < 0:
            table[slot] = total
            firsts[total] = piece
            total += 1
        merged[piece] = table[slot]
    return merged, firsts[:total]
