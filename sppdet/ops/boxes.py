"""Box geometry, and conversions between the pixel conventions of boxes.

Boxes are float32 arrays ``(N, 4)`` of pixel *edges* ``x1, y1, x2, y2``, 0-based: the top left pixel of an image is the
box ``0, 0, 1, 1``. VOC's 1-based inclusive ``xmin, ymin, xmax, ymax`` becomes ``xmin - 1, ymin - 1, xmax, ymax``, so a
width is ``x2 - x1``, and plain IoU gives exactly the devkit's "+1" arithmetic.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sppdet.ops.arrays import Array, is_tensor, like

_VOC_OFFSET = np.array([1.0, 1, 0, 0])  # from pixel edges to VOC's corners


def as_boxes(boxes: ArrayLike) -> NDArray[np.float32]:
    """Return a sequence of four numbers per box, which may be empty, as a float32 array ``(N, 4)``.

    Examples:
        >>> as_boxes([]).shape
        (0, 4)
    """
    return np.asarray(boxes, dtype=np.float32).reshape(-1, 4)


def from_voc(boxes: ArrayLike) -> NDArray[np.float32]:
    """Convert VOC's corners to pixel edges.

    Args:
        boxes: ``(N, 4)`` xmin, ymin, xmax, ymax in pixels, 1-based and inclusive.

    Returns:
        ``(N, 4)`` x1, y1, x2, y2.

    Examples:
        >>> from_voc([[1, 1, 1, 1], [174, 101, 349, 351]]).tolist()
        [[0.0, 0.0, 1.0, 1.0], [173.0, 100.0, 349.0, 351.0]]
    """
    return as_boxes(np.reshape(boxes, (-1, 4)) - _VOC_OFFSET)


def to_voc(boxes: ArrayLike) -> NDArray[np.float64]:
    """Convert pixel edges to VOC's corners.

    Args:
        boxes: ``(N, 4)`` x1, y1, x2, y2.

    Returns:
        ``(N, 4)`` xmin, ymin, xmax, ymax, 1-based and inclusive; float64, as adding 1 to a float32 loses digits.

    Examples:
        >>> to_voc([[0, 0, 1, 1]]).tolist()
        [[1.0, 1.0, 1.0, 1.0]]
    """
    return as_boxes(boxes) + _VOC_OFFSET


def from_xywh(boxes: ArrayLike) -> NDArray[np.float32]:
    """Convert ``(N, 4)`` left, top, width, height, as OpenCV and COCO have them, to pixel edges.

    Examples:
        >>> from_xywh([[10, 20, 30, 5]]).tolist()
        [[10.0, 20.0, 40.0, 25.0]]
    """
    x, y, w, h = as_boxes(boxes).T
    return np.stack([x, y, x + w, y + h], axis=1)


def to_xywh(boxes: ArrayLike) -> NDArray[np.float32]:
    """Convert pixel edges to ``(N, 4)`` left, top, width, height.

    Examples:
        >>> to_xywh([[10, 20, 40, 25]]).tolist()
        [[10.0, 20.0, 30.0, 5.0]]
    """
    x1, y1, x2, y2 = as_boxes(boxes).T
    return np.stack([x1, y1, x2 - x1, y2 - y1], axis=1)


def areas(boxes: np.ndarray) -> np.ndarray:
    """Return the areas ``(N,)`` of boxes ``(N, 4)``, in square pixels."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the intersection over union of every pair of boxes.

    Args:
        a: ``(N, 4)`` x1, y1, x2, y2.
        b: ``(M, 4)``.

    Returns:
        ``(N, M)``, of the type of the boxes, floats for whole numbers. Boxes without area overlap nothing.

    Examples:
        >>> iou(as_boxes([[0, 0, 10, 10]]), as_boxes([[0, 0, 10, 10], [0, 0, 10, 5], [10, 0, 20, 10]])).tolist()
        [[1.0, 0.5, 0.0]]
    """
    intersection = _intersections(a, b)
    union = areas(a)[:, None] + areas(b)[None, :] - intersection
    kind = np.result_type(intersection, np.float32)  # whole numbers become floats
    return np.divide(intersection, union, out=np.zeros(intersection.shape, kind), where=union > 0)


def iou_of_pairs(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the intersection over union ``(N,)`` of each box of ``a`` ``(N, 4)`` with that of ``b`` ``(N, 4)``.

    Examples:
        >>> iou_of_pairs(as_boxes([[0, 0, 10, 10], [0, 0, 4, 4]]), as_boxes([[0, 0, 10, 5], [0, 0, 4, 4]])).tolist()
        [0.5, 1.0]
    """
    side = np.clip(np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]), 0, None)
    intersection = side[:, 0] * side[:, 1]
    union = areas(a) + areas(b) - intersection
    return np.divide(intersection, union, out=np.zeros(len(a), np.result_type(union, np.float32)), where=union > 0)


