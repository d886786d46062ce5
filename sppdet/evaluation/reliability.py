"""How far the probabilities of detections can be trusted: the expected calibration error, and a reliability plot.

A detection is right as for VOC's average precision: it finds an object that no better detection has found.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sppdet.data import Dataset
from sppdet.detection import Detections
from sppdet.evaluation.voc import flatten_detections, flatten_ground_truth, right_and_wrong, without_ignored

BINS = 10  # of equal width
_LEAST = 0.1  # probability of the detections that count


def measure_reliability(dataset: Dataset, detections: Sequence[Detections], iou_threshold: float = 0.5) -> dict | None:
    """Compare the probabilities of detections with how often they are right.

    Args:
        dataset: P samples of K classes.
        detections: P entries with probabilities, in the order of ``dataset.samples``.
        iou_threshold: lowest IoU of a detection with the object it finds, in (0, 1].

    Returns:
        ``error``, the expected calibration error of the detections of a probability of 0.1 or more: the mean, over
        these, of the difference between probability and share of right ones in ten bins of equal width;
        ``error_of_all``, that of all detections, most of which are wrong and known to be; ``bins``, one entry per bin
        that holds detections: ``low`` and ``high``, the number of ``detections``, their mean ``probability`` and the
        share of ``right`` ones. All in 0..1. None without probabilities or without a detection.
    """
    detections = without_ignored(dataset, detections, iou_threshold)
    known = [entry.probabilities for entry in detections if entry.probabilities is not None]
    if len(known) < len(detections) or not sum(map(len, known)):
        return None
    every, truth, probabilities = flatten_detections(detections), flatten_ground_truth(dataset), np.concatenate(known)
    counted, right = [], []
    for label in range(len(dataset.classes)):
        rows, of_class, _ = right_and_wrong(every, truth, label, iou_threshold)
        counted.append(rows)
        right.append(of_class)
    probability, is_right = probabilities[np.concatenate(counted)].astype(np.float64), np.concatenate(right)
    likely = probability >= _LEAST
    return {
        "error": _error(probability[likely], is_right[likely]),
        "error_of_all": _error(probability, is_right),
        "bins": reliability_bins(probability, is_right),
    }


def expected_calibration_error(probability: np.ndarray, right: np.ndarray, bins: int = BINS) -> float:
    """Compute the expected calibration error (Naeini et al. 2015).

    Args:
        probability: ``(n,)`` in 0..1, n at least 1.
        right: ``(n,)`` bool.
        bins: their number; they have equal width.

    Returns:
        The mean over the detections of ``|mean probability - share of right ones|`` of their bin.

    Examples:
        >>> round(expected_calibration_error(np.array([0.9, 0.9, 0.2]), np.array([True, False, False])), 4)
        0.3333
    """
    entries = reliability_bins(probability, right, bins)
    return sum(entry["detections"] * abs(entry["probability"] - entry["right"]) for entry in entries) / len(right)


def reliability_bins(probability: np.ndarray, right: np.ndarray, bins: int = BINS) -> list[dict]:
    """Return the entries ``bins`` of `measure_reliability`."""
    number = np.minimum((probability * bins).astype(int), bins - 1)
    return [
        {
            "low": k / bins,
            "high": (k + 1) / bins,
            "detections": int((number == k).sum()),
            "probability": round(float(probability[number == k].mean()), 5),
            "right": round(float(right[number == k].mean()), 5),
        }
        for k in np.unique(number).tolist()
    ]


def _error(probability: np.ndarray, right: np.ndarray) -> float | None:
    """Return the expected calibration error, rounded; None without detections."""
    return round(expected_calibration_error(probability, right), 5) if len(right) else None
