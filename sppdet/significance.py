"""Is the difference between two runs more than chance? mAP on test pictures drawn again and again, with replacement."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sppdet.data import Dataset
from sppdet.detections import Detections
from sppdet.errors import SppdetError
from sppdet.evaluation import average_precision, evaluate_voc, flat, flat_truth, match_class
from sppdet.measure import last_measured

_TIMES = 1000


def compare_runs(folder: str | Path, other: str | Path, overrides: Sequence[str] = (), times: int = _TIMES) -> str:
    """A line that says what the last evaluation of ``folder`` gained over that of ``other``, and how sure that is.

    The same pictures are drawn for both. Chance in training is not part of it: train again with another ``run.seed``
    to see that.

    Raises:
        SppdetError: runs that were not measured, or on different pictures or classes.
    """
    runs = [last_measured(path, overrides) for path in (folder, other)]
    first, second = (
        [run.dataset.classes, [(s.id, s.boxes.tolist(), s.labels.tolist()) for s in run.dataset]] for run in runs
    )
    if first != second:
        raise SppdetError(f"{other}: was measured on other pictures or classes than {folder}")
    dataset = runs[0].dataset
    found = [evaluate_voc(dataset, run.detections)["mAP"] for run in runs]
    for run, figure in zip(runs, found):
        run.check(figure)
    if None in found:
        raise SppdetError(f"{folder}: without objects in its test pictures there is nothing to compare")
    counts = draw(len(dataset), times)
    gains = np.subtract(*(resampled(dataset, run.detections, counts) for run in runs))
    low, high = np.nanpercentile(gains, (2.5, 97.5))  # a draw may hold no object at all
    return (
        f"mAP {found[0]:.2f}, of {other} {found[1]:.2f}: {found[0] - found[1]:+.2f}, "
        f"between {low:+.2f} and {high:+.2f} in 95% of {times} draws of {len(dataset)} test pictures"
    )


def draw(pictures: int, times: int, seed: int = 0) -> np.ndarray:
    """``(times, pictures)``: how often each picture is drawn when as many as there are are drawn with replacement."""
    return np.random.default_rng(seed).multinomial(pictures, np.full(pictures, 1 / pictures), size=times)


def resampled(dataset: Dataset, detections: Sequence[Detections], counts: np.ndarray) -> np.ndarray:
    """11-point mAP ``(S,)``, in percent, where picture p of P counts ``counts[s, p]`` times, ``(S, P)`` in all.

    As :func:`sppdet.evaluation.evaluate_voc` of a data set that holds each picture so often; NaN without any object.
    """
    pictures, boxes, labels, scores = flat(detections)
    truth_pictures, truth_boxes, truth_labels, difficult = flat_truth(dataset)
    found = np.full((len(dataset.classes), len(counts)), np.nan)
    for k in range(len(dataset.classes)):
        mine, theirs = labels == k, truth_labels == k
        match = match_class(
            pictures[mine], boxes[mine], scores[mine], truth_pictures[theirs], truth_boxes[theirs], difficult[theirs]
        )
        ordered = pictures[mine][match.order]
        counted, hits = ordered[~match.ignored], match.true_positive[~match.ignored]
        objects = truth_pictures[theirs][~difficult[theirs]]
        for s, weight in enumerate(counts):
            if positives := weight[objects].sum():
                # The highest precisions are those at hits: the rest of the curve need not be looked at.
                true, all_found = np.cumsum(weight[counted[hits]]), np.cumsum(weight[counted])[hits]
                precision = true / np.maximum(all_found, 1)
                found[k, s] = 100 * average_precision(true / positives, precision, "11-point")
    known = ~np.isnan(found)
    return np.where(known, found, 0).sum(axis=0) / np.where(known.any(axis=0), known.sum(axis=0), np.nan)
