"""Compare two runs and tell whether their difference in mAP is more than chance.

The test images are resampled with replacement many times (the bootstrap), and mAP of both runs is computed on each
resampled set. Names: P images, K classes, S resampled sets.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from sppdet.data import Dataset
from sppdet.detection import Detections
from sppdet.evaluation.run import read_last_evaluation
from sppdet.evaluation.voc import (
    average_precision,
    evaluate_voc,
    flatten_detections,
    flatten_ground_truth,
    match_label,
    outcomes,
)
from sppdet.utils import SppdetError

_DRAWS = 1000
_COCO_IOUS = np.arange(50, 100, 5) / 100


def compare_runs(
    folder: str | os.PathLike, other: str | os.PathLike, overrides: Sequence[str] = (), draws: int = _DRAWS
) -> str:
    """Compare the last evaluations of two runs: gain in mAP and in AP per class, with 95% ranges.

    The ranges say what other test images could change. Chance in training is not in them: to see that, train again with
    another ``run.seed``.

    Args:
        folder: the run whose gain is reported.
        other: the run that it is compared with.
        overrides: ``key=value`` settings for files of both runs that have moved since, such as ``data.root=...``.
        draws: number of resampled sets S.

    Returns:
        Lines for a terminal.

    Raises:
        SppdetError: if a run was not evaluated, or the runs were evaluated on different images or classes.
    """
    evaluations = [read_last_evaluation(path, overrides) for path in (folder, other)]
    truths = [
        (last.dataset.classes, [(s.id, s.boxes.tolist(), s.labels.tolist()) for s in last.dataset])
        for last in evaluations
    ]
    if truths[0] != truths[1]:
        raise SppdetError(
            f"{other}: was measured on other images or classes than {folder}; evaluate both on the same split"
        )
    dataset = evaluations[0].dataset
    results = [evaluate_voc(dataset, last.detections) for last in evaluations]
    for last, result in zip(evaluations, results):
        last.check_map(result["mAP"])
    value, other_value = (result["mAP"] for result in results)
    if value is None or other_value is None:
        raise SppdetError(f"{folder}: its test images have no objects, so there is nothing to compare")
    counts = draw_image_counts(len(dataset), draws)
    ap, other_ap = (resampled_ap(dataset, last.detections, counts) for last in evaluations)
    low, high = range_of_95(mean_over_classes(ap) - mean_over_classes(other_ap))
    line = (
        f"mAP {value:.2f}, of {other} {other_value:.2f}: {value - other_value:+.2f}, "
        f"between {low:+.2f} and {high:+.2f} in 95% of {draws} draws of {len(dataset)} test images"
    )
    return "\n".join([line, *_class_lines(results[0]["AP"], results[1]["AP"], ap - other_ap)])


def _class_lines(
    ap: Mapping[str, float | None], other_ap: Mapping[str, float | None], gains: np.ndarray
) -> Iterator[str]:
    """Yield a line for each class that has objects, and a legend; ``gains``: ``(K, S)``."""
    width = max(len(name) for name in ["class", *ap])
    yield f"{'class':<{width}} {'AP':>6} {'other':>6} {'gain':>6}  in 95% of the draws"
    for name, class_gains in zip(ap, gains):
        value, other_value = ap[name], other_ap[name]
        if value is not None and other_value is not None:
            low, high = range_of_95(class_gains)
            mark = "  *" if low > 0 or high < 0 else ""
            gain = f"{value - other_value:+6.1f}"
            yield f"{name:<{width}} {value:6.1f} {other_value:6.1f} {gain}  {low:+.1f} to {high:+.1f}{mark}"
    yield "*: the whole range is on one side of 0; without any real difference that still happens for 1 class in 20"


def range_of_95(values: np.ndarray) -> np.ndarray:
    """Return the ends of the range that holds the middle 95% of the values, NaN left out."""
    return np.nanpercentile(values, (2.5, 97.5))  # NaN: a draw may hold no object at all


def draw_image_counts(images: int, draws: int, seed: int = 0) -> np.ndarray:
    """Draw as many images as there are, with replacement, ``draws`` times.

    Returns:
        ``(draws, images)`` int: how often each image is drawn.

    Examples:
        >>> draw_image_counts(images=4, draws=2).sum(axis=1).tolist()
        [4, 4]
    """
    return np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=draws)


def resampled_ap(dataset: Dataset, detections: Sequence[Detections], counts: np.ndarray) -> np.ndarray:
    """Compute 11-point AP on data sets that hold each image several times or not at all.

    Args:
        dataset: P samples of K classes.
        detections: P entries, in the order of ``dataset.samples``.
        counts: ``(S, P)``, how often data set s holds image p.

    Returns:
        ``(K, S)`` percentages, those of `sppdet.evaluation.evaluate_voc`; NaN without any object of the class
        that counts.
    """
    all_detections, all_objects = flatten_detections(detections), flatten_ground_truth(dataset)
    images, _, labels, _ = all_detections
    truth_images, _, truth_labels, difficult = all_objects
    ap = np.full((len(dataset.classes), len(counts)), np.nan)
    for k in range(len(dataset.classes)):
        match = match_label(all_detections, all_objects, k)
        detection_images = images[labels == k][match.order][~match.ignored]
        hits = match.true_positive[~match.ignored]
        object_images = truth_images[(truth_labels == k) & ~difficult]
        for s, weight in enumerate(counts):
            if positives := weight[object_images].sum():
                # Precision is highest at hits, so the rest of the curve is not needed.
                true = np.cumsum(weight[detection_images[hits]])
                detected = np.cumsum(weight[detection_images])[hits]
                precision = true / np.maximum(detected, 1)
                ap[k, s] = 100 * average_precision(true / positives, precision, "11-point")
    return ap


def resampled_coco_ap(dataset: Dataset, detections: Sequence[Detections], counts: np.ndarray) -> np.ndarray:
    """Compute nearly COCO's AP on data sets that hold each image several times or not at all.

    It is the mean over COCO's ten IoU thresholds of AP by the area rule, with VOC's matching. pycocotools would take
    minutes; its figure for the data set as it is differs little.

    Args:
        dataset: P samples of K classes.
        detections: P entries, in the order of ``dataset.samples``.
        counts: ``(S, P)``, how often data set s holds image p.

    Returns:
        ``(S,)`` percentages, means over the classes that have objects; NaN without any.
    """
    all_detections, all_objects = flatten_detections(detections), flatten_ground_truth(dataset)
    images, _, labels, _ = all_detections
    truth_images, _, truth_labels, difficult = all_objects
    ap = np.full((len(dataset.classes), len(counts)), np.nan)
    for k in range(len(dataset.classes)):
        match, of_class = match_label(all_detections, all_objects, k), truth_labels == k
        positives = counts[:, truth_images[of_class & ~difficult]].sum(axis=1)
        weights = counts[:, images[labels == k][match.order]]
        total = np.zeros(len(counts))
        for iou_threshold in _COCO_IOUS:
            right, ignored = outcomes(match.overlap, match.nearest, difficult[of_class], iou_threshold)
            true, detected = weights[:, right].cumsum(axis=1), (weights * ~ignored).cumsum(axis=1)[:, right]
            precision = true / np.maximum(detected, 1)
            highest = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
            total += (weights[:, right] * highest).sum(axis=1)
        known = positives > 0
        ap[k, known] = 100 * total[known] / positives[known] / len(_COCO_IOUS)
    return mean_over_classes(ap)


def mean_over_classes(ap: np.ndarray) -> np.ndarray:
    """Compute the mean over classes of AP ``(K, S)``, NaN left out; ``(S,)``, NaN where all classes are.

    Examples:
        >>> mean_over_classes(np.array([[40.0, np.nan], [60.0, np.nan]])).tolist()
        [50.0, nan]
    """
    known = ~np.isnan(ap)
    return np.where(known, ap, 0).sum(axis=0) / np.where(known.any(axis=0), known.sum(axis=0), np.nan)
