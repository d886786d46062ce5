"""Hard-negative mining: the SVMs of all classes from one stream of images, in bounded memory.

What is kept of a window is its location, 24 bytes. Its vector, 50 kB, is pooled again from the stored feature maps for
every fit, for as many classes at a time as ``memory_gb`` holds. So memory does not grow with the number of images, but
the maps are read again for every such group of classes.

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
from collections.abc import Iterable
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
from sppdet.training.locations import (
    LOCATION,
    ClassWindows,
    class_groups,
    locations_of,
    pool_locations,
    windows_in_memory,
)
from sppdet.training.sample_cache import SampleCache
from sppdet.training.window_labels import WindowLabels
from sppdet.utils import Checkpoint, Execution, entries_under, parallel_map, verify_tensors, write_tensors

logger = logging.getLogger(__name__)


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
class ClassRows:
    """The fixed rows of one class: their numbers, labels, dual variables, and the rest of the SVM (`svm.remainder`)."""

    rows: np.ndarray
    labels: np.ndarray
    alpha: np.ndarray
    rest: tuple[np.ndarray, float] | None


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
        self._of_images = WindowLabels(split, features, self.labels, settings, execution.seed)

    def train(self) -> LinearSVMs:
        """Train the SVMs of all classes.

        The checkpoint is written after every fit. A training that finds one of its key resumes from it and gets the
        same SVMs as without the interruption.
        """
        for label, count in zip(self.labels, self._of_images.objects):
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

    def relearn(self, split: FeatureSplit) -> LinearSVMs:
        """Fit the SVMs again after `train`, without the negatives that are none in images of which more is ignored.

        Nothing is mined: on BCCD with half of the labels, another pass over the images brought nothing.

        Args:
            split: the images of the training; more regions of them are ignored.
        """
        of_images = WindowLabels(split, self.features, self.labels, self.settings, self.execution.seed)
        for i, sample in enumerate(split.dataset):
            if len(sample.ignored):
                windows, boxes = of_images.windows(i, split.maps(i))
                self.cache.restrict(i, of_images.negatives(i, boxes, windows))
        return self._fit()

    def _fixed_rows(self, fixed: FixedRows, k: int) -> ClassRows:
        """Return the fixed rows of class k as its first fit takes them."""
        rows = np.flatnonzero(fixed.labels[:, k])
        labels = fixed.labels[rows, k].astype(np.int64)
        if fixed.start is None:
            return ClassRows(rows, labels, np.zeros(len(rows)), None)
        start = svm.Fit(fixed.start.weight[k], float(fixed.start.bias[k]), None, 0, True)
        alpha = svm.optimal_alpha(svm.margins(fixed.vectors, rows, start), labels, self.problem)
        return ClassRows(rows, labels, alpha, svm.remainder(fixed.vectors, rows, labels, alpha, start, self.problem))

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
        positives = parallel_map(self._of_images.positives, order.tolist(), workers, "positives", threads=True)
        locations, classes = zip(*positives)
        cache = SampleCache(np.concatenate(locations), np.concatenate(classes), len(self.labels))
        per_image = -(-count // len(order))
        images = order[: -(-count // per_image)] if per_image else order[:0]

        def draw(i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            windows, boxes = self._of_images.windows(i, self.split.maps(i))
            rows = np.random.default_rng([self.execution.seed, i]).permutation(len(windows.cells))[:per_image]
            rows = rows[np.argsort(rows)]
            return rows, locations_of(i, windows, rows), self._of_images.negatives(i, boxes, windows)[rows]

        drawn = parallel_map(draw, images.tolist(), workers, "random negatives", threads=True)
        for rows, row_locations, negative in drawn:
            cache.add(rows, row_locations, negative, np.zeros(negative.shape, np.float32))
        return cache

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
        boxes, classes = self._of_images.positive_boxes(i, maps)
        labels = -self._of_images.are_negatives(i, boxes).astype(np.int8)
        labels[np.arange(len(boxes)), classes] = 1
        positives = self.features.windows(boxes, self.split.size(i), maps)
        return (
            np.concatenate([locations_of(i, positives, positives.group), locations_of(i, windows, rows)]),
            np.concatenate([labels, -negative[rows].astype(np.int8)]),
            np.concatenate([np.zeros(labels.shape, bool), hard[rows]]),
            np.concatenate([np.zeros(len(labels), bool), drawn[rows]]),
        )

    def _scored(
        self, i: int, maps: Any, weights: Products, bias: np.ndarray
    ) -> tuple[Windows, np.ndarray, np.ndarray, np.ndarray]:
        """Return an image's windows, and each ``(U, K)``: may it be a negative, is it a hard one, and its margin."""
        windows, boxes = self._of_images.windows(i, maps)
        score = self.features.products(maps, windows, weights)[0] + bias
        negative = self._of_images.negatives(i, boxes, windows)
        hard = negative & (score > self.settings.hard_margin)
        self._drop_duplicates(windows, boxes, score, hard)
        return windows, negative, hard, score

    def _mine(self, images: list[int], fitted: LinearSVMs) -> None:
        """Add the hard negatives of some images to the cache."""
        weights = Products(fitted.weight, half=self.features.half)

        def find(i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
            windows, _, hard, score = self._scored(i, self.split.maps(i), weights, fitted.bias)
            rows = np.flatnonzero(hard.any(axis=1))
            return rows, locations_of(i, windows, rows), hard[rows], score[rows]

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
        held = [np.flatnonzero(of_class) for of_class in self.cache.held.T]
        limit = windows_in_memory(self.execution.memory_gb, self.features.dimension)
        fits = [fitted for group in class_groups(held, limit) for fitted in self._fit_classes(*group)]
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

    def _fit_classes(self, classes: list[int], rows: np.ndarray) -> list[svm.Fit]:
        """Fit the SVMs of some classes, whose windows are ``rows`` of the cache, and drop their easy negatives."""
        cache = self.cache
        solve = svm.SOLVERS[self.settings.solver]
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


def _rounds(order: np.ndarray, rounds: int) -> list[np.ndarray]:
    """Cut ``order`` after 1/2^(rounds-1), ..., 1/4, 1/2 of its length; empty pieces are left out."""
    cuts = [len(order) >> power for power in range(rounds - 1, 0, -1)]
    return [images for images in np.split(order, cuts) if len(images)]
