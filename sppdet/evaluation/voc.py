"""PASCAL VOC's average precision, by the 11-point rule and by the area rule.

Names: P images, K classes, and of one class over all images D detections and G ground truth objects. Boxes are xyxy
    pixel
edges (`sppdet.ops.boxes`). Scores are SVM margins or any other real numbers, higher for a more certain detection.
Results are percentages unless said otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sppdet.data import Dataset
from sppdet.detection import Detections
from sppdet.ops import boxes as geometry
from sppdet.utils import SppdetError


@dataclass(frozen=True, eq=False)
class ClassMatch:
    """The detections of one class, highest score first, matched with the ground truth.

    Attributes:
        order: ``(D,)`` int64, the row of each detection in the input of `match_class`.
        true_positive: ``(D,)`` bool.
        ignored: ``(D,)`` bool, detections on a difficult object, which are neither right nor wrong. Detections that are
            neither ``true_positive`` nor ``ignored`` are false positives.
        overlap: ``(D,)`` float64, IoU of each detection with the object of its image that it overlaps best.
        nearest: ``(D,)`` int64, the row of that object in the input, -1 where the image has no object of the class.
        positives: number of objects that are not difficult.
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

    Detections are taken by descending score; detections of equal score keep their order. Each is compared with the
    object of its image that it overlaps best (the first of equally good ones), whether or not that object is difficult
    or already detected. A detection is a false positive if its IoU is below the threshold, ignored if the object is
    difficult, and a false positive if a detection of a higher score has that object, even where it overlaps another
    object enough.

    An IoU *equal* to the threshold counts, as in the devkit; py-faster-rcnn's ``voc_eval.py`` wants a higher one.

    Args:
        images: ``(D,)`` integers, the image of each detection.
        boxes: ``(D, 4)`` xyxy.
        scores: ``(D,)``, finite.
        truth_images: ``(G,)`` integers, the image of each object.
        truth_boxes: ``(G, 4)`` xyxy.
        difficult: ``(G,)`` bool.
        iou_threshold: in (0, 1].

    Returns:
        The outcome of every detection, highest score first.

    Raises:
        ValueError: for a threshold outside of (0, 1].

    Two detections of the same object, and one beside it:

    Examples:
        >>> object_box = np.array([[0, 0, 10, 10]])
        >>> boxes = np.array([[0, 0, 10, 8], [50, 0, 60, 10], [0, 0, 10, 10]])
        >>> match = match_class(np.zeros(3, int), boxes, np.array([1, 2, 3]), np.zeros(1, int), object_box, np.zeros(1))
        >>> match.order.tolist(), match.true_positive.tolist(), match.overlap.tolist()
        ([2, 1, 0], [True, False, False], [1.0, 0.0, 0.8])
    """
    if not 0 < iou_threshold <= 1:
        raise ValueError(f"iou_threshold must be in (0, 1], not {iou_threshold}")
    order = np.argsort(-np.asarray(scores), kind="stable")
    overlap, nearest = best_truth(
        np.asarray(images)[order], np.asarray(boxes)[order], np.asarray(truth_images), np.asarray(truth_boxes)
    )
    difficult = np.asarray(difficult, dtype=bool)
    true_positive, ignored = outcomes(overlap, nearest, difficult, iou_threshold)
    return ClassMatch(order, true_positive, ignored, overlap, nearest, int((~difficult).sum()))


def outcomes(
    overlap: np.ndarray, nearest: np.ndarray, difficult: np.ndarray, iou_threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """Tell which detections of one class are right and which are ignored, as `match_class` describes.

    Args:
        overlap: ``(D,)`` IoU of each detection with its object, highest score first.
        nearest: ``(D,)`` row of that object, -1 without one.
        difficult: ``(G,)`` bool.
        iou_threshold: in (0, 1].

    Returns:
        ``true_positive`` and ``ignored``, ``(D,)`` bool.
    """
    on_object = overlap >= iou_threshold
    ignored = np.zeros(len(overlap), dtype=bool)
    ignored[on_object] = difficult[nearest[on_object]]
    # A detection's choice of an object does not depend on other detections, so the devkit's loop over detections comes
    # to: of those that chose the same object, the first is right.
    hits = np.flatnonzero(on_object & ~ignored)
    _, first = np.unique(nearest[hits], return_index=True)
    true_positive = np.zeros(len(overlap), dtype=bool)
    true_positive[hits[first]] = True
    return true_positive, ignored


def match_label(
    detections: tuple[np.ndarray, ...], truth: tuple[np.ndarray, ...], label: int, iou_threshold: float = 0.5
) -> ClassMatch:
    """Match the detections of one class with its ground truth, picked from those of all classes.

    Args:
        detections: of all classes, as `flatten_detections` returns them.
        truth: of all classes, as `flatten_ground_truth` returns it.
        label: the class.
        iou_threshold: as in `match_class`.

    Returns:
        The match; its rows count the detections and the objects of this class alone.
    """
    images, boxes, labels, scores = detections
    truth_images, truth_boxes, truth_labels, difficult = truth
    rows, truth_rows = labels == label, truth_labels == label
    return match_class(
        images[rows],
        boxes[rows],
        scores[rows],
        truth_images[truth_rows],
        truth_boxes[truth_rows],
        difficult[truth_rows],
        iou_threshold,
    )


def right_and_wrong(
    detections: tuple[np.ndarray, ...], truth: tuple[np.ndarray, ...], label: int, iou_threshold: float = 0.5
) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the detections of one class that are right or wrong, best first; those of difficult objects are neither.

    Args:
        detections, truth, label, iou_threshold: as in `match_label`.

    Returns:
        Their rows ``(n,)`` among ``detections``; bool ``(n,)``, which are right; and the number of objects.
    """
    match = match_label(detections, truth, label, iou_threshold)
    counted = ~match.ignored
    rows = np.flatnonzero(detections[2] == label)[match.order][counted]
    return rows, match.true_positive[counted], match.positives


