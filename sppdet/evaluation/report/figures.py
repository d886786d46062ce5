"""Numbers of a report: ranges that other test images could give, and counts at every score threshold.

Names: P images, K classes, T thresholds, S resampled sets of test images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sppdet.config import DEFAULT_THRESHOLD
from sppdet.data import Dataset
from sppdet.detection import Detections
from sppdet.evaluation.significance import (
    draw_image_counts,
    mean_over_classes,
    range_of_95,
    resampled_ap,
    resampled_coco_ap,
)
from sppdet.evaluation.voc import flatten_detections, flatten_ground_truth, match_label

_STEPS = 400  # thresholds at most
_WORK = 2e7  # detections that all draws together count; more detections get fewer draws
COCO_DRAWS = 300  # at most

Range = tuple[float, float]


@dataclass(frozen=True)
class Ranges:
    """Ranges that hold 95% of the figures of resampled test images, in percent; None where nothing can be measured.

    Attributes:
        draws: number of resampled sets S.
        ap: 11-point AP of each class.
        mean: 11-point mAP.
        coco: COCO's AP.
    """

    draws: int
    ap: list[Range | None]
    mean: Range | None
    coco: Range | None


def resampled_ranges(dataset: Dataset, detections: Sequence[Detections], coco_ap: float | None) -> Ranges:
    """Resample the test images and return the ranges of the figures.

    The range of COCO's AP is that of `resampled_coco_ap`, moved by the small difference between that figure and
    ``coco_ap``.

    Args:
        dataset: P samples of K classes.
        detections: P entries, in the order of the data set.
        coco_ap: COCO's AP in percent, or None without objects.
    """
    draws = int(np.clip(_WORK / max(1, sum(map(len, detections))), 100, 1000))
    counts = draw_image_counts(len(dataset), draws)
    ap = resampled_ap(dataset, detections, counts)
    coco = None
    if coco_ap is not None:
        weights = np.concatenate(
            [np.ones((1, len(dataset)), int), counts[:COCO_DRAWS]]
        )  # first, the images as they are
        means = resampled_coco_ap(dataset, detections, weights)
        coco = _range(np.clip(means[1:] + coco_ap - means[0], 0, 100))
    return Ranges(draws, [_range(values) for values in ap], _range(mean_over_classes(ap)), coco)


def _range(values: np.ndarray) -> Range | None:
    """Return the range that holds 95% of the values, or None if no value is known."""
    if np.isnan(values).all():
        return None
    low, high = range_of_95(values)
    return float(low), float(high)


@dataclass(frozen=True)
class ThresholdCounts:
    """How many detections of each class are right and wrong at each threshold of the score.

    Attributes:
        thresholds: ``(T,)`` ascending.
        hits: ``(K, T)`` objects that are found by detections with at least this score.
        false_alarms: ``(K, T)`` detections with at least this score that are wrong.
        objects: ``(K,)`` objects that count: those that are not difficult.
        start: the position in ``thresholds`` of the score from which the command ``detect`` shows objects.
    """

    thresholds: np.ndarray
    hits: np.ndarray
    false_alarms: np.ndarray
    objects: np.ndarray
    start: int

    @property
    def decimals(self) -> int:
        """The number of decimals that tell two thresholds apart."""
        step = float(np.diff(self.thresholds).min(initial=1.0))
        return max(0, -int(np.floor(np.log10(step) + 1e-9)))

    def best(self, label: int | None = None) -> float | None:
        """Return the threshold of the highest F1, the middle one of equals, of one class or of all together.

        None where no object is found at any threshold.
        """
        rows = slice(None) if label is None else slice(label, label + 1)
        hits = self.hits[rows].sum(axis=0)
        if not hits.any():
            return None
        _, _, f1 = precision_recall_f1(hits, self.false_alarms[rows].sum(axis=0), self.objects[rows].sum())
        equals = np.flatnonzero(f1 == np.nanmax(f1))
        return float(self.thresholds[equals[len(equals) // 2]])


def precision_recall_f1(
    hits: np.ndarray, false_alarms: np.ndarray, objects: np.ndarray | int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute precision, recall and F1, each in 0..1, elementwise; NaN where the figure is not defined.

    Examples:
        >>> precision, recall, f1 = precision_recall_f1(np.array([3, 0]), np.array([1, 0]), 4)
        >>> precision.tolist(), recall.tolist(), f1.tolist()
        ([0.75, nan], [0.75, 0.0], [0.75, 0.0])
    """
    detected, objects = hits + false_alarms, np.broadcast_to(objects, hits.shape)
    with np.errstate(invalid="ignore", divide="ignore"):
        return hits / detected, hits / objects, np.where(objects > 0, 2 * hits / (detected + objects), np.nan)


def count_at_thresholds(dataset: Dataset, detections: Sequence[Detections]) -> ThresholdCounts:
    """Count right and wrong detections (VOC's rule, IoU 0.5) at thresholds that span the scores in even steps.

    Args:
        dataset: P samples of K classes.
        detections: P entries, in the order of the data set.
    """
    flat, truth = flatten_detections(detections), flatten_ground_truth(dataset)
    scores, labels = flat[3].astype(np.float64), flat[2]
    thresholds = _even_steps(np.append(scores, DEFAULT_THRESHOLD))
    hits, false_alarms, objects = [], [], []
    for k in range(len(dataset.classes)):
        match = match_label(flat, truth, k)
        ranked = scores[labels == k][match.order]  # descending
        reached = len(ranked) - np.searchsorted(ranked[::-1], thresholds, side="left")
        right = np.append(0, np.cumsum(match.true_positive))[reached]
        hits.append(right)
        false_alarms.append(reached - right - np.append(0, np.cumsum(match.ignored))[reached])
        objects.append(match.positives)
    shape = (len(dataset.classes), len(thresholds))
    return ThresholdCounts(
        thresholds,
        np.array(hits, np.int64).reshape(shape),
        np.array(false_alarms, np.int64).reshape(shape),
        np.array(objects, np.int64),
        int(np.abs(thresholds - DEFAULT_THRESHOLD).argmin()),
    )


def _even_steps(values: np.ndarray) -> np.ndarray:
    """Return round numbers in even steps that cover the values, at most about ``_STEPS`` of them."""
    low, high = float(values.min()), float(values.max())
    rough = max(high - low, 1e-2) / _STEPS
    power = 10.0 ** np.floor(np.log10(rough))
    step = next(step for step in (power, 2 * power, 5 * power, 10 * power) if step >= rough * (1 - 1e-9))
    return np.round(np.arange(np.floor(low / step), np.ceil(high / step) + 1) * step, 12)


def object_counts(dataset: Dataset) -> np.ndarray:
    """Return the number of objects of each class that are not difficult, ``(K,)``."""
    _, _, labels, difficult = flatten_ground_truth(dataset)
    return np.bincount(labels[~difficult], minlength=len(dataset.classes))
