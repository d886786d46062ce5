"""Box geometry: the one place that knows pixel conventions.

Boxes are float32 ``(N, 4)`` arrays ``x1, y1, x2, y2`` of pixel *edges*, 0-based: the top left pixel of an image is
the box ``0, 0, 1, 1``. VOC's 1-based inclusive ``xmin, ymin, xmax, ymax`` becomes ``xmin - 1, ymin - 1, xmax, ymax``,
so a width is ``x2 - x1`` and plain IoU gives exactly the devkit's "+1" arithmetic.
"""

from __future__ import annotations

import numpy as np

_VOC = np.array([1.0, 1, 0, 0])  # from our corners to those of VOC


def as_boxes(boxes) -> np.ndarray:
    """Any ``(N, 4)`` sequence, also an empty one, as a float32 ``(N, 4)`` array."""
    return np.asarray(boxes, dtype=np.float32).reshape(-1, 4)


def from_voc(boxes) -> np.ndarray:
    """VOC's 1-based inclusive corners -> ours."""
    return as_boxes(np.reshape(boxes, (-1, 4)) - _VOC)


def to_voc(boxes) -> np.ndarray:
    """Ours -> VOC's 1-based inclusive corners, float64: where 1 is added to a float32 its last digits are lost."""
    return as_boxes(boxes) + _VOC


def from_xywh(boxes) -> np.ndarray:
    """Left, top, width, height (OpenCV, COCO) -> ours."""
    x, y, w, h = as_boxes(boxes).T
    return np.stack([x, y, x + w, y + h], axis=1)


def to_xywh(boxes) -> np.ndarray:
    """Ours -> left, top, width, height."""
    x1, y1, x2, y2 = as_boxes(boxes).T
    return np.stack([x1, y1, x2 - x1, y2 - y1], axis=1)


def areas(boxes: np.ndarray) -> np.ndarray:
    """``(N,)`` areas in square pixels."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of every pair: ``(N, 4), (M, 4) -> (N, M)`` float32. Empty boxes overlap nothing."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    side = np.clip(high - low, 0, None)
    intersection = side[..., 0] * side[..., 1]
    union = areas(a)[:, None] + areas(b)[None, :] - intersection
    return np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)


def clip(boxes: np.ndarray, width: int, height: int) -> np.ndarray:
    """Boxes cut to an image of ``width`` x ``height`` pixels."""
    return np.clip(boxes, 0, np.array([width, height, width, height], np.float32))


def mirror(boxes: np.ndarray, width: int) -> np.ndarray:
    """Where boxes lie once an image ``width`` pixels wide is flipped left to right."""
    return boxes[:, [2, 1, 0, 3]] * np.array([-1, 1, -1, 1], np.float32) + np.array([width, 0, width, 0], np.float32)


def encode(boxes: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Regression targets that move ``boxes`` onto ``targets``: ``(N, 4)`` of dx, dy, dw, dh.

    The centre's shift in box widths and heights, and the logarithms of the size ratios (R-CNN, arXiv 1311.2524,
    appendix C).
    """
    size, target_size = boxes[:, 2:] - boxes[:, :2], targets[:, 2:] - targets[:, :2]
    shift = (targets[:, :2] + targets[:, 2:] - boxes[:, :2] - boxes[:, 2:]) / 2
    return np.concatenate([shift / size, np.log(target_size / size)], axis=1)


def decode(boxes: np.ndarray, deltas: np.ndarray) -> np.ndarray:
    """The inverse of :func:`encode`: ``boxes`` moved by ``deltas``, both ``(N, 4)``."""
    size = boxes[:, 2:] - boxes[:, :2]
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2 + deltas[:, :2] * size
    # A wild regression of an odd window must not overflow: no box grows beyond 1000 / 16 of its size
    # (the bound that torchvision and detectron2 use).
    half = size * np.exp(np.minimum(deltas[:, 2:], np.log(1000 / 16))) / 2
    return np.concatenate([centre - half, centre + half], axis=1).astype(np.float32)