def best_truth(
    images: np.ndarray, boxes: np.ndarray, truth_images: np.ndarray, truth_boxes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Find the object of the same image that each detection overlaps best.

    Args:
        images: ``(D,)`` integers, the image of each detection.
        boxes: ``(D, 4)`` xyxy.
        truth_images: ``(G,)`` integers, the image of each object.
        truth_boxes: ``(G, 4)`` xyxy.

    Returns:
        ``(D,)`` float64 IoU with that object, and ``(D,)`` its row; 0 and -1 where the image has no object.
    """
    overlap, nearest = np.zeros(len(images)), np.full(len(images), -1)
    order, truth_order = (np.argsort(numbers, kind="stable") for numbers in (images, truth_images))
    sorted_images, sorted_truth_images = images[order], truth_images[truth_order]
    # float64: an IoU of exactly the threshold stays exact, also in images of more than 2**24 pixels.
    boxes, truth_boxes = boxes.astype(np.float64), truth_boxes.astype(np.float64)
    for image in np.unique(truth_images):
        rows = order[_rows_of(sorted_images, image)]
        truth_rows = truth_order[_rows_of(sorted_truth_images, image)]
        overlaps = geometry.iou(boxes[rows], truth_boxes[truth_rows])
        overlap[rows] = overlaps.max(axis=1)
        nearest[rows] = truth_rows[overlaps.argmax(axis=1)]
    return overlap, nearest


def _rows_of(ascending: np.ndarray, value: int) -> slice:
    """Return the slice of an ascending array that equals ``value``."""
    return slice(np.searchsorted(ascending, value, "left"), np.searchsorted(ascending, value, "right"))


def precision_recall(match: ClassMatch) -> tuple[np.ndarray, np.ndarray]:
    """Compute recall and precision after each detection that is not ignored.

    Returns:
        Recall ``(n,)``, ascending, and precision ``(n,)``, both in 0..1.

    Raises:
        ValueError: without positives, where recall is undefined.
    """
    if match.positives == 0:
        raise ValueError("a class without objects that count has no recall")
    hits = np.cumsum(match.true_positive[~match.ignored])
    return hits / match.positives, hits / np.arange(1, len(hits) + 1)


def average_precision(recall: np.ndarray, precision: np.ndarray, rule: str) -> float:
    """Compute the average precision of a precision-recall curve.

    Args:
        recall: ``(n,)``, ascending, in 0..1; n may be 0.
        precision: ``(n,)``, in 0..1.
        rule: ``11-point`` (VOC2007, and the tables of the R-CNN and SPP-net papers) is the mean over t = 0, 0.1 ... 1
            of the highest precision at a recall of t or more, 0 where the recall stays below t. ``area`` (VOC2010 and
            later) is the exact area under the precision after it is made monotone from the right.

    Returns:
        Average precision in 0..1.

    Raises:
        ValueError: for another rule.

    The thresholds are t = i / 10 rounded once, as recalls are, so that a recall of 3 in 10 reaches t = 0.3. ``0:0.1:1``
    in the devkit and ``np.arange(0, 1.1, 0.1)`` in py-faster-rcnn hold 0.30000000000000004, which it misses.

    Of two objects one is found, by the first detection:

    Examples:
        >>> recall, precision = np.array([0.5, 0.5]), np.array([1.0, 0.5])
        >>> average_precision(recall, precision, "area")
        0.5
        >>> round(average_precision(recall, precision, "11-point"), 4)  # t = 0 ... 0.5: 6 of 11
        0.5455
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
    """Compute VOC's mean average precision by both rules, in percent.

    A class whose objects are all difficult, or that has none, has no recall: its values are ``None`` (null in JSON) and
    the means leave it out. Without any other class the means are ``None`` too.

    Args:
        dataset: P samples of K classes.
        detections: P entries, in the order of ``dataset.samples``.
        iou_threshold: lowest IoU of a detection with the object it finds, in (0, 1].

    Returns:
        ``mAP`` (11-point) and ``mAP_area``; ``AP``, ``AP_area`` and ``recall`` (of all detections together), each a
        dict from class name to percentage.

    Raises:
        SppdetError: as `check_detections`.
    """
    check_detections(dataset, detections)
    counted = without_ignored(dataset, detections, iou_threshold)
    all_detections, all_objects = flatten_detections(counted), flatten_ground_truth(dataset)
    points: dict[str, float | None] = {}
    areas: dict[str, float | None] = {}
    recalls: dict[str, float | None] = {}
    for label, name in enumerate(dataset.classes):
        match = match_label(all_detections, all_objects, label, iou_threshold)
        if match.positives == 0:
            points[name] = areas[name] = recalls[name] = None
            continue
        recall, precision = precision_recall(match)
        points[name] = 100 * average_precision(recall, precision, "11-point")
        areas[name] = 100 * average_precision(recall, precision, "area")
        recalls[name] = 100 * float(recall[-1]) if len(recall) else 0.0
    return {
        "mAP": mean_over_known(points),
        "mAP_area": mean_over_known(areas),
        "AP": points,
        "AP_area": areas,
        "recall": recalls,
    }


def mean_over_known(values: Mapping[str, float | None]) -> float | None:
    """Return the mean of the values that are not ``None``, or ``None`` without any.

    Examples:
        >>> mean_over_known({"cat": 40.0, "cow": None, "dog": 60.0})
        50.0
    """
    known = [value for value in values.values() if value is not None]
    return float(np.mean(known)) if known else None


def flatten_detections(detections: Sequence[Detections]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Concatenate the detections of all images.

    Returns:
        Image number ``(n,)``, box ``(n, 4)`` xyxy, label ``(n,)`` and score ``(n,)`` of every detection.
    """
    images = np.repeat(np.arange(len(detections)), [len(entry.scores) for entry in detections])
    return (
        images,
        np.concatenate([np.zeros((0, 4), np.float32), *(entry.boxes for entry in detections)]),
        np.concatenate([np.zeros(0, np.int64), *(entry.labels for entry in detections)]),
        np.concatenate([np.zeros(0, np.float32), *(entry.scores for entry in detections)]),
    )


def flatten_ground_truth(dataset: Dataset) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Concatenate the objects of all images.

    Returns:
        Image number ``(n,)``, box ``(n, 4)`` xyxy, label ``(n,)`` and difficulty ``(n,)`` (bool) of every object.
    """
    samples = dataset.samples
    images = np.repeat(np.arange(len(samples)), [len(sample.labels) for sample in samples])
    return (
        images,
        np.concatenate([np.zeros((0, 4), np.float32), *(sample.boxes for sample in samples)]),
        np.concatenate([np.zeros(0, np.int64), *(sample.labels for sample in samples)]),
        np.concatenate([np.zeros(0, bool), *(sample.difficult for sample in samples)]),
    )


def only_looked_for(dataset: Dataset, detections: Sequence[Detections]) -> list[Detections]:
    """Leave out the detections of classes that were not looked for in their image: nobody knows if they are right."""
    return [entry[sample.was_looked_for(entry.labels)] for sample, entry in zip(dataset, detections, strict=True)]


def without_ignored(dataset: Dataset, detections: Sequence[Detections], iou_threshold: float = 0.5) -> list[Detections]:
    """Leave out detections in regions that are ignored for their class, unless they overlap one of its objects.

    Args:
        dataset: P samples.
        detections: P entries, in the order of ``dataset.samples``.
        iou_threshold: lowest IoU of a detection with the object it finds.
    """
    counted = []
    for sample, entry in zip(dataset, detections, strict=True):
        kept = np.ones(len(entry.labels), bool)
        for label in np.unique(entry.labels) if len(sample.ignored) else ():
            rows = np.flatnonzero(entry.labels == label)
            boxes, objects = entry.boxes[rows], sample.boxes[sample.labels == label]
            on_object = (geometry.iou(boxes, objects) >= iou_threshold).any(axis=1)
            kept[rows] = on_object | ~sample.are_ignored(boxes, label)
        counted.append(entry if kept.all() else entry[kept])
    return counted


def check_detections(dataset: Dataset, detections: Sequence[Detections]) -> None:
    """Refuse detections that do not fit ``dataset`` or that cannot be ranked.

    Raises:
        SppdetError: if the number of entries is not that of the samples, the arrays of an entry differ in length, a
            label is not that of a class, or a score or box is not finite.
    """
    if len(detections) != len(dataset.samples):
        raise SppdetError(
            f"detections: {len(detections)} entries for {len(dataset.samples)} images; "
            "give one entry, also an empty one, for each sample in the dataset's order"
        )
    for sample, entry in zip(dataset.samples, detections):
        where = f"detections of image {sample.id}"
        if not len(entry.boxes) == len(entry.labels) == len(entry.scores):
            raise SppdetError(f"{where}: boxes, labels and scores differ in length; give each detection all three")
        if not np.isfinite(entry.scores).all():
            raise SppdetError(f"{where}: a score is not a finite number; check the model that computed it")
        if not np.isfinite(entry.boxes).all():
            raise SppdetError(f"{where}: a box has a corner that is not finite; check the model that computed it")
        if not ((entry.labels >= 0) & (entry.labels < len(dataset.classes))).all():
            raise SppdetError(
                f"{where}: a label is outside 0..{len(dataset.classes) - 1}; "
                "evaluate with the classes that the model was trained on"
            )


def table(result: dict) -> str:
    """Format the result of `evaluate_voc` for a terminal: one line per class, then the means.

    A value that is ``None`` is shown as ``-``. With an entry ``objects``, the number of objects of each class is shown.
    """
    width, counts = max(len(name) for name in ["class", *result["AP"]]), result.get("objects")

    def line(name: str, columns: str, objects: object) -> str:
        return f"{name:<{width}} " + (f"{objects:>8} " if counts else "") + columns

    lines = [line("class", f"{'AP 11-pt':>8} {'AP area':>8} {'recall':>8}", "objects")]
    for name in result["AP"]:
        values = (result[key][name] for key in ("AP", "AP_area", "recall"))
        lines.append(line(name, " ".join(_percent(value) for value in values), counts and counts[name]))
    means = f"{_percent(result['mAP'])} {_percent(result['mAP_area'])}"
    return "\n".join([*lines, line("mean", means, counts and sum(counts.values()))])


def _percent(value: float | None) -> str:
    """Format a percentage in eight columns."""
    return f"{'-':>8}" if value is None else f"{value:8.1f}"
