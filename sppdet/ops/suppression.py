"""Of boxes that overlap much the one of the highest score stays, and the others may vote on its place."""

from __future__ import annotations

import numpy as np


def nms(boxes: np.ndarray, scores: np.ndarray, overlap: float) -> np.ndarray:
    """Rows of the boxes that stay, int64, best first; of equal scores the first comes first.

    A box goes if its IoU with one that stays is above ``overlap``. As ``torchvision.ops.nms``, which takes longer to
    import than all of a detection: IoUs are rounded to float32, so 6/20 is above 0.3. A box without area overlaps
    nothing.

    Args:
        boxes: ``(N, 4)`` x1, y1, x2, y2.
        scores: ``(N,)``.
    """
    from sppdet.ops.suppression_kernel import survivors  # Numba takes long to load

    order = np.argsort(-np.asarray(scores), kind="stable")
    return order[survivors(np.ascontiguousarray(boxes, np.float32)[order], float(overlap))]


def vote(
    boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, survivors: np.ndarray, overlap: float
) -> np.ndarray:
    """Box voting (Gidaris and Komodakis, arXiv 1505.01749, section 5): float32 ``(S, 4)``, a box for each survivor.

    A survivor becomes the mean of the boxes of its label that overlap it by ``overlap``, above 0, or more, itself among
    them. Scores are margins, so a weight is ``exp(3 * score)``: positive, and the same whatever the lowest margin is.

    Args:
        boxes, scores, labels: ``(n, 4)``, ``(n,)`` and ``(n,)`` of all candidates.
        survivors: ``(S,)`` rows of them.
    """
    from sppdet.ops.suppression_kernel import voted

    means = np.empty((len(survivors), 4), np.float32)
    for k in np.unique(labels[survivors]):
        own, rows = np.flatnonzero(labels[survivors] == k), np.flatnonzero(labels == k)
        at = np.searchsorted(rows, survivors[own])
        near = np.ascontiguousarray(boxes[rows], np.float32)
        means[own] = voted(near, scores[rows].astype(np.float64), at, float(overlap), 3.0)
    return means
