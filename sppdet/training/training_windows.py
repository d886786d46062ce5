"""The windows that a network learns from: foreground and background, drawn from the proposals of an image.

Names: n windows, f of them foreground, K classes.
"""

from __future__ import annotations

import numpy as np

from sppdet.config import FOREGROUND_IOU
from sppdet.features import CachedSplit
from sppdet.ops import boxes as geometry

# Classes with fewer windows take the target statistics of all classes: a deviation of so few is mostly noise.
_MIN_TARGETS = 10
_MIN_DEVIATION = 1e-6  # targets are divided by their deviation, which is 0 where all are equal


def sample_windows(
    split: CachedSplit,
    i: int,
    count: int,
    foreground_share: float,
    rng: np.random.Generator,
    lowest: float = 0.1,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw windows of one image from its objects and proposals.

    Foreground windows overlap an object by `FOREGROUND_IOU` or more, background windows by ``lowest`` to
    `FOREGROUND_IOU`, and lie in no region that is ignored. An image with too few of either gives fewer windows: as in
    Fast R-CNN's minibatch.py none is drawn twice.

    Args:
        split: the images.
        i: number of the image.
        count: the most windows that are drawn.
        foreground_share: the largest share of foreground windows in ``count``; one is drawn in any case.
        rng: source of the draws.
        lowest: the smallest IoU of background windows with their nearest object.

    Returns:
        Boxes ``(n, 4)``, foreground first; labels ``(n,)``, K for background; and the nearest objects of the
        foreground ``(f, 4)``.
    """
    sample = split.dataset[i]
    boxes = np.concatenate([sample.boxes, split.proposals(i)])
    overlap = geometry.iou(boxes, sample.boxes)
    best = overlap.max(axis=1, initial=0)
    most = max(1, round(count * foreground_share))
    foreground = rng.permutation(np.flatnonzero(best >= FOREGROUND_IOU))[:most]
    others = np.flatnonzero((best >= lowest) & (best < FOREGROUND_IOU) & ~sample.are_ignored(boxes))
    background = rng.permutation(others)[: count - len(foreground)]
    nearest = overlap[foreground].argmax(axis=1) if len(foreground) else np.zeros(0, np.int64)
    labels = np.concatenate([sample.labels[nearest], np.full(len(background), len(split.dataset.classes))])
    return boxes[np.concatenate([foreground, background])], labels.astype(np.int64), sample.boxes[nearest]


def target_statistics(split: CachedSplit, flip: bool) -> tuple[np.ndarray, np.ndarray]:
    """Compute mean and deviation of the box-regression targets of each class, as roidb.py of py-faster-rcnn does.

    All foreground windows count, the objects themselves among them. A class with few foreground windows takes the
    statistics of all classes.

    Args:
        split: the images.
        flip: whether the windows of the mirror images count too.

    Returns:
        Means and deviations, both float64 ``(K, 4)``.
    """
    all_labels, all_targets = [np.zeros(0, np.int64)], [np.zeros((0, 4))]
    for i, sample in enumerate(split.dataset):
        if len(sample.boxes):
            windows = np.concatenate([sample.boxes, split.proposals(i)])
            overlap = geometry.iou(windows, sample.boxes)
            foreground = overlap.max(axis=1) >= FOREGROUND_IOU
            nearest = overlap[foreground].argmax(axis=1)
            all_labels.append(sample.labels[nearest])
            all_targets.append(geometry.encode(windows[foreground], sample.boxes[nearest]))
    labels, targets = np.concatenate(all_labels), np.concatenate(all_targets)
    if flip:
        labels, targets = np.tile(labels, 2), np.concatenate([targets, targets * (-1, 1, 1, 1)])
    of_class = [targets[labels == k] for k in range(len(split.dataset.classes))]
    of_class = [class_targets if len(class_targets) >= _MIN_TARGETS else targets for class_targets in of_class]
    means = np.stack([class_targets.mean(axis=0) for class_targets in of_class])
    deviations = np.stack([class_targets.std(axis=0) for class_targets in of_class])
    return means, deviations + _MIN_DEVIATION
