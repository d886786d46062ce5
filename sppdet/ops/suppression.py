"""Non-maximum suppression, and box voting by the boxes that overlap a survivor."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def nms(boxes: np.ndarray, scores: np.ndarray, overlap: float) -> NDArray[np.int64]:
    """Suppress every box whose IoU with a better box that is kept is above ``overlap``.

    Gives the result of ``torchvision.ops.nms``, whose import takes longer than a whole detection. IoUs are rounded to
    float32, so 6 / 20 is above 0.3. A box without area overlaps nothing.

    Args:
        boxes: ``(N, 4)`` x1, y1, x2, y2.
        scores: ``(N,)``, larger is better.
        overlap: largest IoU of two boxes that are both kept.

    Returns:
        Rows of the boxes that are kept, best first; of equal scores the first row comes first.

    Examples:
        >>> boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30]])
        >>> nms(boxes, np.array([0.5, 0.9, 0.1]), 0.6).tolist()
        [1, 2]
    """
    from sppdet.ops.suppression_kernel import survivors  # Numba takes long to load

    order = np.argsort(-np.asarray(scores), kind="stable")
    return order[survivors(np.ascontiguousarray(boxes, np.float32)[order], float(overlap))]


def vote(
    boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, survivors: np.ndarray, overlap: float
) -> NDArray[np.float32]:
    """Average each survivor with the boxes of its label that overlap it (Gidaris and Komodakis, arXiv 1505.01749, 5).

    Scores are margins, so the weight of a box is ``exp(3 * score)``: positive, and independent of the lowest margin.

    Args:
        boxes: ``(N, 4)`` x1, y1, x2, y2 of all candidates.
        scores: ``(N,)`` margins.
        labels: ``(N,)`` classes.
        survivors: ``(S,)`` rows of the candidates that `nms` kept.
        overlap: lowest IoU, above 0, of a survivor and a box that votes. A survivor votes for itself.

    Returns:
        ``(S, 4)``, one box for each survivor.

    Examples:
        >>> boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 12], [50, 50, 60, 60]])
        >>> vote(boxes, np.zeros(3), np.zeros(3, int), np.array([0]), 0.5).tolist()
        [[0.0, 0.0, 10.0, 11.0]]
    """
    from sppdet.ops.suppression_kernel import voted  # Numba takes long to load

    means = np.empty((len(survivors), 4), np.float32)
    for k in np.unique(labels[survivors]):
        class_survivors, candidates = np.flatnonzero(labels[survivors] == k), np.flatnonzero(labels == k)
        rows = np.searchsorted(candidates, survivors[class_survivors])
        class_boxes = np.ascontiguousarray(boxes[candidates], np.float32)
        class_scores = scores[candidates].astype(np.float64)
        means[class_survivors] = voted(class_boxes, class_scores, rows, float(overlap), 3.0)
    return means