def shares_inside(boxes: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """Return the share of each box's area that lies in each region, COCO's overlap with a crowd.

    Args:
        boxes: ``(N, 4)`` x1, y1, x2, y2.
        regions: ``(M, 4)``.

    Returns:
        ``(N, M)``, as `iou`.

    Examples:
        >>> shares_inside(as_boxes([[0, 0, 10, 10]]), as_boxes([[0, 0, 90, 90], [5, 0, 90, 90]])).tolist()
        [[1.0, 0.5]]
    """
    intersection = _intersections(boxes, regions)
    area = np.broadcast_to(areas(boxes)[:, None], intersection.shape)
    kind = np.result_type(intersection, np.float32)
    return np.divide(intersection, area, out=np.zeros(intersection.shape, kind), where=area > 0)


def _intersections(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the area ``(N, M)`` that boxes share."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    side = np.clip(high - low, 0, None)
    return side[..., 0] * side[..., 1]


def clip(boxes: Array, width: int, height: int) -> Array:
    """Cut boxes ``(N, 4)``, an array or a tensor on any device, to an image of ``width`` x ``height`` pixels.

    Examples:
        >>> clip(as_boxes([[-3, 5, 120, 60]]), 100, 50).tolist()
        [[0.0, 5.0, 100.0, 50.0]]
    """
    limits = like(np.array([width, height, width, height], np.float32), boxes)
    return boxes.clamp(min=0).minimum(limits) if is_tensor(boxes) else np.clip(boxes, 0, limits)


def mirror(boxes: np.ndarray, width: int) -> np.ndarray:
    """Return boxes ``(N, 4)`` as they lie in the image mirrored left to right, which is ``width`` pixels wide.

    Examples:
        >>> mirror(as_boxes([[0, 5, 10, 20]]), 100).tolist()
        [[90.0, 5.0, 100.0, 20.0]]
    """
    return boxes[:, [2, 1, 0, 3]] * np.array([-1, 1, -1, 1], np.float32) + np.array([width, 0, width, 0], np.float32)


def encode(boxes: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return the regression targets that move boxes onto targets (R-CNN, arXiv 1311.2524, appendix C).

    Args:
        boxes: ``(N, 4)`` x1, y1, x2, y2, with area.
        targets: ``(N, 4)``, one for each box, with area.

    Returns:
        ``(N, 4)`` dx, dy, dw, dh: the shift of the centre in widths and heights of the box, and the logarithms of the
        ratios of widths and heights.

    Examples:
        >>> encode(as_boxes([[0, 0, 10, 20]]), as_boxes([[5, 5, 15, 25]])).tolist()
        [[0.5, 0.25, 0.0, 0.0]]
    """
    size, target_size = boxes[:, 2:] - boxes[:, :2], targets[:, 2:] - targets[:, :2]
    shift = (targets[:, :2] + targets[:, 2:] - boxes[:, :2] - boxes[:, 2:]) / 2
    return np.concatenate([shift / size, np.log(target_size / size)], axis=1)


def decode(boxes: Array, deltas: Array) -> Array:
    """Return boxes moved by deltas, the inverse of `encode`.

    Args:
        boxes: float32 ``(N, 4)`` x1, y1, x2, y2; an array, or a tensor on any device.
        deltas: float32 ``(N, 4)`` dx, dy, dw, dh; as ``boxes``.

    Returns:
        float32 ``(N, 4)``, as ``boxes``; no side grows beyond 1000 / 16 of its length.

    Examples:
        >>> decode(as_boxes([[0, 0, 10, 20]]), np.array([[0.5, 0.25, 0, 0]])).tolist()
        [[5.0, 5.0, 15.0, 25.0]]
    """
    size = boxes[:, 2:] - boxes[:, :2]
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2 + deltas[:, :2] * size
    if is_tensor(boxes):
        import torch

        half = size.double() * torch.exp(deltas[:, 2:].double().clamp(max=math.log(1000 / 16))) / 2
        return torch.cat([centre - half, centre + half], dim=1).float()
    # The bound of torchvision and detectron2: wrong regression of an unusual window must not overflow.
    half = size * np.exp(np.minimum(deltas[:, 2:], np.log(1000 / 16))) / 2
    return np.concatenate([centre - half, centre + half], axis=1).astype(np.float32)
