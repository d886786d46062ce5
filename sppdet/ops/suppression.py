"""Non-maximum suppression, and box voting by the boxes that overlap a survivor."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sppdet.ops.arrays import Array, is_tensor

_STEEPNESS = 3.0  # of the weights of votes in the scores


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


def nms_by_class(boxes: Array, scores: Array, labels: Array, overlap: float, most: int) -> Array:
    """Apply `nms` to the boxes of each class.

    Args:
        boxes: ``(N, 4)`` x1, y1, x2, y2; arrays, or tensors on any device, where torch does the work.
        scores: ``(N,)``, larger is better.
        labels: ``(N,)`` classes.
        overlap: as for `nms`.
        most: boxes of a class that are kept, the best ones.

    Returns:
        int64 ``(S,)`` rows of the boxes that are kept, class by class, best first; a tensor if the boxes are one.

    Examples:
        >>> boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 10], [20, 20, 30, 30]])
        >>> nms_by_class(boxes, np.array([0.5, 0.9, 0.1, 0.1]), np.array([1, 1, 0, 1]), 0.6, 9).tolist()
        [2, 1, 3]
    """
    if is_tensor(boxes):
        from sppdet.ops import suppression_torch

        return suppression_torch.survivors(boxes, scores, labels, overlap, most)
    kept = []
    for k in np.unique(labels):
        rows = np.flatnonzero(labels == k)
        kept.append(rows[nms(boxes[rows], scores[rows], overlap)[:most]])
    return np.concatenate([np.zeros(0, np.int64), *kept])


def vote(boxes: Array, scores: Array, labels: Array, survivors: Array, overlap: float) -> Array:
    """Average each survivor with the boxes of its label that overlap it (Gidaris and Komodakis, arXiv 1505.01749, 5).

    Scores are margins, so the weight of a box is ``exp(3 * score)``: positive, and independent of the lowest margin.

    Args:
        boxes: ``(N, 4)`` x1, y1, x2, y2 of all candidates; arrays, or tensors on any device, where torch does the
            work.
        scores: ``(N,)`` margins.
        labels: ``(N,)`` classes.
        survivors: ``(S,)`` rows of the candidates that `nms` kept.
        overlap: lowest IoU, above 0, of a survivor and a box that votes. A survivor votes for itself.

    Returns:
        float32 ``(S, 4)``, one box for each survivor; a tensor if the boxes are one.

    Examples:
        >>> boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 12], [50, 50, 60, 60]])
        >>> vote(boxes, np.zeros(3), np.zeros(3, int), np.array([0]), 0.5).tolist()
        [[0.0, 0.0, 10.0, 11.0]]
    """
    if is_tensor(boxes):
        from sppdet.ops import suppression_torch

        return suppression_torch.voted(boxes, scores, labels, survivors, overlap, _STEEPNESS)
    from sppdet.ops.suppression_kernel import voted  # Numba takes long to load

    means = np.empty((len(survivors), 4), np.float32)
    for k in np.unique(labels[survivors]):
        class_survivors, candidates = np.flatnonzero(labels[survivors] == k), np.flatnonzero(labels == k)
        rows = np.searchsorted(candidates, survivors[class_survivors])
        class_boxes = np.ascontiguousarray(boxes[candidates], np.float32)
        class_scores = scores[candidates].astype(np.float64)
        means[class_survivors] = voted(class_boxes, class_scores, rows, float(overlap), _STEEPNESS)
    return means
