"""Which windows of an image the SVMs of classes learn from: positives, and those that may be negatives.

Positives of a class are its objects and, where ``positive_overlap`` is below 1, the proposals that overlap an object by
at least this IoU. Negatives are proposals whose IoU with every object of the class is below ``negative_overlap``. This
holds for regions that are ignored, too, and no window that lies mostly in one is a negative.

Names: n windows, N proposals of an image, U of them with different cells, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sppdet.config import SvmSettings
from sppdet.features import FeatureSplit, WindowFeatures, Windows
from sppdet.ops import boxes as geometry
from sppdet.training.locations import LOCATION, locations_of

# Most proposals that are positives per object, and per class unless that leaves less than one per object.
_NEAR_PER_OBJECT, _NEAR_PER_CLASS = 20, 10_000


class WindowLabels:
    """The positives and the possible negatives of each image, for some classes.

    Args:
        split: the training images with their proposals and feature maps.
        features: how windows become vectors.
        labels: the classes, as numbers among the split's classes; K of them.
        settings: ``positive_overlap`` and ``negative_overlap`` are used.
        seed: of the draw of proposals that are positives.
    """

    def __init__(
        self, split: FeatureSplit, features: WindowFeatures, labels: Sequence[int], settings: SvmSettings, seed: int
    ):
        self.split, self.features, self.labels, self.settings, self.seed = split, features, [*labels], settings, seed
        self.objects = [sum((sample.labels == label).sum() for sample in split.dataset) for label in self.labels]

    def windows(self, i: int, maps: object) -> tuple[Windows, np.ndarray]:
        """Return an image's proposals on its maps, and as boxes ``(N, 4)``."""
        boxes = self.split.proposals(i)
        return self.features.windows(boxes, self.split.size(i), maps), boxes

    def positives(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the locations ``(n,)`` of an image's positives, and the class of each ``(n,)``, 0 to K - 1."""
        if not any(len(self.split.objects(i, label)) for label in self.labels):
            return np.zeros(0, LOCATION), np.zeros(0, np.int64)
        maps = self.split.maps(i)
        boxes, classes = self.positive_boxes(i, maps)
        windows = self.features.windows(boxes, self.split.size(i), maps)
        return locations_of(i, windows, windows.group), classes

    def positive_boxes(self, i: int, maps: object) -> tuple[np.ndarray, np.ndarray]:
        """Return the boxes ``(n, 4)`` of an image's positives, and the class of each ``(n,)``, 0 to K - 1."""
        boxes = [self.split.objects(i, label) for label in self.labels]
        if self.settings.positive_overlap < 1:
            boxes = [np.concatenate(both) for both in zip(boxes, self._near_proposals(i, maps))]
        classes = np.repeat(np.arange(len(boxes)), [len(class_boxes) for class_boxes in boxes])
        return np.concatenate(boxes), classes

    def _near_proposals(self, i: int, maps: object) -> list[np.ndarray]:
        """Draw the proposals ``(n, 4)`` that are positives of each class; a draw does not depend on other classes."""
        windows, proposals = self.windows(i, maps)
        near = self.split.overlaps(i, proposals, self.labels) >= self.settings.positive_overlap
        proposals_of_classes = []
        for near_class, label, count in zip(near.T, self.labels, self.objects):
            rows = np.flatnonzero(near_class)
            rows = rows[np.unique(windows.group[rows], return_index=True)[1]]  # one of those with equal cells
            drawn = np.random.default_rng([self.seed, i]).permutation(rows)
            per_object = max(1, min(_NEAR_PER_OBJECT, _NEAR_PER_CLASS // max(count, 1)))
            proposals_of_classes.append(proposals[drawn[: per_object * len(self.split.objects(i, label))]])
        return proposals_of_classes

    def are_negatives(self, i: int, boxes: np.ndarray) -> np.ndarray:
        """Return bool ``(n, K)``, whether boxes of an image may be negatives of each class.

        Where a class was not looked for, none is.
        """
        sample, below = self.split.dataset[i], self.settings.negative_overlap
        negative = (self.split.overlaps(i, boxes, self.labels) < below) & sample.was_looked_for(self.labels)
        for k, label in enumerate(self.labels) if len(sample.ignored) else ():
            near = (geometry.iou(boxes, sample.ignored_of(label)) >= below).any(axis=1)
            negative[:, k] &= ~(near | sample.are_ignored(boxes, label))
        return negative

    def negatives(self, i: int, boxes: np.ndarray, windows: Windows) -> np.ndarray:
        """Return bool ``(U, K)``, whether windows of an image may be negatives of each class.

        Of boxes with equal cells all must be.

        Args:
            i: number of the image.
            boxes: ``(N, 4)``, as `windows` returns them.
            windows: the same boxes on the image's maps.
        """
        negative = np.ones((len(windows.cells), len(self.labels)), bool)
        np.logical_and.at(negative, windows.group, self.are_negatives(i, boxes))
        return negative
