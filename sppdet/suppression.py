"""Non-maximum suppression: of boxes that overlap much, the one of the highest score stays."""

from __future__ import annotations

import numpy as np


def nms(boxes: np.ndarray, scores: np.ndarray, overlap: float) -> np.ndarray:
    """Rows of the boxes that stay, int64, best first; of equal scores the first comes first.

    A box goes if its IoU with one that stays is above ``overlap``. As ``torchvision.ops.nms``, which takes longer to
    import than all of a detection; float32 operation by operation. A box without area overlaps nothing.

    Args:
        boxes: ``(N, 4)`` x1, y1, x2, y2.
        scores: ``(N,)``.
    """
    from sppdet.suppression_kernel import survivors  # Numba takes long to load

    order = np.argsort(-np.asarray(scores), kind="stable")
    return order[survivors(np.ascontiguousarray(boxes, np.float32)[order], float(overlap))]
