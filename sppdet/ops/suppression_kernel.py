"""The compiled loops of `sppdet.ops.suppression`."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from sppdet.utils import compiled


@compiled(error_model="numpy")
def survivors(boxes: NDArray[np.float32], overlap: float) -> NDArray[np.int64]:
    """Return the rows that are kept of boxes ``(N, 4)``, which are sorted, best first."""
    count = len(boxes)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept = np.ones(count, np.bool_)
    zero = np.float32(0)
    for a in range(count):
        if kept[a]:
            x1, y1, x2, y2 = boxes[a]
            for b in range(a + 1, count):
                width = max(zero, min(x2, boxes[b, 2]) - max(x1, boxes[b, 0]))
                height = max(zero, min(y2, boxes[b, 3]) - max(y1, boxes[b, 1]))
                shared = width * height
                if shared / (areas[a] + areas[b] - shared) > overlap:
                    kept[b] = False
    return np.flatnonzero(kept)


@compiled(error_model="numpy")
def voted(
    boxes: NDArray[np.float32],
    scores: NDArray[np.float64],
    rows: NDArray[np.int64],
    overlap: float,
    steepness: float,
) -> NDArray[np.float32]:
    """Return ``(S, 4)``: for the box at each of ``rows`` the mean of itself and the boxes ``(N, 4)`` that overlap it.

    The weight of a box in a mean is ``exp(steepness * score)``.
    """
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    means = np.empty((len(rows), 4), np.float32)
    for s in range(len(rows)):
        a = rows[s]
        x1, y1, x2, y2 = boxes[a]
        total = 0.0
        left = top = right = bottom = 0.0
        for b in range(len(boxes)):
            width = min(x2, boxes[b, 2]) - max(x1, boxes[b, 0])
            height = min(y2, boxes[b, 3]) - max(y1, boxes[b, 1])
            if b != a:  # a box without area overlaps nothing, but votes for itself
                if width <= 0 or height <= 0:
                    continue
                shared = width * height
                if not shared / (areas[a] + areas[b] - shared) >= overlap:
                    continue
            # Scores relative to the survivor's: exp() of a large score alone would overflow.
            weight = math.exp(steepness * (scores[b] - scores[a]))
            total += weight
            left += weight * boxes[b, 0]
            top += weight * boxes[b, 1]
            right += weight * boxes[b, 2]
            bottom += weight * boxes[b, 3]
        means[s] = left / total, top / total, right / total, bottom / total
    return means
