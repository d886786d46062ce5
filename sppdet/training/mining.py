"""Hard-negative mining: the SVMs of all classes from one stream of images, in bounded memory.

What is kept of a window is its location, 24 bytes. Its vector, 50 kB, is pooled again from the stored feature maps for
every fit, for as many classes at a time as ``memory_gb`` holds. So memory does not grow with the number of images, but
the maps are read again for every such group of classes.

Positives of a class are its objects and, where ``positive_overlap`` is below 1, the proposals that overlap an object by
at least this IoU. Negatives are proposals whose IoU with every object of the class is below ``negative_overlap``.

Each class starts from random negatives. Then images are read in a fixed order; a negative that scores above
``hard_margin`` is hard and is kept. After growing shares of the images (1/16, 1/8, 1/4, 1/2, all) every class is fitted
again, and negatives that score below ``evict_margin`` are dropped. R-CNN and SPP_net do this class by class, with a fit
whenever 2000 negatives are new.

The SVM of a class depends on the proposals and on the class's own objects, not on the other classes trained with it: a
class trained later and alone gets the same SVM. With fc layers after the pooling the last bits of products differ, as
these depend on the number of windows that go through a layer together.

Names: n windows, U of them with different cells, K classes, D features.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from sppdet.config import SvmSettings
from sppdet.detection import LinearSVMs
from sppdet.features import FeatureSplit, WindowFeatures, Windows
from sppdet.ops import Products, nms
from sppdet.training import svm
from sppdet.utils import Checkpoint, Execution, entries_under, parallel_map, verify_tensors, write_tensors

logger = logging.getLogger(__name__)

# Images, and windows of each, that tell the mean norm of all vectors.
_NORM_IMAGES, _NORM_WINDOWS = 200, 200


def feature_scale(split: FeatureSplit, features: WindowFeatures, norm: float, execution: Execution) -> float:
    """Compute the factor that brings the mean L2 norm of window vectors to ``norm``, from a sample of the windows.

    Args:
        split: images with their proposals and feature maps.
        features: how windows become vectors.
        norm: the mean norm that is wanted.
        execution: seed of the sample; workers.

    Returns:
        The factor; 1 where there is no window or all vectors are zero.
    """
    seed, workers = execution.seed, execution.workers
    images = np.random.default_rng(seed).permutation(len(split))[:_NORM_IMAGES]

    def norms_of(i: int) -> np.ndarray:
        boxes = np.random.default_rng([seed, i]).permutation(split.proposals(i))[:_NORM_WINDOWS]
        if not len(boxes):
            return np.zeros(0)
        return np.linalg.norm(features.of_boxes(split.maps(i), boxes, split.size(i)), axis=1)

    norms = np.concatenate(list(parallel_map(norms_of, images.tolist(), workers, "feature norm", threads=True)))
    mean = float(norms.mean()) if len(norms) else 0.0
    return norm / mean if mean > 0 else 1.0


# Where a window lies: index of its image in the split, index of the feature map, and x1, y1, x2, y2 in cells of the
# map. float32 holds whole cells exactly; with pooling.kind=align the edges are not whole.
LOCATION = np.dtype([("image", np.int32), ("scale", np.int32), ("cells", np.float32, 4)])
# Names of these fields in checkpoints, which stay as they were in earlier versions.
_STORED_NAMES = {"image": "picture", "scale": "scale", "cells": "window"}
# Most proposals that are positives per object, and per class unless that leaves less than one per object.
_NEAR_PER_OBJECT, _NEAR_PER_CLASS = 20, 10_000
_GROWTH = 2048  # rows by which the cache grows
_TRIM_SLACK = 4  # a class may hold 1/4 more negatives than its limit before they are sorted and trimmed


@dataclass(frozen=True, eq=False)
class ClassWindows:
    """The windows that the SVM of one class was fitted to, and their dual variables: enough to fit it again.

    Attributes:
        locations: ``(n,)`` of `LOCATION`, positives first.
        positives: how many of them are positives.
        alpha: ``(n,)`` float32, the dual variables; zeros where they are not known.
    """

    locations: np.ndarray
    positives: int
    alpha: np.ndarray

    @property
    def labels(self) -> np.ndarray:
        """``(n,)`` +1 for positives, -1 for negatives."""
        return np.where(np.arange(len(self.locations)) < self.positives, 1, -1)

    def tensors(self) -> dict[str, np.ndarray]:
        """Return the values as arrays without fields, for a file."""
        fields = {name: self.locations[name] for name in _STORED_NAMES}
        return fields | {"alpha": self.alpha, "positives": np.array(self.positives)}

    @classmethod
    def restore(cls, tensors: dict[str, np.ndarray]) -> ClassWindows:
        """Return the windows that `tensors` described."""
        locations = np.empty(len(tensors["alpha"]), LOCATION)
        for name in _STORED_NAMES:
            locations[name] = tensors[name]
        return cls(locations, int(tensors["positives"]), tensors["alpha"])


@dataclass(frozen=True, eq=False)
class FixedRows:
    """Vectors that take part in every fit, beside the windows of the images: those of a bank.

    Attributes:
        vectors: float16 ``(B, D)``.
        labels: int8 ``(B, K)``, for each class +1, -1, or 0 for a row that the class does not learn from.
        start: the SVMs of the classes that are fitted on; None for new classes. What the rows do not explain of these
            SVMs stays as it is.
    """

    vectors: np.ndarray
    labels: np.ndarray
    start: LinearSVMs | None = None


@dataclass(eq=False)
class _ClassRows:
    """The fixed rows of one class: their numbers, labels, dual variables, and the rest of the SVM (`svm.remainder`)."""

    rows: np.ndarray
    labels: np.ndarray
    alpha: np.ndarray
    rest: tuple[np.ndarray, float] | None


class SampleCache:
    """The windows that some classes train on, and the state of each class for each window.

    A row is one window. The first rows are positives and stay. Rows of negatives that no class uses any more are used
    again.

    Args:
        positives: ``(P,)`` of `LOCATION`.
        positive_classes: ``(P,)`` the class of each positive, 0 to K - 1.
        classes: K.

    Attributes:
        positives: P, the number of rows of positives.
        locations: ``(R,)`` of `LOCATION`, where each row's window lies.
        held: bool ``(R, K)``, whether class k trains on row r.
        alpha: float64 ``(R, K)``, the dual variables of the last fit.
        score: float32 ``(R, K)``, the margins of the last fit.
    """

    def __init__(self, positives: np.ndarray, positive_classes: np.ndarray, classes: int):
        count = self.positives = len(positives)
        self.locations = positives
        self.held = np.zeros((count, classes), bool)
        self.held[np.arange(count), positive_classes] = True
        self.alpha = np.zeros((count, classes))
        self.score = np.zeros((count, classes), np.float32)
        self._used = np.zeros(count, bool)
        # Orders the rows by image and window, whatever rows they were stored in, and identifies the window.
        self._rank = np.zeros(count, np.int64)
        self._row_of: dict[int, int] = {}  # rank -> row, of the negatives
        self._free: list[int] = []

    def _grow(self) -> None:
        count = len(self.locations)
        for name in ("locations", "held", "alpha", "score", "_used", "_rank"):
            old = getattr(self, name)
            setattr(self, name, np.concatenate([old, np.zeros((_GROWTH, *old.shape[1:]), old.dtype)]))
        self._free += range(count + _GROWTH - 1, count - 1, -1)

    def add(self, windows: np.ndarray, locations: np.ndarray, wanted: np.ndarray, score: np.ndarray) -> None:
        """Add negatives; a class that holds one already keeps its state for it.

        Args:
            windows: ``(n,)`` numbers of the windows within their images.
            locations: ``(n,)`` of `LOCATION`.
            wanted: bool ``(n, K)``, whether the window becomes a negative of each class.
            score: ``(n, K)`` margins.
        """
        for window, location, classes, margins in zip(windows.tolist(), locations, wanted, score):
            rank = _rank(int(location["image"]), window)
            if rank not in self._row_of:
                if not self._free:
                    self._grow()
                row = self._free.pop()
                self._row_of[rank], self._rank[row], self._used[row] = row, rank, True
                self.locations[row] = location
            row = self._row_of[rank]
            new = classes & ~self.held[row]
            self.held[row] |= new
            self.score[row, new] = margins[new]
            self.alpha[row, new] = 0

    def negatives(self, k: int) -> np.ndarray:
        """Return the rows of class k's negatives, in an order that does not depend on the other classes."""
        rows = self.positives + np.flatnonzero(self.held[self.positives :, k])
        return rows[np.argsort(self._rank[rows])]

    def problem(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return class k's rows ``(n,)``, positives first, and their labels ``(n,)``, +1 or -1."""
        index = np.concatenate([np.flatnonzero(self.held[: self.positives, k]), self.negatives(k)])
        return index, np.where(index < self.positives, 1, -1)

    def trim(self, k: int, limit: int) -> None:
        """Leave class k its ``limit`` hardest negatives, if it has a quarter more than ``limit``."""
        # Called after every image: count first, and sort only where negatives have to go.
        if np.count_nonzero(self.held[self.positives :, k]) > limit * (_TRIM_SLACK + 1) // _TRIM_SLACK:
            negatives = self.negatives(k)
            hardest = np.argsort(-self.score[negatives, k], kind="stable")
            self.held[negatives[hardest[limit:]], k] = False

    def evict(self, k: int, margin: float) -> None:
        """Drop class k's negatives that score below ``margin``."""
        easy = self.held[self.positives :, k] & (self.score[self.positives :, k] < margin)
        self.held[self.positives :, k] &= ~easy

    def collect(self) -> None:
        """Free the rows that no class holds any more."""
        for row in np.flatnonzero(self._used & ~self.held.any(axis=1)).tolist():
            del self._row_of[int(self._rank[row])]
            self._used[row] = False
            self._free.append(row)

    def __len__(self) -> int:
        """Return the number of negatives, each of one class or more."""
        return len(self._row_of)

    def state(self) -> dict[str, np.ndarray]:
        """Return all that `restore` needs, as arrays without fields."""
        rows = np.concatenate([np.arange(self.positives), np.flatnonzero(self._used)])
        state = {stored: self.locations[name][rows] for name, stored in _STORED_NAMES.items()}
        state |= {"held": self.held[rows], "alpha": self.alpha[rows], "score": self.score[rows]}
        return state | {"rank": self._rank[rows], "positives": np.array(self.positives)}

    @classmethod
    def restore(cls, state: dict[str, np.ndarray]) -> SampleCache:
        """Return the cache that `state` describes."""
        locations = np.empty(len(state["rank"]), LOCATION)
        for name, stored in _STORED_NAMES.items():
            locations[name] = state[stored]
        cache = cls(locations, np.zeros(len(locations), np.int64), state["held"].shape[1])
        cache.positives, cache._rank = state["positives"].item(), state["rank"]
        cache.held, cache.alpha, cache.score = state["held"], state["alpha"], state["score"]
        cache._used = np.arange(len(locations)) >= cache.positives
        cache._row_of = {int(cache._rank[row]): row for row in range(cache.positives, len(locations))}
        return cache


def _rank(image: int, window: int) -> int:
    """Return the number that orders windows by image, then by their number within it."""
    return (image << 32) + window


class Miner:
    """Trains the SVMs of some classes with hard-negative mining.

    Args:
        split: the training images with their proposals and feature maps.
        features: how windows become vectors.
        labels: the classes to train, as numbers among the split's classes; K of them.
        settings: of SVMs and mining.
        scale: factor that brings the vectors to the norm of the SVMs.
        execution: seed; workers; memory for vectors, of which one class's are always held together; checkpoint.
        fixed: vectors that take part in every fit. Not in checkpoints.

    Attributes:
        problem: the parameters of every class's SVM.
        cache: the windows of the last fit.
        fixed_rows: of each class, the rows of ``fixed`` in the last fit.
    """

    def __init__(
        self,
        split: FeatureSplit,
        features: WindowFeatures,
        labels: Iterable[int],
        settings: SvmSettings,
        scale: float,
        execution: Execution,
        fixed: FixedRows | None = None,
    ):
        self.split, self.features, self.labels, self.settings = split, features, list(labels), settings
        self.execution = execution
        self.problem = svm.Problem(
            settings.C, settings.positive_weight, settings.bias, scale, settings.tolerance, seed=execution.seed
        )
        self.cache: SampleCache
        self.fixed = fixed
        self.fixed_rows = [self._fixed_rows(fixed, k) for k in range(len(self.labels))] if fixed else []
        self._objects = [sum((sample.labels == label).sum() for sample in split.dataset) for label in self.labels]

    def train(self) -> LinearSVMs:
        """Train the SVMs of all classes.

        The checkpoint is written after every fit. A training that finds one of its key resumes from it and gets the
        same SVMs as without the interruption.
        """
        for label, count in zip(self.labels, self._objects):
            if not count:
                name = self.split.dataset.classes[label]
                logger.warning("no training objects of %s: it will never be detected", name)
        checkpoint = self.execution.checkpoint
        order = np.random.default_rng(self.execution.seed).permutation(len(self.split))
        rounds = [_rounds(order, self.settings.rounds if n == 0 else 1) for n in range(self.settings.passes)]
        done, fitted = self._resume(checkpoint) if checkpoint else (0, None)
        if fitted is None:
            self.cache = self._start(order)
            fitted = self._fit()
        for number, images in enumerate(chain(*rounds)):
            if number < done:
                continue
            if checkpoint:
                self._save(checkpoint, number, fitted)
            self._mine(images.tolist(), fitted)
            fitted = self._fit()
        self._warn_of_lost_classes()
        return fitted

    def refine(self, passes: int = 2) -> LinearSVMs:
        """Fit the SVMs of ``fixed.start`` on, to the negatives that are hard in images without any object.

        The SVM of a class without such negatives stays as it is, bit for bit.

        Args:
            passes: over the images.
        """
        assert self.fixed is not None and self.fixed.start is not None
        self.cache = SampleCache(np.zeros(0, LOCATION), np.zeros(0, np.int64), len(self.labels))
        fitted = self.fixed.start
        for _ in range(passes):
            self._mine([*range(len(self.split))], fitted)
            fitted = self._fit()
        return fitted

    def _fixed_rows(self, fixed: FixedRows, k: int) -> _ClassRows:
        """Return the fixed rows of class k as its first fit takes them."""
        rows = np.flatnonzero(fixed.labels[:, k])
        labels = fixed.labels[rows, k].astype(np.int64)
        if fixed.start is None:
            return _ClassRows(rows, labels, np.zeros(len(rows)), None)
        start = svm.Fit(fixed.start.weight[k], float(fixed.start.bias[k]), None, 0, True)
        alpha = svm.optimal_alpha(svm.margins(fixed.vectors, rows, start), labels, self.problem)
        return _ClassRows(rows, labels, alpha, svm.remainder(fixed.vectors, rows, labels, alpha, start, self.problem))

    def windows(self, k: int) -> ClassWindows:
        """Return the windows of class ``labels[k]`` after `train` or `collect_windows`."""
        index, labels = self.cache.problem(k)
        alpha = self.cache.alpha[index, k].astype(np.float32)
        return ClassWindows(self.cache.locations[index], int((labels > 0).sum()), alpha)

    def collect_windows(self, svms: LinearSVMs) -> None:
        """Collect windows for trained SVMs: positives, random negatives, and those that are hard for ``svms``.

        For SVMs of an earlier version, whose own windows were not kept. One pass over the images, no fit.
        """
        order = np.random.default_rng(self.execution.seed).permutation(len(self.split))
        self.cache = self._start(order)
        self._mine(order.tolist(), svms)

    def _warn_of_lost_classes(self) -> None:
        """Name the classes whose SVM puts all objects on the side of the negatives.

        Where many negatives look like the objects, that SVM may have the least cost.
        """
        count, classes = self.cache.positives, self.split.dataset.classes
        margins = np.where(self.cache.held[:count], self.cache.score[:count], -np.inf)
        highest = margins.max(axis=0, initial=-np.inf)
        lost = [classes[label] for label, margin in zip(self.labels, highest) if -np.inf < margin < 0]
        if lost:
            near = "svm.positive_overlap=0.7, " if self.settings.positive_overlap == 1 else ""
            logger.warning(
                "%s: the SVM takes all objects of its class for background; %sa larger svm.positive_weight or svm.C, "
                "or better features help",
                ", ".join(lost),
                near,
            )

    def _save(self, checkpoint: Checkpoint, done: int, fitted: LinearSVMs) -> None:
        """Write the cache and the SVMs as they are after ``done`` rounds."""
        tensors = {f"cache.{name}": np.ascontiguousarray(value) for name, value in self.cache.state().items()}
        tensors |= {"weight": fitted.weight, "bias": fitted.bias}
        metadata = {"key": checkpoint.key, "done": str(done)}
        write_tensors(checkpoint.path, tensors, metadata)

    def _resume(self, checkpoint: Checkpoint) -> tuple[int, LinearSVMs | None]:
        """Take over the checkpoint's cache; return the number of rounds done and their SVMs, or None without any."""
        if not checkpoint.path.exists():
            return 0, None
        try:
            with safe_open(checkpoint.path, "numpy") as stored:
                metadata = stored.metadata() or {}
                if metadata.get("key") != checkpoint.key:
                    return 0, None
                verify_tensors(checkpoint.path)
                tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
            done, svms = int(metadata["done"]), LinearSVMs(tensors["weight"], tensors["bias"])
            cache = SampleCache.restore(entries_under(tensors, "cache."))
        except (SafetensorError, OSError, KeyError, TypeError, ValueError):
            logger.warning("%s: damaged checkpoint; training starts from the beginning", checkpoint.path)
            return 0, None
        self.cache = cache
        return done, svms

    def _start(self, order: np.ndarray) -> SampleCache:
        """Return a cache of the positives of every class and of random windows, the same ones for all classes."""
        workers, count = self.execution.workers, self.settings.random_negatives
        positives = parallel_map(self._positives, order.tolist(), workers, "positives", threads=True)
        locations, classes = zip(*positives)
        cache = SampleCache(np.concatenate(locations), np.concatenate(classes), len(self.labels))
        per_image = -(-count // len(order))
        images = order[: -(-count // per_image)] if per_image else order[:0]

        def draw(i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            windows, boxes = self._windows(i, self.split.maps(i))
            rows = np.random.default_rng([self.execution.seed, i]).permutation(len(windows.cells))[:per_image]
            rows = rows[np.argsort(rows)]
            return rows, _locations(i, windows, rows), self._may_be_negative(i, boxes, windows)[rows]

        drawn = parallel_map(draw, images.tolist(), workers, "random negatives", threads=True)
        for rows, row_locations, negative in drawn:
            cache.add(rows, row_locations, negative, np.zeros(negative.shape, np.float32))
        return cache

    def _positives(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the locations ``(n,)`` of an image's positives, and the class of each ``(n,)``."""
        if not any(len(self.split.objects(i, label)) for label in self.labels):
            return np.zeros(0, LOCATION), np.zeros(0, np.int64)
        maps = self.split.maps(i)
        boxes, classes = self._positive_boxes(i, maps)
        windows = self.features.windows(boxes, self.split.size(i), maps)
        return _locations(i, windows, windows.group), classes

    def _positive_boxes(self, i: int, maps: object) -> tuple[np.ndarray, np.ndarray]:
        """Return the boxes ``(n, 4)`` of an image's positives, and the class of each ``(n,)``."""
        boxes = [self.split.objects(i, label) for label in self.labels]
        if self.settings.positive_overlap < 1:
            boxes = [np.concatenate(both) for both in zip(boxes, self._near_proposals(i, maps))]
        classes = np.repeat(np.arange(len(boxes)), [len(class_boxes) for class_boxes in boxes])
        return np.concatenate(boxes), classes

    def candidates(
        self, i: int, weights: Products, bias: np.ndarray, random: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return the windows of an image that a bank may hold: positives, hard negatives and random windows.

        Args:
            i: number of the image.
            weights: those of the SVMs.
            bias: ``(K,)``.
            random: number of random windows.

        Returns:
            Locations ``(n,)``; labels int8 ``(n, K)``, +1, -1 or 0; bool ``(n, K)``, for which classes a window is a
            hard negative; and bool ``(n,)``, which are random ones. A window that is a positive of two classes occurs
            twice.
        """
        maps = self.split.maps(i)
        windows, negative, hard, _ = self._scored(i, maps, weights, bias)
        drawn = np.zeros(len(windows.cells), bool)
        drawn[np.random.default_rng([self.execution.seed, i]).permutation(len(drawn))[:random]] = True
        rows = np.flatnonzero(hard.any(axis=1) | drawn)
        boxes, classes = self._positive_boxes(i, maps)
        labels = -self._is_negative(i, self.split.overlaps(i, boxes, self.labels)).astype(np.int8)
        labels[np.arange(len(boxes)), classes] = 1
        positives = self.features.windows(boxes, self.split.size(i), maps)
        return (
            np.concatenate([_locations(i, positives, positives.group), _locations(i, windows, rows)]),
            np.concatenate([labels, -negative[rows].astype(np.int8)]),
            np.concatenate([np.zeros(labels.shape, bool), hard[rows]]),
            np.concatenate([np.zeros(len(labels), bool), drawn[rows]]),
        )

    def _near_proposals(self, i: int, maps: object) -> list[np.ndarray]:
        """Draw the proposals ``(n, 4)`` that are positives of each class; a draw does not depend on other classes."""
        windows, proposals = self._windows(i, maps)
        near = self.split.overlaps(i, proposals, self.labels, cut=False) >= self.settings.positive_overlap
        proposals_of_classes = []
        for near_class, label, count in zip(near.T, self.labels, self._objects):
            rows = np.flatnonzero(near_class)
            rows = rows[np.unique(windows.group[rows], return_index=True)[1]]  # one of those with equal cells
            drawn = np.random.default_rng([self.execution.seed, i]).permutation(rows)
            per_object = max(1, min(_NEAR_PER_OBJECT, _NEAR_PER_CLASS // max(count, 1)))
            proposals_of_classes.append(proposals[drawn[: per_object * len(self.split.objects(i, label))]])
        return proposals_of_classes

    def _windows(self, i: int, maps: object) -> tuple[Windows, np.ndarray]:
        """Return an image's proposals on its maps, and as boxes ``(N, 4)``."""
        boxes = self.split.proposals(i)
        return self.features.windows(boxes, self.split.size(i), maps), boxes

    def _scored(
        self, i: int, maps: Any, weights: Products, bias: np.ndarray
    ) -> tuple[Windows, np.ndarray, np.ndarray, np.ndarray]:
        """Return an image's windows, and each ``(U, K)``: may it be a negative, is it a hard one, and its margin."""
        windows, boxes = self._windows(i, maps)
        score = self.features.products(maps, windows, weights)[0] + bias
        negative = self._may_be_negative(i, boxes, windows)
        hard = negative & (score > self.settings.hard_margin)
        self._drop_duplicates(windows, boxes, score, hard)
        return windows, negative, hard, score

    def _is_negative(self, i: int, overlap: np.ndarray) -> np.ndarray:
        """Return ``(n, K)`` whether windows with these overlaps ``(n, K)`` may be negatives of each class."""
        return (overlap < self.settings.negative_overlap) & self.split.dataset[i].was_looked_for(self.labels)

    def _may_be_negative(self, i: int, boxes: np.ndarray, windows: Windows) -> np.ndarray:
        """Return ``(U, K)`` whether a window may be a negative of each class.

        Of boxes with equal cells the highest overlap counts. Where a class was not looked for, no window is one.
        """
        overlap = np.zeros((len(windows.cells), len(self.labels)), np.float32)
        np.maximum.at(overlap, windows.group, self.split.overlaps(i, boxes, self.labels))
        return self._is_negative(i, overlap)

    def _mine(self, images: list[int], fitted: LinearSVMs) -> None:
        """Add the hard negatives of some images to the cache."""
        weights = Products(fitted.weight, half=self.features.half)

        def find(i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
            windows, _, hard, score = self._scored(i, self.split.maps(i), weights, fitted.bias)
            rows = np.flatnonzero(hard.any(axis=1))
            return rows, _locations(i, windows, rows), hard[rows], score[rows]

        description = f"mining {len(images)} images"
        for negatives in parallel_map(find, images, self.execution.workers, description, threads=True):
            self.cache.add(*negatives)
            for k in range(len(self.labels)):
                self.cache.trim(k, self.settings.max_negatives)
            self.cache.collect()

    def _drop_duplicates(self, windows: Windows, boxes: np.ndarray, score: np.ndarray, hard: np.ndarray) -> None:
        """Leave the hardest of hard negatives that overlap by more than ``duplicate_overlap`` (paper, section 4.1)."""
        first = np.full(len(windows.cells), -1)
        first[windows.group[::-1]] = np.arange(len(boxes))[::-1]
        window_boxes = boxes[first]
        for k in range(hard.shape[1]):
            rows = np.flatnonzero(hard[:, k])
            if len(rows):
                kept = nms(window_boxes[rows], score[rows, k], self.settings.duplicate_overlap)
                hard[:, k] = False
                hard[rows[kept[: self.settings.hard_per_image]], k] = True

    def _fit(self) -> LinearSVMs:
        """Fit the SVMs of all classes to the windows of the cache."""
        fits = [fitted for classes in self._class_groups() for fitted in self._fit_classes(classes)]
        self.cache.collect()
        negatives = self.cache.held[self.cache.positives :].sum(axis=0)
        logger.debug(
            "%d negative windows, each of one class or more: %d to %d per class",
            len(self.cache),
            negatives.min(),
            negatives.max(),
        )
        unconverged = sum(not fitted.converged for fitted in fits)
        if unconverged:
            logger.warning("the SVMs of %d classes stopped at the iteration limit; a smaller svm.C helps", unconverged)
        return svm.stack(fits)

    def _class_groups(self) -> Iterator[list[int]]:
        """Yield the classes in order, as many at a time as share rows whose vectors fit into ``memory_gb``."""
        limit = self.execution.memory_gb * 1e9 / (2 * self.features.dimension)
        group: list[int] = []
        rows = np.zeros(len(self.cache.locations), bool)
        for k in range(len(self.labels)):
            class_rows = self.cache.held[:, k]
            if group and np.count_nonzero(rows | class_rows) > limit:
                yield group
                group, rows = [], np.zeros_like(rows)
            group, rows = [*group, k], rows | class_rows
        yield group

    def _fit_classes(self, classes: list[int]) -> list[svm.Fit]:
        """Fit the SVMs of some classes, and drop their easy negatives."""
        cache = self.cache
        solve = svm.SOLVERS[self.settings.solver]
        rows = np.flatnonzero(cache.held[:, classes].any(axis=1))
        vectors = self._vectors(rows)
        position = np.zeros(len(cache.locations), np.int64)
        position[rows] = np.arange(len(rows))

        fixed, pooled = self.fixed, len(vectors)
        if fixed is not None:
            vectors = np.concatenate([vectors, fixed.vectors])

        def fit_class(k: int) -> svm.Fit:
            index, labels = cache.problem(k)
            count, own = len(index), position[index]
            if fixed is not None and fixed.start is not None and not count:
                return svm.Fit(fixed.start.weight[k], float(fixed.start.bias[k]), None, 0, True)
            alpha, rest = cache.alpha[index, k], None
            if fixed is not None:
                more = self.fixed_rows[k]
                own, labels = np.concatenate([own, pooled + more.rows]), np.concatenate([labels, more.labels])
                alpha, rest = np.concatenate([alpha, more.alpha]), more.rest
            if not (labels > 0).any() and rest is None:
                return svm.never(self.features.dimension)
            start = {"alpha": alpha, "fixed": rest} if self.settings.solver == "dual" else {}
            fitted = solve(vectors, own, labels, self.problem, **start)
            if fitted.alpha is not None:
                cache.alpha[index, k] = fitted.alpha[:count]
                if fixed is not None:
                    self.fixed_rows[k].alpha = fitted.alpha[count:]
            cache.score[index, k] = svm.margins(vectors, own[:count], fitted)
            cache.evict(k, self.settings.evict_margin)
            return fitted

        return list(parallel_map(fit_class, classes, self.execution.workers, "fitting SVMs", threads=True))

    def _vectors(self, rows: np.ndarray) -> np.ndarray:
        """Pool the windows of the cache's ``rows`` again: float16 ``(len(rows), D)``."""
        return pool_locations(self.split, self.features, self.cache.locations[rows], self.execution.workers)


def pool_locations(split: FeatureSplit, features: WindowFeatures, locations: np.ndarray, workers: int) -> np.ndarray:
    """Pool windows again, image by image.

    Args:
        split: the images that the locations number.
        features: how windows become vectors of D features.
        locations: ``(n,)`` of `LOCATION`.
        workers: threads; 0 is every core.

    Returns:
        float16 ``(n, D)``.
    """
    vectors = np.empty((len(locations), features.dimension), np.float16)
    order = np.argsort(locations["image"], kind="stable")
    images = np.split(order, np.flatnonzero(np.diff(locations["image"][order])) + 1) if len(locations) else []

    def fill(image_rows: np.ndarray) -> None:
        every, of_image = np.arange(len(image_rows)), locations[image_rows]
        windows = Windows(of_image["scale"], of_image["cells"], every)
        maps = split.maps(int(of_image["image"][0]))
        vectors[image_rows] = features.vectors(maps, windows, every, np.float16)

    for _ in parallel_map(fill, images, workers, "vectors", threads=True):
        pass
    return vectors


def _locations(image: int, windows: Windows, rows: np.ndarray) -> np.ndarray:
    """Return the locations ``(len(rows),)`` of the windows at ``rows``, of `LOCATION`."""
    locations = np.empty(len(rows), LOCATION)
    locations["image"], locations["scale"], locations["cells"] = image, windows.scales[rows], windows.cells[rows]
    return locations


def _rounds(order: np.ndarray, rounds: int) -> list[np.ndarray]:
    """Cut ``order`` after 1/2^(rounds-1), ..., 1/4, 1/2 of its length; empty pieces are left out."""
    cuts = [len(order) >> power for power in range(rounds - 1, 0, -1)]
    return [images for images in np.split(order, cuts) if len(images)]
