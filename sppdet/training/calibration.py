"""The calibration of margins: how probable it is that a detection is right, learned on images that no SVM has seen.

The detections are those of `sppdet.training.held_out`. Of all folds together each class gets the curve, Platt's or that
of isotonic regression, which has the lower log loss in images that were left out of its fit. A class with few
detections is drawn to the curve of all classes. Where the network was trained on these images, as end to end,
probabilities come out too high.

Names: N detections, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from sppdet.config import DEFAULT_THRESHOLD
from sppdet.data import Dataset
from sppdet.detection import BoxRegressors, Calibration, Curve, Detector, LinearSVMs, Sigmoid, Steps
from sppdet.training.held_out import HeldOut, compare_with_objects
from sppdet.utils import SppdetError, parallel_map

# The curve that all classes together are drawn to, and of how many detections it takes the place in a fit.
_PRIOR, _PRIOR_WEIGHT = Sigmoid(2.0, 0.0), 20.0
_PRIOR_MARGINS = np.linspace(-1.5, 1.5, 21)  # where the prior's detections lie
_PRIOR_OBJECTS = 5.0  # of how many objects the shared threshold takes the place in that of a class
_LEAST_SLOPE = 0.05
_LEAST_FOR_STEPS = 50  # right ones, and wrong ones
_MOST_KNOTS = 32
_FROM_ZERO_AND_ONE = 1e-3  # isotonic regression ends in 0 and 1, of which nobody can be sure
_PARTS = 4  # of the images, by which curves are compared


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
        parallel_map(lambda i: detector.predict_pixels(dataset[i].open(), margin=lowest), range(len(dataset)), workers,
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
