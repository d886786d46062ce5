"""Is the difference between two runs more than chance? mAP on test images drawn again and again, with replacement."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from sppdet.data import Dataset
from sppdet.detection import Detections
from sppdet.evaluation.run import last_measured
from sppdet.evaluation.voc import average_precision, evaluate_voc, flatten_detections, flatten_ground_truth, match_class
from sppdet.utils import SppdetError

_TIMES = 1000


def compare_runs(folder: str | Path, other: str | Path, overrides: Sequence[str] = (), times: int = _TIMES) -> str:
    """What the last evaluation of ``folder`` gained over that of ``other``, and how sure that is: mAP, and by class.

    The same images are drawn for both. Chance in training is not part of it: train again with another ``run.seed``
    to see that.

    Raises:
        SppdetError: runs that were not measured, or on different images or classes.
    """
    runs = [last_measured(path, overrides) for path in (folder, other)]
    first, second = (
        [run.dataset.classes, [(s.id, s.boxes.tolist(), s.labels.tolist()) for s in run.dataset]] for run in runs
    )
    if first != second:
        raise SppdetError(f"{other}: was measured on other images or classes than {folder}")
    dataset = runs[0].dataset
    results = [evaluate_voc(dataset, run.detections) for run in runs]
    found = [result["mAP"] for result in results]
    for run, figure in zip(runs, found):
        run.check(figure)
    if None in found:
        raise SppdetError(f"{folder}: without objects in its test images there is nothing to compare")
    counts = draw(len(dataset), times)
    drawn = [resampled(dataset, run.detections, counts) for run in runs]
    low, high = _range(mean_over_classes(drawn[0]) - mean_over_classes(drawn[1]))
    line = (
        f"mAP {found[0]:.2f}, of {other} {found[1]:.2f}: {found[0] - found[1]:+.2f}, "
        f"between {low:+.2f} and {high:+.2f} in 95% of {times} draws of {len(dataset)} test images"
    )
    return "\n".join([line, *_by_class(*(result["AP"] for result in results), drawn[0] - drawn[1])])


def _by_class(
    first: Mapping[str, float | None], second: Mapping[str, float | None], gains: np.ndarray
) -> Iterator[str]:
    """A row for each class that has objects, and what its mark means; ``gains``: ``(K, S)``."""
    width = max(len(name) for name in ["class", *first])
    yield f"{'class':<{width}} {'AP':>6} {'other':>6} {'gain':>6}  in 95% of the draws"
    for name, row in zip(first, gains):
        mine, others = first[name], second[name]
        if mine is not None and others is not None:
            low, high = _range(row)
            mark = "  *" if low > 0 or high < 0 else ""
            yield f"{name:<{width}} {mine:6.1f} {others:6.1f} {mine - others:+6.1f}  {low:+.1f} to {high:+.1f}{mark}"
    yield "*: so many draws lie on one side of 0; without any difference 1 class in 20 still would"


def _range(gains: np.ndarray) -> np.ndarray:
    return np.nanpercentile(gains, (2.5, 97.5))  # a draw may hold no object at all


def draw(images: int, times: int, seed: int = 0) -> np.ndarray:
    """``(times, images)``: how often each image is drawn when as many as there are are drawn with replacement."""
    return np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=times)


def resampled(dataset: Dataset, detections: Sequence[Detections], counts: np.ndarray) -> np.ndarray:
    """11-point AP ``(K, S)``, in percent, where image p of P counts ``counts[s, p]`` times, ``(S, P)`` in all.

    As :func:`sppdet.evaluation.evaluate_voc` of a data set that holds each image so often; NaN without any object of
    the class.
    """
    images, boxes, labels, scores = flatten_detections(detections)
    truth_images, truth_boxes, truth_labels, difficult = flatten_ground_truth(dataset)
    found = np.full((len(dataset.classes), len(counts)), np.nan)
    for k in range(len(dataset.classes)):
        mine, theirs = labels == k, truth_labels == k
        match = match_class(
            images[mine], boxes[mine], scores[mine], truth_images[theirs], truth_boxes[theirs], difficult[theirs]
        )
        ordered = images[mine][match.order]
        counted, hits = ordered[~match.ignored], match.true_positive[~match.ignored]
        objects = truth_images[theirs][~difficult[theirs]]
        for s, weight in enumerate(counts):
            if positives := weight[objects].sum():
                # The highest precisions are those at hits: the rest of the curve need not be looked at.
                true, all_found = np.cumsum(weight[counted[hits]]), np.cumsum(weight[counted])[hits]
                precision = true / np.maximum(all_found, 1)
                found[k, s] = 100 * average_precision(true / positives, precision, "11-point")
    return found


def mean_over_classes(found: np.ndarray) -> np.ndarray:
    """``(S,)``: the mean of those of ``(K, S)`` that are not NaN; NaN where all are."""
    known = ~np.isnan(found)
    return np.where(known, found, 0).sum(axis=0) / np.where(known.any(axis=0), known.sum(axis=0), np.nan)
