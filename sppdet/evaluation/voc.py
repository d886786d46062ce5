"""How good detections are: VOC's average precision (11-point and area), and its development kit's files.

Names used below: P images, K classes, D detections and G ground truth objects of one class over all
images. Boxes are ours (:mod:`sppdet.ops.boxes`), scores are margins (any real number, larger is surer), results
are percentages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sppdet.detection import Detections
from sppdet.ops import boxes as geometry
from sppdet.utils import SppdetError

if TYPE_CHECKING:
    from sppdet.data import Dataset

# --- VOC ------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ClassMatch:
    """What became of the detections of one class, in descending order of score.

    Attributes:
        order: ``(D,)`` int64, row of each in the input of :func:`match_class`.
        true_positive: ``(D,)`` bool.
        ignored: ``(D,)`` bool, on a difficult object: neither right nor wrong. The rest are false positives.
        overlap: ``(D,)`` IoU of each with the object that it looks at.
        nearest: ``(D,)`` row of that object in the input, -1 where the image has none of the class.
        positives: number of ground truth objects that are not difficult.
    """

    order: np.ndarray
    true_positive: np.ndarray
    ignored: np.ndarray
    overlap: np.ndarray
    nearest: np.ndarray
    positives: int


def match_class(
    images: np.ndarray,
    boxes: np.ndarray,
    scores: np.ndarray,
    truth_images: np.ndarray,
    truth_boxes: np.ndarray,
    difficult: np.ndarray,
    iou_threshold: float = 0.5,
) -> ClassMatch:
    """Match the detections of one class with its ground truth as the VOC devkit does (``VOCevaldet.m``).

    Detections are taken by descending score; equal scores keep their order. Each looks at the object of its
    image that it overlaps best, taken or not, difficult or not (the first of equals). Below the threshold
    it is a false positive; on a difficult object it is ignored; on an object that a surer detection has found
    it is a false positive, even where another object overlaps it enough. The devkit counts an IoU *equal* to
    the threshold as found; py-faster-rcnn's ``voc_eval.py`` wants more.

    Args:
        images: ``(D,)`` integers, the image of each detection.
        boxes: ``(D, 4)``.
        scores: ``(D,)``, finite.
        truth_images: ``(G,)`` integers.
        truth_boxes: ``(G, 4)``.
        difficult: ``(G,)`` bool.
        iou_threshold: in (0, 1].

    Raises:
        ValueError: for a threshold outside of (0, 1].
    """
    if not 0 < iou_threshold <= 1:
        raise ValueError(f"iou_threshold must be in (0, 1], not {iou_threshold}")
    order = np.argsort(-np.asarray(scores), kind="stable")
    overlap, nearest = best_truth(
        np.asarray(images)[order],
        np.asarray(boxes)[order],
        np.asarray(truth_images),
        np.asarray(truth_boxes),
    )
    difficult = np.asarray(difficult, dtype=bool)
    found = overlap >= iou_threshold
    ignored = np.zeros(len(order), dtype=bool)
    ignored[found] = difficult[nearest[found]]
    # No detection's choice of an object depends on the others: the devkit's loop is "the first one wins".
    hits = np.flatnonzero(found & ~ignored)
    _, first = np.unique(nearest[hits], return_index=True)
    true_positive = np.zeros(len(order), dtype=bool)
    true_positive[hits[first]] = True
    return ClassMatch(order, true_positive, ignored, overlap, nearest, int((~difficult).sum()))


def best_truth(images, boxes, truth_images, truth_boxes) -> tuple[np.ndarray, np.ndarray]:
    """``(D,)`` IoU of each detection with the best object of its image, and its row (-1: none).

    Arguments as those of :func:`match_class`.
    """
    overlap, nearest = np.zeros(len(images)), np.full(len(images), -1)
    rows, truth_rows = (np.argsort(p, kind="stable") for p in (images, truth_images))
    sorted_images, sorted_truth = images[rows], truth_images[truth_rows]
    # float64: an IoU of exactly the threshold stays that, also in images of more than 2**24 pixels.
    boxes, truth_boxes = boxes.astype(np.float64), truth_boxes.astype(np.float64)
    for image in np.unique(truth_images):
        mine = rows[_run(sorted_images, image)]
        theirs = truth_rows[_run(sorted_truth, image)]
        overlaps = geometry.iou(boxes[mine], truth_boxes[theirs])
        overlap[mine] = overlaps.max(axis=1)
        nearest[mine] = theirs[overlaps.argmax(axis=1)]
    return overlap, nearest


def _run(ordered: np.ndarray, value) -> slice:
    """Where ``value`` stands in an ascending array."""
    return slice(np.searchsorted(ordered, value, "left"), np.searchsorted(ordered, value, "right"))


def precision_recall(match: ClassMatch) -> tuple[np.ndarray, np.ndarray]:
    """Recall and precision after each detection that counts, both ``(n,)``, in 0..1; recall ascends.

    Raises:
        ValueError: without positives, where recall means nothing.
    """
    if match.positives == 0:
        raise ValueError("a class without objects that count has no recall")
    true = np.cumsum(match.true_positive[~match.ignored])
    return true / match.positives, true / np.arange(1, len(true) + 1)


def average_precision(recall: np.ndarray, precision: np.ndarray, rule: str) -> float:
    """Average precision, 0..1, of a curve ``recall (n,)`` (ascending), ``precision (n,)``; n may be 0.

    ``11-point`` (VOC2007; the rule of the tables of R-CNN and SPP-net): the mean over t = 0, 0.1 ... 1 of the
    largest precision at a recall of t or more, 0 where there is none. ``area`` (VOC2010 and later): the area
    under the precision made monotone from the right, exact, not sampled.

    The thresholds are t = i / 10 rounded once, as recalls are, so that a recall of 3 in 10 reaches t = 0.3.
    The programs' ``0:0.1:1`` and ``np.arange(0, 1.1, 0.1)`` hold 0.30000000000000004 and miss it.

    Raises:
        ValueError: for another rule.
    """
    recall, precision = np.asarray(recall, np.float64), np.asarray(precision, np.float64)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    if rule == "11-point":
        reached = np.searchsorted(recall, np.arange(11) / 10, side="left")
        return float(np.append(envelope, 0)[reached].mean())
    if rule == "area":
        return float((np.diff(recall, prepend=0) * envelope).sum())
    raise ValueError(f"rule must be '11-point' or 'area', not {rule!r}")


def evaluate_voc(dataset: Dataset, detections: Sequence[Detections], iou_threshold: float = 0.5) -> dict:
    """VOC's mean average precision by both rules, in percent.

    A class without an object that counts (none, or difficult ones alone) has no recall: its values are
    ``None`` (null in JSON) and the means leave it out; with no class left they are ``None`` too.

    Args:
        dataset: P samples of K classes.
        detections: P entries in the order of ``dataset.samples``.
        iou_threshold: what counts as found, in (0, 1].

    Returns:
        ``mAP`` (11-point) and ``mAP_area``; ``AP``, ``AP_area`` and ``recall`` (of all detections together),
        each a dict by class name.

    Raises:
        SppdetError: where detections do not fit the dataset, or hold a number that is not finite.
    """
    check_detections(dataset, detections)
    images, boxes, labels, scores = flatten_detections(detections)
    truth_images, truth_boxes, truth_labels, difficult = flatten_ground_truth(dataset)
    ap, area, recalls = {}, {}, {}
    for label, name in enumerate(dataset.classes):
        mine, theirs = labels == label, truth_labels == label
        match = match_class(
            images[mine],
            boxes[mine],
            scores[mine],
            truth_images[theirs],
            truth_boxes[theirs],
            difficult[theirs],
            iou_threshold,
        )
        if match.positives == 0:
            ap[name] = area[name] = recalls[name] = None
            continue
        recall, precision = precision_recall(match)
        ap[name] = 100 * average_precision(recall, precision, "11-point")
        area[name] = 100 * average_precision(recall, precision, "area")
        recalls[name] = 100 * float(recall[-1]) if len(recall) else 0.0
    return {"mAP": mean_over_known(ap), "mAP_area": mean_over_known(area), "AP": ap, "AP_area": area, "recall": recalls}


def mean_over_known(values: dict[str, float | None]) -> float | None:
    known = [value for value in values.values() if value is not None]
    return float(np.mean(known)) if known else None


def flatten_detections(detections: Sequence[Detections]) -> tuple[np.ndarray, ...]:
    """Image, box, label and score of every detection of every image."""
    images = np.repeat(np.arange(len(detections)), [len(d.scores) for d in detections])
    return (
        images,
        np.concatenate([np.zeros((0, 4), np.float32), *(d.boxes for d in detections)]),
        np.concatenate([np.zeros(0, np.int64), *(d.labels for d in detections)]),
        np.concatenate([np.zeros(0, np.float32), *(d.scores for d in detections)]),
    )


def flatten_ground_truth(dataset: Dataset) -> tuple[np.ndarray, ...]:
    """Image, box, label and difficulty of every object of every image."""
    samples = dataset.samples
    images = np.repeat(np.arange(len(samples)), [len(s.labels) for s in samples])
    return (
        images,
        np.concatenate([np.zeros((0, 4), np.float32), *(s.boxes for s in samples)]),
        np.concatenate([np.zeros(0, np.int64), *(s.labels for s in samples)]),
        np.concatenate([np.zeros(0, bool), *(s.difficult for s in samples)]),
    )


def check_detections(dataset: Dataset, detections: Sequence[Detections]) -> None:
    """Refuse detections that do not belong to ``dataset``, or that no order can be made of.

    Raises:
        SppdetError: another number of entries than samples, fields of different lengths, a label that is no
            class, a score or corner that is not finite.
    """
    if len(detections) != len(dataset.samples):
        raise SppdetError(
            f"detections: {len(detections)} entries for {len(dataset.samples)} images; "
            "give one entry, also an empty one, for each sample in the dataset's order"
        )
    for sample, found in zip(dataset.samples, detections):
        where = f"detections of image {sample.id}"
        if not len(found.boxes) == len(found.labels) == len(found.scores):
            raise SppdetError(f"{where}: boxes, labels and scores differ in length; give each detection all three")
        if not np.isfinite(found.scores).all():
            raise SppdetError(f"{where}: a score is not a finite number; check the model that gave it")
        if not np.isfinite(found.boxes).all():
            raise SppdetError(f"{where}: a box has a corner that is not finite; check the model that gave it")
        if not ((found.labels >= 0) & (found.labels < len(dataset.classes))).all():
            raise SppdetError(
                f"{where}: a label is outside 0..{len(dataset.classes) - 1}; "
                "evaluate with the classes that the model was trained on"
            )


# --- Files ----------------------------------------------------------------------------------------


# --- Terminal -------------------------------------------------------------------------------------


def table(result: dict) -> str:
    """The result of :func:`evaluate_voc` (a line a class, then the means) or of ``evaluate_coco`` as text.

    A value that is ``None`` is shown as ``-``.
    """
    if not isinstance(result["AP"], dict):
        return "\n".join(f"{name:<9} {_percent(value)}" for name, value in result.items())
    width = max(len(name) for name in ["class", *result["AP"]])
    lines = [f"{'class':<{width}} {'AP 11-pt':>8} {'AP area':>8} {'recall':>8}"]
    for name in result["AP"]:
        values = (result[key][name] for key in ("AP", "AP_area", "recall"))
        lines.append(f"{name:<{width}} " + " ".join(_percent(value) for value in values))
    lines.append(f"{'mean':<{width}} {_percent(result['mAP'])} {_percent(result['mAP_area'])}")
    return "\n".join(lines)


def _percent(value: float | None) -> str:
    return f"{'-':>8}" if value is None else f"{value:8.1f}"
