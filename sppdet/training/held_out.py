"""Detections in images that the SVMs did not learn from, by folds of the training images.

For a fold the SVMs are fitted again, without the fold's windows, from the windows and the dual variables of their
training; then they detect in the images of the fold. The network and the box regression are those of the run, which
have seen the fold's images.

Names: n windows, N detections, F folds, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from sppdet.config import CalibrationSettings
from sppdet.data import Dataset, Sample, file_numbers
from sppdet.detection import Detections, Detector, LinearSVMs
from sppdet.evaluation import (
    detect_all,
    flatten_detections,
    flatten_ground_truth,
    only_looked_for,
    right_and_wrong,
    without_ignored,
)
from sppdet.features import FeatureSplit, WindowFeatures
from sppdet.training import svm
from sppdet.training.locations import (
    ClassWindows,
    class_groups,
    fits_apart,
    map_classes,
    pool_locations,
    share_locations,
    windows_in_memory,
)
from sppdet.training.mining import ClassRows
from sppdet.utils import Execution, parallel_map

_TOLERANCE, _EPOCHS = 0.1, 50  # the SVMs of a fold start near their end
_FITTING = "fitting SVMs without a fold"


@dataclass(frozen=True, eq=False)
class HeldOut:
    """The detections of one class in images that its SVM did not learn from.

    Attributes:
        margins: ``(N,)`` float32.
        right: ``(N,)`` bool. Detections of difficult objects and in ignored regions are neither right nor wrong, and
            left out.
        images: ``(N,)`` int64, the number of each detection's image.
        objects: how many there were to detect.
    """

    margins: np.ndarray
    right: np.ndarray
    images: np.ndarray
    objects: int

    @classmethod
    def join(cls, several: Sequence[HeldOut]) -> HeldOut:
        """Return the detections of several classes, or folds, together."""
        margins, right, images = (
            np.concatenate([getattr(one, name) for one in several]) for name in ("margins", "right", "images")
        )
        return cls(margins, right, images, sum(one.objects for one in several))

    def tensors(self) -> dict[str, np.ndarray]:
        """Return the values as arrays, for a file."""
        return {
            "margins": self.margins, "right": self.right, "images": self.images, "objects": np.array(self.objects),
        }  # fmt: skip

    @classmethod
    def restore(cls, tensors: dict[str, np.ndarray]) -> HeldOut:
        """Return the detections that `tensors` described."""
        return cls(tensors["margins"], tensors["right"], tensors["images"], int(tensors["objects"]))

    def __getitem__(self, rows: np.ndarray) -> HeldOut:
        return replace(self, margins=self.margins[rows], right=self.right[rows], images=self.images[rows])


@dataclass(frozen=True, eq=False)
class FoldDetections:
    """Detections in the images of a fold.

    Attributes:
        images: int64 ``(n,)``, the numbers of the images among those of all folds.
        dataset: these images.
        detections: those in each image, with labels of the data set.
    """

    images: np.ndarray
    dataset: Dataset
    detections: list[Detections]

    def compared(self, labels: Sequence[int]) -> list[HeldOut]:
        """Return the detections of each class of ``labels``, and which are right."""
        held_out = compare_with_objects(self.dataset, self.detections, labels)
        return [replace(of_class, images=self.images[of_class.images]) for of_class in held_out]


def hold_out(
    split: FeatureSplit,
    detector: Detector,
    windows: Sequence[ClassWindows],
    problem: svm.Problem,
    folds: list[np.ndarray],
    execution: Execution,
    fixed: tuple[np.ndarray, Sequence[ClassRows]] | None = None,
) -> list[FoldDetections]:
    """Detect in images with SVMs that did not learn from them.

    Args:
        split: the images that the SVMs were trained on; mirror images follow the others.
        detector: the trained detector of K classes.
        windows: what the SVM of each class was fitted to.
        problem: the parameters of the SVMs.
        folds: the images of each, in ascending order.
        execution: workers; memory for vectors.
        fixed: the vectors of a bank, and for each class the rows of them that it learns from.

    Returns:
        The detections in each fold.
    """
    fitted = _fit_without(split, detector.features, windows, problem, folds, execution, fixed)
    return [
        _detect_in_fold(split, replace(detector, classifier=svms), fold, execution) for svms, fold in zip(fitted, folds)
    ]


def briefly(problem: svm.Problem) -> svm.Problem:
    """Return the parameters of SVMs with less effort, for many fits that start near their end."""
    return replace(problem, tolerance=max(problem.tolerance, _TOLERANCE), max_epochs=_EPOCHS)


def join_folds(folds: Sequence[FoldDetections], labels: Sequence[int]) -> list[HeldOut]:
    """Return the detections of each class of ``labels`` in all folds."""
    return [HeldOut.join(of_class) for of_class in zip(*(fold.compared(labels) for fold in folds))]


def draw_folds(images: int, settings: CalibrationSettings, seed: int) -> list[np.ndarray]:
    """Return the images of each fold, at most ``settings.images`` in all folds together, or in one if it is larger.

    Examples:
        >>> [len(fold) for fold in draw_folds(10, CalibrationSettings(folds=4, images=400), seed=0)]
        [3, 3, 3, 1]
        >>> [len(fold) for fold in draw_folds(5000, CalibrationSettings(folds=4, images=400), seed=0)]
        [400]
    """
    size = min(-(-images // settings.folds), settings.images)
    count = min(-(-images // size), max(1, settings.images // size))
    order = np.random.default_rng(seed).permutation(images)
    return [np.sort(order[size * fold : size * (fold + 1)]) for fold in range(count)]


def of_files(samples: Sequence[Sample], draw: Callable[[int], list[np.ndarray]]) -> list[np.ndarray]:
    """Return the images of folds, in which all tiles of a file are together.

    Args:
        samples: the images.
        draw: returns the folds of a number of files.
    """
    files = file_numbers(samples)
    return [np.flatnonzero(np.isin(files, fold)) for fold in draw(len(np.unique(files)))]


def calibration_folds(samples: Sequence[Sample], settings: CalibrationSettings, seed: int) -> list[np.ndarray]:
    """Return the images of the folds that `draw_folds` draws, in which all tiles of a file are together."""

    def draw(files: int) -> list[np.ndarray]:
        return draw_folds(files, replace(settings, images=max(1, settings.images * files // len(samples))), seed)

    return of_files(samples, draw)


def _fit_without(
    split: FeatureSplit,
    features: WindowFeatures,
    windows: Sequence[ClassWindows],
    problem: svm.Problem,
    folds: list[np.ndarray],
    execution: Execution,
    fixed: tuple[np.ndarray, Sequence[ClassRows]] | None = None,
) -> list[LinearSVMs]:
    """Fit the SVMs of all classes once for each fold, without the windows in the fold's images."""
    if fixed is None and fits_apart(features):
        fit_folds = partial(_fit_folds, split.unmirrored, problem, folds)
        of_classes = map_classes(fit_folds, split, features, windows, execution.workers, _FITTING)
        return [svm.stack(of_fold) for of_fold in zip(*of_classes)]
    locations, rows = share_locations(windows)

    def fit_group(classes: list[int], shared: np.ndarray) -> list[svm.Fit]:
        """Fit some classes, fold by fold. Their vectors are freed before those of the next group are pooled."""
        bank, of_bank = (None, [None] * len(windows)) if fixed is None else fixed
        vectors = pool_locations(split, features, locations[shared], execution.workers, bank)
        fit = partial(_fit_one, vectors, len(shared), split.unmirrored, problem)
        items = [(fold, windows[k], np.searchsorted(shared, rows[k]), of_bank[k]) for fold in folds for k in classes]
        return list(parallel_map(fit, items, execution.workers, _FITTING, threads=True))

    fits: list[list[svm.Fit]] = [[] for _ in folds]
    for classes, shared in class_groups(rows, windows_in_memory(execution.memory_gb, features.dimension)):
        for number, fitted in enumerate(fit_group(classes, shared)):
            fits[number // len(classes)].append(fitted)
    return [svm.stack(of_fold) for of_fold in fits]


def _fit_folds(
    images: int, problem: svm.Problem, folds: list[np.ndarray], vectors: np.ndarray, windows: ClassWindows
) -> list[svm.Fit]:
    """Fit the SVM of one class, whose vectors are ``vectors``, once for each fold."""
    rows = np.arange(len(vectors))
    fits = [_fit_one(vectors, len(rows), images, problem, (fold, windows, rows, None)) for fold in folds]
    return [replace(fitted, alpha=None) for fitted in fits]  # not needed, and many numbers to send


def _fit_one(
    vectors: np.ndarray,
    pooled: int,
    images: int,
    problem: svm.Problem,
    item: tuple[np.ndarray, ClassWindows, np.ndarray, ClassRows | None],
) -> svm.Fit:
    """Fit the SVM of one class without the windows in a fold's images.

    The first ``pooled`` vectors are those of windows; a bank's follow. ``item`` is the fold, the windows, their rows,
    and the rows in the bank.
    """
    fold, windows, rows, of_bank = item
    keep = ~np.isin(windows.locations["image"] % images, fold)
    index, labels, alpha = rows[keep], windows.labels[keep], windows.alpha[keep]
    if of_bank is not None:
        index, labels, alpha = of_bank.after(pooled, index, labels, alpha)
    if not (labels > 0).any():
        return svm.never(vectors.shape[1])
    return svm.fit(vectors, index, labels, problem, alpha)


def _detect_in_fold(split: FeatureSplit, detector: Detector, fold: np.ndarray, execution: Execution) -> FoldDetections:
    """Detect in the images of a fold."""
    samples = tuple(split.dataset[int(i)] for i in fold)
    of_fold = split.of_images(samples, [split.names[int(i)] for i in fold])
    detections = detect_all(detector, [of_fold], execution.workers)[1]
    # The detector may have some of the classes alone.
    labels = np.array([split.dataset.classes.index(name) for name in detector.classes])
    in_dataset = [replace(entry, labels=labels[entry.labels], classes=split.dataset.classes) for entry in detections]
    return FoldDetections(fold, of_fold.dataset, in_dataset)


def compare_with_objects(
    dataset: Dataset, detections: Sequence[Detections], labels: Sequence[int] | None = None
) -> list[HeldOut]:
    """Tell which detections are right.

    Args:
        dataset: images that the SVMs did not learn from.
        detections: those of each image, with labels of the data set.
        labels: the classes to compare; None: all.

    Returns:
        The detections of each class.
    """
    known = without_ignored(dataset, only_looked_for(dataset, detections))
    detected, truth = flatten_detections(known), flatten_ground_truth(dataset)
    images, _, _, margins = detected
    held_out = []
    for label in range(len(dataset.classes)) if labels is None else labels:
        rows, right, objects = right_and_wrong(detected, truth, label)
        held_out.append(HeldOut(margins[rows], right, images[rows], objects))
    return held_out
