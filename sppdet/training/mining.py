"""Hard-negative mining: the SVMs of all classes from one stream of images, in bounded memory.

What is kept of a window is its location, 24 bytes. Its vector, 50 kB, is pooled again from the stored feature maps for
every fit, for as many classes at a time as ``memory_gb`` holds. So memory does not grow with the number of images, but
the maps are read again for every such group of classes. Where one group holds all classes, its vectors stay from fit to
fit, and only those of new windows are pooled.

Each class starts from random negatives. Then images are read in a fixed order; a negative that scores above
``hard_margin`` is hard and is kept. After growing shares of the images (1/16, 1/8, 1/4, 1/2, all) every class is fitted
again, and negatives that score below ``evict_margin`` are dropped. R-CNN and SPP_net do this class by class, with a fit
whenever 2000 negatives are new. Mirror images, where the split holds them, give positives and random negatives; hard
negatives are looked for in the images themselves, as twice as many are no better (docs/experiments/backbones.md).

The SVM of a class depends on the proposals and on the class's own objects, not on the other classes trained with it: a
class trained later and alone gets the same SVM. With fc layers after the pooling the last bits of products differ, as
these depend on the number of windows that go through a layer together.

Names: n windows, U of them with different cells, K classes, D features.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import TypeVar

import numpy as np
from safetensors import SafetensorError, safe_open

from sppdet.config import SvmSettings
from sppdet.detection import LinearSVMs
from sppdet.features import FeatureSplit, WindowFeatures
from sppdet.ops import Products
from sppdet.training import svm
from sppdet.training.locations import (
    LOCATION,
    ClassWindows,
    KeptVectors,
    class_groups,
    fits_apart,
    map_classes,
    pool_locations,
    windows_in_memory,
)
from sppdet.training.sample_cache import SampleCache
from sppdet.training.window_labels import ImageWindows, WindowLabels
from sppdet.utils import Checkpoint, Execution, entries_under, parallel_map, verify_tensors, write_tensors

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

# Fits before the last one stop at a tolerance that is so many times larger: they only find hard negatives. The SVMs are
# as accurate, in half of the passes over the vectors (docs/experiments/backbones.md).
_EARLY_TOLERANCE = 10


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

    def after(
        self, windows: int, rows: np.ndarray, labels: np.ndarray, alpha: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return rows, labels and dual variables of windows, then these; their vectors follow those of ``windows``."""
        return (
            np.concatenate([rows, windows + self.rows]),
            np.concatenate([labels, self.labels]),
            np.concatenate([alpha, self.alpha]),
        )


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
        self._kept: KeptVectors | None = None
        self._window_labels = WindowLabels.of_split(split, features, self.labels, settings, execution.seed)

    def train(self) -> LinearSVMs:
        """Train the SVMs of all classes.

        The checkpoint is written after every fit. A training that finds one of its key resumes from it and gets the
        same SVMs as without the interruption.
        """
        for label, count in zip(self.labels, self._window_labels.objects):
            if not count:
                name = self.split.dataset.classes[label]
                logger.warning("no training objects of %s: it will never be detected", name)
        checkpoint = self.execution.checkpoint
        order, mined = self._orders()
        passes = [_rounds(mined, self.settings.rounds if n == 0 else 1) for n in range(self.settings.passes)]
        rounds = [*chain(*passes)]
        early = replace(self.problem, tolerance=_EARLY_TOLERANCE * self.problem.tolerance)
        done, fitted = self._resume(checkpoint) if checkpoint else (0, None)
        if fitted is None:
            self.cache = self._start(order)
            fitted = self._fit(early)
        for number, images in enumerate(rounds):
            if number < done:
                continue
            if checkpoint:
                self._save(checkpoint, number, fitted)
            self._mine(images, fitted)
            fitted = self._fit(early if number + 1 < len(rounds) else self.problem)
        self._kept = None
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
            self._mine(np.arange(self.split.unmirrored), fitted)
            fitted = self._fit(self.problem)
        return fitted

    def relearn(self, split: FeatureSplit) -> LinearSVMs:
        """Fit the SVMs again after `train`, without the negatives that are none in images of which more is ignored.

        Nothing is mined: on BCCD with half of the labels, another pass over the images brought nothing.

        Args:
            split: the images of the training; more regions of them are ignored.
        """
        images = [i for i, sample in enumerate(split.dataset) if len(sample.ignored)]
        allowed = self._window_labels.each(
            ImageWindows.negatives, split, images, self.execution.workers, "regions that are ignored"
        )
        for i, negatives in zip(images, allowed):
            self.cache.restrict(i, negatives)
        fitted = self._fit(self.problem)
        self._kept = None
        return fitted

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
        windows = self._class_windows(k)
        return replace(windows, alpha=windows.alpha.astype(np.float32))

    def _class_windows(self, k: int) -> ClassWindows:
        """Return the windows of class k as they are in the cache."""
        index, labels = self.cache.problem(k)
        return ClassWindows(self.cache.locations[index], int((labels > 0).sum()), self.cache.alpha[index, k])

    def collect_windows(self, svms: LinearSVMs) -> None:
        """Collect windows for trained SVMs: positives, random negatives, and those that are hard for ``svms``.

        For SVMs of an earlier version, whose own windows were not kept. One pass over the images, no fit.
        """
        order, mined = self._orders()
        self.cache = self._start(order)
        self._mine(mined, svms)

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

    def _orders(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the images in the order in which they are read, and those of them that are no mirror images."""
        order = np.random.default_rng(self.execution.seed).permutation(len(self.split))
        return order, order[order < self.split.unmirrored]

    def _start(self, order: np.ndarray) -> SampleCache:
        """Return a cache of the positives of every class and of random windows, the same ones for all classes."""
        count = self.settings.random_negatives
        per_image = -(-count // len(order))
        drawn = {*order[: -(-count // per_image)].tolist()} if per_image else set()
        first = partial(ImageWindows.first_windows, drawn=drawn, count=per_image)
        positives, negatives = zip(*self._each(first, order, "positives and random negatives"))
        locations, classes = zip(*positives)
        cache = SampleCache(np.concatenate(locations), np.concatenate(classes), len(self.labels))
        for rows, row_locations, negative in filter(None, negatives):
            cache.add(rows, row_locations, negative, np.zeros(negative.shape, np.float32))
        return cache

    def _each(
        self, function: Callable[[ImageWindows], Result], images: Sequence[int] | np.ndarray, description: str
    ) -> Iterator[Result]:
        """Yield ``function(windows)`` for images of the split, in order."""
        numbers = [int(i) for i in images]
        return self._window_labels.each(function, self.split, numbers, self.execution.workers, description)

    def candidates(
        self, images: Sequence[int], svms: LinearSVMs, random: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
        """Yield the windows of images that a bank may hold, see `ImageWindows.candidates`.

        Args:
            images: their numbers.
            svms: the trained SVMs.
            random: number of random windows per image.
        """
        weights = Products(svms.weight, half=self.features.half)
        of_image = partial(ImageWindows.candidates, weights=weights, bias=svms.bias, random=random)
        return self._each(of_image, images, "choosing vectors for the bank")

    def _mine(self, images: np.ndarray, fitted: LinearSVMs) -> None:
        """Add the hard negatives of some images to the cache."""
        weights = Products(fitted.weight, half=self.features.half)
        find = partial(ImageWindows.hard_negatives, weights=weights, bias=fitted.bias)
        for rows, locations, hard, margins in self._each(find, images, f"mining {len(images)} images"):
            score = np.zeros(hard.shape, np.float32)
            score[hard] = margins
            self.cache.add(rows, locations, hard, score)
            for k in range(len(self.labels)):
                self.cache.trim(k, self.settings.max_negatives)
            self.cache.collect()

    def _fit(self, problem: svm.Problem) -> LinearSVMs:
        """Fit the SVMs of all classes to the windows of the cache."""
        apart = self.fixed is None and fits_apart(self.features)
        fits = self._fit_apart(problem) if apart else self._fit_in_groups(problem)
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

    def _fit_in_groups(self, problem: svm.Problem) -> list[svm.Fit]:
        """Fit the classes group by group, each window of a group pooled once."""
        held = [np.flatnonzero(of_class) for of_class in self.cache.held.T]
        limit = windows_in_memory(self.execution.memory_gb, self.features.dimension)
        groups = [*class_groups(held, limit)]
        if len(groups) > 1 or self.fixed is not None or self.features.head is not None:
            self._kept = None
        elif self._kept is None:
            self._kept = KeptVectors(self.split, self.features, limit, self.execution.workers)
        return [fitted for group in groups for fitted in self._fit_group(problem, *group)]

    def _fit_group(self, problem: svm.Problem, classes: list[int], rows: np.ndarray) -> list[svm.Fit]:
        """Fit some classes, whose windows are ``rows`` of the cache."""
        cache, fixed = self.cache, self.fixed
        position = np.zeros(len(cache.locations), np.int64)
        if self._kept is not None:
            position[rows] = self._kept.rows(cache.locations[rows])
            vectors = self._kept.vectors
        else:
            position[rows] = np.arange(len(rows))
            bank = None if fixed is None else fixed.vectors
            vectors = pool_locations(self.split, self.features, cache.locations[rows], self.execution.workers, bank)

        def fit_class(k: int) -> svm.Fit:
            index, labels = cache.problem(k)
            count, rows_of_class = len(index), position[index]
            if fixed is not None and fixed.start is not None and not count:
                return svm.Fit(fixed.start.weight[k], float(fixed.start.bias[k]), None, 0, True)
            alpha, rest = cache.alpha[index, k], None
            if fixed is not None:
                of_bank = self.fixed_rows[k]
                rows_of_class, labels, alpha = of_bank.after(len(rows), rows_of_class, labels, alpha)
                rest = of_bank.rest
            fitted = _solve(self.settings.solver, problem, vectors, rows_of_class, labels, alpha, rest)
            if fitted is None:
                return svm.never(self.features.dimension)
            if fixed is not None and fitted.alpha is not None:
                self.fixed_rows[k].alpha = fitted.alpha[count:]
            self._store_fit(k, index, fitted, svm.margins(vectors, rows_of_class[:count], fitted))
            return fitted

        return list(parallel_map(fit_class, classes, self.execution.workers, "fitting SVMs", threads=True))

    def _fit_apart(self, problem: svm.Problem) -> list[svm.Fit]:
        """Fit each class by itself, in a cluster."""
        windows = [self._class_windows(k) for k in range(len(self.labels))]
        work = partial(_solve_class, self.settings.solver, problem)
        results = map_classes(work, self.split, self.features, windows, self.execution.workers, "fitting SVMs")
        fits = []
        for k, (fitted, margins) in enumerate(results):
            if fitted is not None:
                self._store_fit(k, self.cache.problem(k)[0], fitted, margins)
            fits.append(fitted or svm.never(self.features.dimension))
        return fits

    def _store_fit(self, k: int, index: np.ndarray, fitted: svm.Fit, margins: np.ndarray) -> None:
        """Store what a fit of class k says of its windows, the rows ``index``, and drop the easy negatives."""
        if fitted.alpha is not None:
            self.cache.alpha[index, k] = fitted.alpha[: len(index)]
        self.cache.score[index, k] = margins
        self.cache.evict(k, self.settings.evict_margin)


def _rounds(order: np.ndarray, rounds: int) -> list[np.ndarray]:
    """Cut ``order`` after 1/2^(rounds-1), ..., 1/4, 1/2 of its length; empty pieces are left out."""
    cuts = [len(order) >> power for power in range(rounds - 1, 0, -1)]
    return [images for images in np.split(order, cuts) if len(images)]


def _solve(
    solver: str,
    problem: svm.Problem,
    vectors: np.ndarray,
    rows: np.ndarray,
    labels: np.ndarray,
    alpha: np.ndarray,
    rest: tuple[np.ndarray, float] | None = None,
) -> svm.Fit | None:
    """Fit the SVM of one class to ``rows`` of the vectors; None without positives."""
    if not (labels > 0).any() and rest is None:
        return None
    start = {"alpha": alpha, "fixed": rest} if solver == "dual" else {}
    return svm.SOLVERS[solver](vectors, rows, labels, problem, **start)


def _solve_class(
    solver: str, problem: svm.Problem, vectors: np.ndarray, windows: ClassWindows
) -> tuple[svm.Fit | None, np.ndarray]:
    """Fit the SVM of one class to all vectors; return it and their margins."""
    rows = np.arange(len(vectors))
    fitted = _solve(solver, problem, vectors, rows, windows.labels, windows.alpha)
    return fitted, np.zeros(0) if fitted is None else svm.margins(vectors, rows, fitted)
