"""Which windows of an image the SVMs of classes learn from: positives, random negatives and hard negatives.

Positives of a class are its objects and, where ``positive_overlap`` is below 1, the proposals that overlap an object by
at least this IoU. Negatives are proposals whose IoU with every object of the class is below ``negative_overlap``. This
holds for regions that are ignored, too, and no window that lies mostly in one is a negative.

All of this is work on one image: threads of this machine do it, or other machines (`sppdet.utils.cluster`).

Names: n windows, N proposals of an image, U of them with different cells, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np

from sppdet.config import SvmSettings
from sppdet.features import FeatureSplit, WindowFeatures, Windows, map_images
from sppdet.ops import Products, nms
from sppdet.ops import boxes as geometry
from sppdet.training.locations import locations_of

Result = TypeVar("Result")

# Most proposals that are positives per object, and per class unless that leaves less than one per object.
_NEAR_PER_OBJECT, _NEAR_PER_CLASS = 20, 5000


@dataclass(frozen=True, eq=False)
class WindowLabels:
    """What decides which windows some classes learn from.

    Attributes:
        features: how windows become vectors.
        labels: the classes, as numbers among those of the images; K of them.
        objects: how many each class has, in all images.
        settings: of SVMs and mining.
        seed: of the draws.
    """

    features: WindowFeatures
    labels: list[int]
    objects: list[int]
    settings: SvmSettings
    seed: int

    @classmethod
    def of_split(
        cls, split: FeatureSplit, features: WindowFeatures, labels: Sequence[int], settings: SvmSettings, seed: int
    ) -> WindowLabels:
        """Return those of the images of a training."""
        counts = np.bincount(
            np.concatenate([np.zeros(0, np.int64), *(sample.labels for sample in split.dataset)]),
            minlength=len(split.dataset.classes),
        )
        return cls(features, [*labels], [int(counts[label]) for label in labels], settings, seed)

    def each(
        self,
        function: Callable[[ImageWindows], Result],
        split: FeatureSplit,
        images: Sequence[int],
        workers: int,
        description: str,
    ) -> Iterator[Result]:
        """Yield ``function(windows)`` for images of a split, in order; see `sppdet.features.map_images`."""
        return map_images(partial(_with_windows, self, function), split, images, workers, description)


def _with_windows(
    labels: WindowLabels, function: Callable[[ImageWindows], Result], number: int, image: FeatureSplit
) -> Result:
    return function(ImageWindows.of_image(labels, number, image))


@dataclass(frozen=True, eq=False)
class ImageWindows:
    """The windows of one image, and which of them each class may learn from.

    Attributes:
        recipe: the rules, and the classes.
        number: of the image in the training. Draws and locations depend on it.
        image: a split of this image alone.
        maps: what the windows are read from.
        boxes: the proposals ``(N, 4)``.
        windows: the proposals on the maps.
    """

    recipe: WindowLabels
    number: int
    image: FeatureSplit
    maps: Any
    boxes: np.ndarray
    windows: Windows

    @classmethod
    def of_image(cls, recipe: WindowLabels, number: int, image: FeatureSplit) -> ImageWindows:
        """Return the windows of a split of one image, read from the cache."""
        # No cached properties: before Python 3.12 one lock for all objects guards them, and threads wait for it.
        maps, boxes = image.maps(0), image.proposals(0)
        return cls(recipe, number, image, maps, boxes, recipe.features.windows(boxes, image.size(0), maps))

    def _on_maps(self, boxes: np.ndarray) -> Windows:
        return self.recipe.features.windows(boxes, self.image.size(0), self.maps)

    def _draw(self) -> np.random.Generator:
        """Return a source of draws that depend on the image and on nothing drawn before."""
        return np.random.default_rng([self.recipe.seed, self.number])

    def first_windows(
        self, drawn: Collection[int], count: int
    ) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray] | None]:
        """Return what the first fit learns from, in one reading of the maps.

        Args:
            drawn: the images that random negatives are drawn from.
            count: of random negatives.

        Returns:
            What `positives` returns; and what `random_negatives` returns, None where the image is not one of ``drawn``.
        """
        return self.positives(), self.random_negatives(count) if self.number in drawn else None

    # Positives

    def positives(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the locations ``(n,)`` of the positives, and the class of each ``(n,)``, 0 to K - 1."""
        boxes, classes = self._positive_boxes()
        windows = self._on_maps(boxes)
        return locations_of(self.number, windows, windows.group), classes

    def _positive_boxes(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the boxes ``(n, 4)`` of the positives, and the class of each ``(n,)``, 0 to K - 1."""
        boxes = [self.image.objects(0, label) for label in self.recipe.labels]
        if self.recipe.settings.positive_overlap < 1:
            boxes = [np.concatenate(both) for both in zip(boxes, self._near_proposals())]
        classes = np.repeat(np.arange(len(boxes)), [len(class_boxes) for class_boxes in boxes])
        return np.concatenate(boxes), classes

    def _near_proposals(self) -> list[np.ndarray]:
        """Draw the proposals ``(n, 4)`` that are positives of each class; a draw does not depend on other classes."""
        labels, objects = self.recipe.labels, self.recipe.objects
        near = self.image.overlaps(0, self.boxes, labels) >= self.recipe.settings.positive_overlap
        proposals_of_classes = []
        for near_class, label, count in zip(near.T, labels, objects):
            rows = np.flatnonzero(near_class)
            rows = rows[np.unique(self.windows.group[rows], return_index=True)[1]]  # one of those with equal cells
            drawn = self._draw().permutation(rows)
            per_object = max(1, min(_NEAR_PER_OBJECT, _NEAR_PER_CLASS // max(count, 1)))
            proposals_of_classes.append(self.boxes[drawn[: per_object * len(self.image.objects(0, label))]])
        return proposals_of_classes

    # Negatives

    def are_negatives(self, boxes: np.ndarray) -> np.ndarray:
        """Return bool ``(n, K)``, whether boxes of the image may be negatives of each class.

        Where a class was not looked for, none is.
        """
        labels, sample, below = self.recipe.labels, self.image.dataset[0], self.recipe.settings.negative_overlap
        negative = (self.image.overlaps(0, boxes, labels) < below) & sample.was_looked_for(labels)
        for k, label in enumerate(labels) if len(sample.ignored) else ():
            near = (geometry.iou(boxes, sample.ignored_of(label)) >= below).any(axis=1)
            negative[:, k] &= ~(near | sample.are_ignored(boxes, label))
        return negative

    def negatives(self) -> np.ndarray:
        """Return bool ``(U, K)``, whether the windows may be negatives of each class; of boxes with equal cells all."""
        negative = np.ones((len(self.windows.cells), len(self.recipe.labels)), bool)
        np.logical_and.at(negative, self.windows.group, self.are_negatives(self.boxes))
        return negative

    def random_negatives(self, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Draw ``count`` windows.

        Returns:
            Their numbers ``(n,)``, locations ``(n,)``, and bool ``(n, K)``, of which classes each may be a negative.
        """
        rows = self._drawn(count)
        return rows, locations_of(self.number, self.windows, rows), self.negatives()[rows]

    def _drawn(self, count: int) -> np.ndarray:
        """Draw the numbers of ``count`` windows, in order."""
        return np.sort(self._draw().permutation(len(self.windows.cells))[:count])

    def hard_negatives(
        self, weights: Products, bias: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Find the hard negatives of SVMs.

        Args:
            weights: those of the SVMs.
            bias: ``(K,)``.

        Returns:
            The numbers of the windows ``(n,)``, their locations ``(n,)``, bool ``(n, K)``, of which classes each is a
            hard negative, and the margins of these alone, row by row.
        """
        _, hard, score = self._scored(weights, bias)
        rows = np.flatnonzero(hard.any(axis=1))
        return rows, locations_of(self.number, self.windows, rows), hard[rows], score[hard]

    def candidates(
        self, weights: Products, bias: np.ndarray, random: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return the windows that a bank may hold: positives, hard negatives and random windows.

        Args:
            weights: those of the SVMs.
            bias: ``(K,)``.
            random: number of random windows.

        Returns:
            Locations ``(n,)``; labels int8 ``(n, K)``, +1, -1 or 0; bool ``(n, K)``, for which classes a window is a
            hard negative; and bool ``(n,)``, which are random ones. A window that is a positive of two classes occurs
            twice.
        """
        negative, hard, _ = self._scored(weights, bias)
        drawn = np.zeros(len(self.windows.cells), bool)
        drawn[self._drawn(random)] = True
        rows = np.flatnonzero(hard.any(axis=1) | drawn)
        boxes, classes = self._positive_boxes()
        labels = -self.are_negatives(boxes).astype(np.int8)
        labels[np.arange(len(boxes)), classes] = 1
        positives = self._on_maps(boxes)
        return (
            np.concatenate(
                [
                    locations_of(self.number, positives, positives.group),
                    locations_of(self.number, self.windows, rows),
                ]
            ),
            np.concatenate([labels, -negative[rows].astype(np.int8)]),
            np.concatenate([np.zeros(labels.shape, bool), hard[rows]]),
            np.concatenate([np.zeros(len(labels), bool), drawn[rows]]),
        )

    def _scored(self, weights: Products, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return, each ``(U, K)``: may a window be a negative, is it a hard one, and its margin."""
        score = self.recipe.features.products(self.maps, self.windows, weights)[0] + bias
        negative = self.negatives()
        hard = negative & (score > self.recipe.settings.hard_margin)
        self._drop_duplicates(score, hard)
        return negative, hard, score

    def _drop_duplicates(self, score: np.ndarray, hard: np.ndarray) -> None:
        """Leave the hardest of hard negatives that overlap by more than ``duplicate_overlap`` (paper, section 4.1)."""
        settings = self.recipe.settings
        first = np.full(len(self.windows.cells), -1)
        first[self.windows.group[::-1]] = np.arange(len(self.boxes))[::-1]
        window_boxes = self.boxes[first]
        for k in range(hard.shape[1]):
            rows = np.flatnonzero(hard[:, k])
            if len(rows):
                kept = nms(window_boxes[rows], score[rows, k], settings.duplicate_overlap)
                hard[:, k] = False
                hard[rows[kept[: settings.hard_per_image]], k] = True
