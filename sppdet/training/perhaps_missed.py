"""Objects that the labels of the training images perhaps miss (``data.incomplete_labels``).

A detection in an image that its SVM did not learn from is perhaps an object without a label if no label of its class
is near, it lies on no object of another class, and its margin is at least the median margin of the detections that are
right. Such a box becomes a region that is ignored for the class (`sppdet.data.Sample.ignored`): windows near it are no
negatives, and detections on it are neither right nor wrong.

Labels that are missing at random leave the median as it is: the labelled objects are a sample of all.

Names: n detections of one class, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sppdet.evaluation import (
    best_truth,
    flatten_detections,
    flatten_ground_truth,
    match_label,
    only_looked_for,
    without_ignored,
)
from sppdet.features import FeatureSplit
from sppdet.ops import boxes as geometry
from sppdet.training.held_out import FoldDetections

_FOLDS = 4
_QUANTILE = 0.5  # of the margins of right detections, from which on others are perhaps objects
_ON_ANOTHER = 0.5  # IoU with an object of another class from which on a detection is taken for it


@dataclass(frozen=True, eq=False)
class PerhapsMissed:
    """Detections of one class that are perhaps objects without a label, the surest first.

    Attributes:
        images: int64 ``(n,)``, the number of each one's image.
        boxes: float32 ``(n, 4)``, pixel edges.
        margins: float32 ``(n,)``.
    """

    images: np.ndarray
    boxes: np.ndarray
    margins: np.ndarray

    @classmethod
    def none(cls) -> PerhapsMissed:
        """Return no detections."""
        return cls(np.zeros(0, np.int64), np.zeros((0, 4), np.float32), np.zeros(0, np.float32))

    def tensors(self) -> dict[str, np.ndarray]:
        """Return the values as arrays, for a file."""
        return {"images": self.images, "boxes": self.boxes, "margins": self.margins}

    def rows(self) -> list[tuple[int, list[float], float]]:
        """Return image, corners and margin of each."""
        return [*zip(self.images.tolist(), self.boxes.tolist(), self.margins.tolist())]

    @classmethod
    def restore(cls, tensors: dict[str, np.ndarray]) -> PerhapsMissed:
        """Return the detections that `tensors` described."""
        return cls(tensors["images"], tensors["boxes"], tensors["margins"])


def all_folds(images: int, seed: int) -> list[np.ndarray]:
    """Return the images of folds that every image is in."""
    order = np.random.default_rng(seed).permutation(images)
    return [np.sort(fold) for fold in np.array_split(order, min(_FOLDS, images))]


def find_perhaps_missed(folds: Sequence[FoldDetections], labels: Sequence[int], near: float) -> list[PerhapsMissed]:
    """Find what the labels perhaps miss.

    Args:
        folds: detections in the images of all folds.
        labels: K classes.
        near: IoU with an object of the class from which on a detection is none.

    Returns:
        Those of each class.
    """
    dataset = replace(folds[0].dataset, samples=tuple(sample for fold in folds for sample in fold.dataset))
    every = only_looked_for(dataset, [entry for fold in folds for entry in fold.detections])
    detected, truth = flatten_detections(without_ignored(dataset, every)), flatten_ground_truth(dataset)
    images, boxes, _, margins = detected
    numbers = np.concatenate([fold.images for fold in folds])
    results = []
    for label in labels:
        match = match_label(detected, truth, label)
        rows = np.flatnonzero(detected[2] == label)[match.order]
        right, others = margins[rows][match.true_positive], truth[2] != label
        lowest = np.quantile(right, _QUANTILE) if len(right) else np.inf
        on_another = best_truth(images[rows], boxes[rows], truth[0][others], truth[1][others])[0] >= _ON_ANOTHER
        rows = rows[(margins[rows] >= lowest) & (match.overlap < near) & ~on_another]
        results.append(PerhapsMissed(numbers[images[rows]], boxes[rows], margins[rows]))
    return results


def ignore_perhaps_missed(
    split: FeatureSplit, images: int, labels: Sequence[int], perhaps_missed: Sequence[PerhapsMissed]
) -> FeatureSplit:
    """Return a split in which what is perhaps missed is ignored.

    Args:
        split: the training images.
        images: how many of them are no mirror images, which follow the others.
        labels: K classes.
        perhaps_missed: those of each class.
    """
    numbers = np.concatenate([np.zeros(0, np.int64), *(of_class.images for of_class in perhaps_missed)])
    regions = np.concatenate([np.zeros((0, 4), np.float32), *(of_class.boxes for of_class in perhaps_missed)])
    of_regions = np.repeat(np.asarray(labels, np.int64), [len(of_class.images) for of_class in perhaps_missed])
    present, samples = {*numbers.tolist()}, list(split.dataset)
    for i, sample in enumerate(samples):
        if i % images in present:
            rows = np.flatnonzero(numbers == i % images)
            boxes = geometry.mirror(regions[rows], sample.width) if sample.mirrored else regions[rows]
            samples[i] = replace(
                sample,
                ignored=np.concatenate([sample.ignored, boxes]),
                ignored_labels=np.concatenate([sample.ignored_labels, of_regions[rows]]),
            )
    return replace(split, dataset=replace(split.dataset, samples=tuple(samples)))
