"""The calibration of margins: how probable it is that a detection is right, learned on images that no SVM has seen.

The training images are divided into folds. For a fold the SVMs are fitted again, without the fold's windows, from the
windows and the dual variables of their training; then they detect in the images of the fold. Of all folds together
each class gets the curve, Platt's or that of isotonic regression, which has the lower log loss in images that were left
out of its fit. A class with few detections is drawn to the curve of all classes.

The network and the box regression are those of the run, which have seen the fold's images. Where the network was
trained on these images, as end to end, probabilities come out too high.

Names: n windows, N detections, F folds, K classes, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from sppdet.config import DEFAULT_THRESHOLD, CalibrationSettings
from sppdet.data import Dataset
from sppdet.detection import BoxRegressors, Calibration, Curve, Detections, Detector, LinearSVMs, Sigmoid, Steps
from sppdet.evaluation import detect_all, flatten_detections, flatten_ground_truth, only_looked_for, right_and_wrong
from sppdet.features import FeatureSplit, WindowFeatures
from sppdet.training import svm
from sppdet.training.locations import ClassWindows, class_groups, pool_locations, share_locations, windows_in_memory
from sppdet.utils import Execution, SppdetError, parallel_map

# The curve that all classes together are drawn to, and of how many detections it takes the place in a fit.
_PRIOR, _PRIOR_WEIGHT = Sigmoid(2.0, 0.0), 20.0
_PRIOR_MARGINS = np.linspace(-1.5, 1.5, 21)  # where the prior's detections lie
_PRIOR_OBJECTS = 5.0  # of how many objects the shared threshold takes the place in that of a class
_LEAST_SLOPE = 0.05
_LEAST_FOR_STEPS = 50  # right ones, and wrong ones
_MOST_KNOTS = 32
_FROM_ZERO_AND_ONE = 1e-3  # isotonic regression ends in 0 and 1, of which nobody can be sure
_PARTS = 4  # of the images, by which curves are compared
# The SVMs of a fold start near their end.
_TOLERANCE, _EPOCHS = 0.1, 50


@dataclass(frozen=True, eq=False)
class HeldOut:
    """The detections of one class in images that its SVM did not learn from.

    Attributes:
        margins: ``(N,)`` float32.
        right: ``(N,)`` bool. Detections of difficult objects are neither right nor wrong, and left out.
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


# The curves


def fit_calibration(held_out: Sequence[HeldOut]) -> Calibration | None:
    """Fit the curves and the thresholds of all classes.

    Args:
        held_out: the detections of each class.

    Returns:
        The calibration; None without any detection.
    """
    every = HeldOut.join(held_out)
    if not len(every.margins):
        return None
    shared = _fit_sigmoid(every, _PRIOR)
    shared_threshold = _best_threshold(every, DEFAULT_THRESHOLD)
    curves, thresholds = zip(*(fit_class(one, shared, shared_threshold) for one in held_out))
    return Calibration(curves, thresholds, shared, shared_threshold)


def fit_class(held_out: HeldOut, shared: Curve, shared_threshold: float) -> tuple[Curve, float]:
    """Fit the curve and the threshold of one class.

    Args:
        held_out: the class's detections.
        shared: the curve that a class with few detections is drawn to.
        shared_threshold: the margin that the threshold of a class with few objects is drawn to.

    Returns:
        The curve, and the margin from which on detections are shown by default.
    """
    right = int(held_out.right.sum())
    fits: list[Callable[[HeldOut, Curve], Curve]] = [_fit_sigmoid]
    if min(right, len(held_out.right) - right) >= _LEAST_FOR_STEPS:
        fits.append(_fit_steps)
    losses = [_loss_left_out(held_out, fit, shared) for fit in fits] if len(fits) > 1 else [0.0]
    return fits[int(np.argmin(losses))](held_out, shared), _best_threshold(held_out, shared_threshold)


