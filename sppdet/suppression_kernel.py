"""The compiled loop of :mod:`sppdet.suppression`."""

from __future__ import annotations

import numpy as np

from sppdet.compiled import compiled


@compiled(error_model="numpy")
def survivors(boxes, overlap):
    """Rows that stay of boxes ``(N, 4)``, best first."""
    count = len(boxes)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    stays = np.ones(count, np.bool_)
    zero = np.float32(0)
    for a in range(count):
        if stays[a]:
            x1, y1, x2, y2 = boxes[a]
            for b in range(a + 1, count):
                width = max(zero, min(x2, boxes[b, 2]) - max(x1, boxes[b, 0]))
                height = max(zero, min(y2, boxes[b, 3]) - max(y1, boxes[b, 1]))
                shared = width * height
                if shared / (areas[a] + areas[b] - shared) > overlap:
                    stays[b] = False
    return np.flatnonzero(stays)