def _with_prior(held_out: HeldOut, prior: Curve) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return margins, which are right, and weights: of the detections, and of those that the prior stands for."""
    probabilities = prior(_PRIOR_MARGINS)
    each = _PRIOR_WEIGHT / len(_PRIOR_MARGINS)
    margins = np.concatenate([held_out.margins, _PRIOR_MARGINS, _PRIOR_MARGINS]).astype(np.float64)
    of_prior = np.repeat([True, False], len(_PRIOR_MARGINS))
    weights = [np.ones(len(held_out.margins)), each * probabilities, each * (1 - probabilities)]
    return margins, np.concatenate([held_out.right, of_prior]), np.concatenate(weights)


def _fit_sigmoid(held_out: HeldOut, prior: Curve) -> Sigmoid:
    """Fit Platt's curve."""
    from sklearn.linear_model import LogisticRegression  # takes as long to load as torch

    margins, right, weights = _with_prior(held_out, prior)
    fitted = LogisticRegression(C=1e6).fit(margins[:, None], right, sample_weight=weights)
    slope, intercept = float(fitted.coef_[0, 0]), float(fitted.intercept_[0])
    return Sigmoid(round(max(slope, _LEAST_SLOPE), 5), round(intercept, 5))


def _fit_steps(held_out: HeldOut, prior: Curve) -> Steps:
    """Fit the curve of isotonic regression, with few knots."""
    from sklearn.isotonic import IsotonicRegression

    margins, right, weights = _with_prior(held_out, prior)
    limits = {"y_min": _FROM_ZERO_AND_ONE, "y_max": 1 - _FROM_ZERO_AND_ONE}
    fitted = IsotonicRegression(**limits).fit(margins, right, sample_weight=weights)
    knots, first = np.unique(np.round(fitted.X_thresholds_, 5), return_index=True)
    values = np.round(fitted.y_thresholds_, 5)[first]
    rows = np.unique(np.linspace(0, len(knots) - 1, min(len(knots), _MOST_KNOTS)).round().astype(int))
    return Steps(tuple(knots[rows].tolist()), tuple(values[rows].tolist()))


def _loss_left_out(held_out: HeldOut, fit: Callable[[HeldOut, Curve], Curve], prior: Curve) -> float:
    """Return the log loss of curves in the images that were left out of their fits."""
    part = np.unique(held_out.images, return_inverse=True)[1] % _PARTS
    total = 0.0
    for left_out in range(_PARTS):
        rows = part == left_out
        curve = fit(held_out[~rows], prior)
        right = np.clip(curve(held_out.margins[rows]), 1e-6, 1 - 1e-6)
        total -= float(np.log(np.where(held_out.right[rows], right, 1 - right)).sum())
    return total


def _best_threshold(held_out: HeldOut, shared: float) -> float:
    """Return the margin where F1 is best, drawn to the shared one where there are few objects."""
    order = np.argsort(-held_out.margins, kind="stable")
    margins, hits = held_out.margins[order].astype(np.float64), np.cumsum(held_out.right[order])
    if not len(hits) or not hits[-1]:
        return float(shared)
    f1 = 2 * hits / (np.arange(1, len(hits) + 1) + held_out.objects)
    best = int(np.argmax(f1))
    own = margins[best] if best + 1 == len(margins) else (margins[best] + margins[best + 1]) / 2
    return round(float((held_out.objects * own + _PRIOR_OBJECTS * shared) / (held_out.objects + _PRIOR_OBJECTS)), 5)


# The detections in held-out images


def hold_out(
    split: FeatureSplit,
    images: int,
    detector: Detector,
    windows: Sequence[ClassWindows],
    features: WindowFeatures,
    problem: svm.Problem,
    settings: CalibrationSettings,
    execution: Execution,
) -> list[HeldOut]:
    """Detect in images with SVMs that did not learn from them.

    Args:
        split: the images that the SVMs were trained on.
        images: how many of them are no mirror images, which follow the others.
        detector: the trained detector of K classes.
        windows: what the SVM of each class was fitted to.
        features: how windows become the vectors of the SVMs.
        problem: the parameters of the SVMs.
        settings: number of folds and images.
        execution: seed of the folds; workers; memory for vectors.

    Returns:
        The detections of each class.
    """
    folds = draw_folds(images, settings, execution.seed)
    quick = replace(problem, tolerance=max(problem.tolerance, _TOLERANCE), max_epochs=_EPOCHS)
    fitted = _fit_without(split, images, windows, features, quick, folds, execution)
    of_folds = [
        detect_in_fold(split, replace(detector, classifier=svms), fold, execution) for svms, fold in zip(fitted, folds)
    ]
    return [HeldOut.join(of_class) for of_class in zip(*of_folds)]


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


def _fit_without(
    split: FeatureSplit,
    images: int,
    windows: Sequence[ClassWindows],
    features: WindowFeatures,
    problem: svm.Problem,
    folds: list[np.ndarray],
    execution: Execution,
) -> list[LinearSVMs]:
    """Fit the SVMs of all classes once for each fold, without the windows in the fold's images."""
    fits: list[list[svm.Fit]] = [[] for _ in folds]
    locations, rows = share_locations(windows)
    for classes, shared in class_groups(rows, windows_in_memory(execution.memory_gb, features.dimension)):
        vectors = pool_locations(split, features, locations[shared], execution.workers)
        fit = partial(_fit_one, vectors, images, problem)
        items = [(fold, windows[k], np.searchsorted(shared, rows[k])) for fold in folds for k in classes]
        results = parallel_map(fit, items, execution.workers, "fitting SVMs without a fold", threads=True)
        for number, fitted in enumerate(results):
            fits[number // len(classes)].append(fitted)
    return [svm.stack(of_fold) for of_fold in fits]


def _fit_one(
    vectors: np.ndarray, images: int, problem: svm.Problem, item: tuple[np.ndarray, ClassWindows, np.ndarray]
) -> svm.Fit:
    """Fit the SVM of one class without the windows in a fold's images; ``item`` is the fold, the class, its rows."""
    fold, windows, rows = item
    keep = ~np.isin(windows.locations["image"] % images, fold)
    labels = windows.labels[keep]
    if not (labels > 0).any():
        return svm.never(vectors.shape[1])
    return svm.fit(vectors, rows[keep], labels, problem, windows.alpha[keep])


def detect_in_fold(split: FeatureSplit, detector: Detector, fold: np.ndarray, execution: Execution) -> list[HeldOut]:
    """Detect in the images of a fold, and compare with the objects; return the detections of each class."""
    samples = tuple(split.dataset[int(i)] for i in fold)
    of_fold = replace(split, dataset=replace(split.dataset, samples=samples), names=[split.names[int(i)] for i in fold])
    detections = detect_all(detector, [of_fold], execution.workers)[1]
    # The detector may have some of the classes alone.
    labels = np.array([split.dataset.classes.index(name) for name in detector.classes])
    in_dataset = [replace(entry, labels=labels[entry.labels], classes=split.dataset.classes) for entry in detections]
    held_out = compare_with_objects(of_fold.dataset, in_dataset, labels.tolist())
    return [replace(of_class, images=fold[of_class.images]) for of_class in held_out]


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
    detected, truth = flatten_detections(only_looked_for(dataset, detections)), flatten_ground_truth(dataset)
    images, _, _, margins = detected
    held_out = []
    for label in range(len(dataset.classes)) if labels is None else labels:
        rows, right, objects = right_and_wrong(detected, truth, label)
        held_out.append(HeldOut(margins[rows], right, images[rows], objects))
    return held_out


def calibrate_detector(detector: Detector, dataset: Dataset, workers: int = 0) -> Detector:
    """Return a detector with probabilities and thresholds that are learned from images it was not trained on.

    Args:
        detector: a detector with SVMs.
        dataset: such images, whose classes are those of the detector.
        workers: images at a time; 0 for one per core.

    Raises:
        SppdetError: the classes differ, or nothing is detected.
    """
    if dataset.classes != detector.classes:
        raise SppdetError(
            f"data set: its classes are {', '.join(dataset.classes)}, those of the detector are "
            f"{', '.join(detector.classes)}; read it with classes=detector.classes"
        )
    lowest = detector.detection.min_margin
    detections = list(
        parallel_map(lambda i: detector.predict(dataset[i].read(), margin=lowest), range(len(dataset)), workers,
                     "detecting", threads=True)
    )  # fmt: skip
    calibration = fit_calibration(compare_with_objects(dataset, detections))
    if calibration is None:
        raise SppdetError("data set: nothing was detected in its images; give images that hold the classes")
    return replace(detector, calibration=calibration)


def of_classes(detector: Detector, labels: Sequence[int]) -> Detector:
    """Return the detector of some of the classes of a detector with SVMs."""
    rows = list(labels)

    def of_svms(svms: LinearSVMs) -> LinearSVMs:
        return LinearSVMs(svms.weight[rows], svms.bias[rows])

    assert isinstance(detector.classifier, LinearSVMs)
    boxes, images = detector.regressors, detector.image_svms
    return replace(
        detector,
        classes=tuple(detector.classes[k] for k in rows),
        classifier=of_svms(detector.classifier),
        regressors=None if boxes is None else BoxRegressors(boxes.weight[rows], boxes.bias[rows], boxes.of_head),
        image_svms=None if images is None else of_svms(images),
        calibration=None,
    )
