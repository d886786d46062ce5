"""Where the errors of a detector come from, and what mean average precision would be without each kind of them.

Of a class with G objects that count, two groups are sorted:

- the G detections with the highest scores, with which a perfect detector would find every object (Hoiem et al. 2012,
  Diagnosing Error in Object Detectors, section 2). Each is correct or one of ``KINDS``;
- the G objects. Each is found by one of those detections or missed in one of the ways of ``MISSED``.

Difficult objects, and detections on them, are in neither group, as in VOC.

The gains are TIDE's (Bolya et al. 2020, arXiv 2008.08115, section 3): errors of one kind are repaired in the whole list
of detections, and everything else stays. The gains do not add up, because repairing one kind changes what the others
cost, and because an object that is missed often has a badly placed detection beside it. TIDE's two totals are here too:
mAP without any false positive, and without any false negative.

Names: K classes, and of one class D detections that count and G objects that count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from sppdet.data import Dataset
from sppdet.detection import Detections
from sppdet.evaluation.voc import (
    average_precision,
    best_truth,
    check_detections,
    flatten_detections,
    flatten_ground_truth,
    match_label,
    mean_over_known,
)
from sppdet.proposals import best_overlaps

FOUND_IOU = 0.5  # lowest IoU with which a detection finds an object
NEAR_IOU = 0.1  # lowest IoU with which a detection is badly placed, rather than on something else

# The ways in which a detection is wrong. The first that applies counts, as in Hoiem et al., where the first two are
# one. What they call an error with another object is divided as TIDE does it, into ``misclassified`` and ``both``.
KINDS = {
    "localisation": "on an object of the class, but badly placed: IoU in [0.1, 0.5)",
    "duplicate": "on an object that a detection of a higher score has found",
    "similar": "on an object of a similar class: IoU 0.1 or more",
    "misclassified": "on an object of another class: IoU 0.5 or more",
    "both": "on an object of another class, and badly placed: IoU in [0.1, 0.5)",
    "background": "on nothing that is annotated",
}
# The ways in which an object is not found by the G detections with the highest scores.
MISSED = {
    "outranked": "found, but not among the G highest scores, where the class has G objects",
    "undetected": "a proposal covers it, but no detection: below the threshold, suppressed or moved away",
    "unproposed": "no proposal with IoU 0.5 or more, and no detection",
}
# TIDE's totals: all errors among the detections, and all among the objects.
TOTALS = {
    "false positives": "all wrong detections",
    "false negatives": "all objects that no detection finds",
}
OUTCOMES = ("correct", *KINDS)  # of a detection; ClassErrors.outcome holds positions in this tuple
STATES = ("found", *MISSED)  # of an object; ClassErrors.state holds positions in this tuple
_NOT_FOUND = np.iinfo(np.int64).max  # in place of the rank of the detection that found an object

SIMILAR = (  # Hoiem et al., section 2, for VOC's classes
    {"aeroplane", "bicycle", "boat", "bus", "car", "motorbike", "train"},
    {"bird", "cat", "cow", "dog", "horse", "sheep", "person"},
    {"chair", "diningtable", "sofa"},
    {"aeroplane", "bird"},
)


def similar_classes(classes: Sequence[str]) -> np.ndarray:
    """Return which classes are similar to which: ``(K, K)`` bool. No others than VOC's are.

    Examples:
        >>> similar_classes(["cow", "sheep", "chair"]).tolist()
        [[False, True, False], [True, False, False], [False, False, False]]
    """
    return np.array([[a != b and any({a, b} <= group for group in SIMILAR) for b in classes] for a in classes], bool)


@dataclass(frozen=True, eq=False)
class ClassErrors:
    """The errors among the detections of one class, highest score first, and the objects that are missed.

    Attributes:
        rows: ``(D,)`` the row of each detection among those of all classes.
        outcome: ``(D,)`` positions in ``OUTCOMES``.
        target: ``(D,)`` for a localisation error the row of the object that a repair moves it onto, else -1.
        confused: ``(D,)`` for a detection on an object of another class the label of that class, else -1.
        state: ``(G,)`` positions in ``STATES``.
    """

    rows: np.ndarray
    outcome: np.ndarray
    target: np.ndarray
    confused: np.ndarray
    state: np.ndarray

    def counts(self) -> tuple[dict[str, int], dict[str, int]]:
        """Count the outcomes of the G detections with the highest scores, and the states of the G objects."""
        outcomes = np.bincount(self.outcome[: len(self.state)], minlength=len(OUTCOMES))
        states = np.bincount(self.state, minlength=len(STATES))
        return dict(zip(OUTCOMES, outcomes.tolist())), dict(zip(STATES, states.tolist()))

    def confusions(self, classes: Sequence[str]) -> dict[str, int]:
        """Count the classes whose objects the G detections with the highest scores are on, most frequent first."""
        confused = self.confused[: len(self.state)]
        return {classes[k]: count for k, count in Counter(confused[confused >= 0].tolist()).most_common()}

    def repaired(self, error: str | None = None) -> tuple[np.ndarray, int]:
        """Repair all errors of one kind.

        - ``localisation``: where no detection finds an object, the badly placed one of the highest score becomes
          correct; the other badly placed ones are removed.
        - other ``KINDS``: the detections are removed.
        - ``outranked``: the detections that find these objects move up to right after the G with the highest scores.
        - other ``MISSED``: these objects no longer count.
        - ``TOTALS``: the wrong detections are removed, or the objects that no detection finds no longer count.

        Args:
            error: a key of ``KINDS``, ``MISSED`` or ``TOTALS``; None repairs nothing.

        Returns:
            Whether each remaining detection is correct, highest score first, and the number of objects that count.
        """
        correct, objects = self.outcome == 0, len(self.state)
        if error in KINDS:
            wrong = self.outcome == OUTCOMES.index(error)
            if error == "localisation":
                rows = np.flatnonzero(wrong & (self.target >= 0))
                _, first = np.unique(self.target[rows], return_index=True)
                correct[rows[first]] = True
            correct = correct[correct | ~wrong]
        elif error == "outranked":
            correct = np.concatenate([correct[:objects], np.sort(correct[objects:])[::-1]])
        elif error in MISSED:
            objects -= int((self.state == STATES.index(error)).sum())
        elif error == "false positives":
            correct = correct[correct]
        elif error == "false negatives":
            objects = int(correct.sum())
        return correct, objects


def class_errors(
    label: int,
    detections: tuple[np.ndarray, ...],
    truth: tuple[np.ndarray, ...],
    covered: np.ndarray,
    similar: np.ndarray,
) -> ClassErrors:
    """Sort the detections and objects of one class by kind of error.

    Args:
        label: the class.
        detections: images, boxes, labels and scores of the detections of all classes
            (`sppdet.evaluation.voc.flatten_detections`).
        truth: images, boxes, labels and difficulty of all objects (`sppdet.evaluation.voc.flatten_ground_truth`).
        covered: bool, for each object of ``truth`` whether a proposal has an IoU of 0.5 or more with it.
        similar: ``(K,)`` bool, the classes that are similar to this one.
    """
    images, boxes, labels, _ = detections
    truth_images, truth_boxes, truth_labels, difficult = truth
    of_class, truth_rows = np.flatnonzero(labels == label), np.flatnonzero(truth_labels == label)
    match = match_label(detections, truth, label, FOUND_IOU)
    counted = ~match.ignored
    rows = of_class[match.order[counted]]
    correct, overlap, nearest = match.true_positive[counted], match.overlap[counted], match.nearest[counted]
    finder = np.full(len(truth_rows), _NOT_FOUND)  # rank of the detection that found each object
    finder[nearest[correct]] = np.flatnonzero(correct)

    outcome = np.full(len(rows), OUTCOMES.index("background"))
    confused = np.full(len(rows), -1)
    # A higher overlap overrides a lower one, and a similar class another one.
    kinds = ("both", NEAR_IOU, ~similar), ("misclassified", FOUND_IOU, ~similar), ("similar", NEAR_IOU, similar)
    for kind, lowest, classes in kinds:
        other_rows = np.flatnonzero(classes[truth_labels] & (truth_labels != label))
        other_overlap, other_nearest = best_truth(
            images[rows], boxes[rows], truth_images[other_rows], truth_boxes[other_rows]
        )
        near = other_overlap >= lowest
        outcome[near], confused[near] = OUTCOMES.index(kind), truth_labels[other_rows[other_nearest[near]]]
    outcome[overlap >= NEAR_IOU] = OUTCOMES.index("localisation")
    outcome[overlap >= FOUND_IOU] = OUTCOMES.index("duplicate")
    outcome[correct] = OUTCOMES.index("correct")
    confused[overlap >= NEAR_IOU] = -1

    # A badly placed detection on an object that is difficult, or that another detection finds, has no target: a repair
    # removes it.
    free = ~difficult[truth_rows] & (finder == _NOT_FOUND)
    target = np.full(len(rows), -1)
    badly_placed = np.flatnonzero(outcome == OUTCOMES.index("localisation"))
    badly_placed = badly_placed[free[nearest[badly_placed]]]
    target[badly_placed] = nearest[badly_placed]

    state = np.where(covered[truth_rows], STATES.index("undetected"), STATES.index("unproposed"))
    state[finder < _NOT_FOUND] = STATES.index("outranked")
    state[finder < match.positives] = STATES.index("found")
    return ClassErrors(rows, outcome, target, confused, state[~difficult[truth_rows]])


def errors_by_class(
    dataset: Dataset, detections: Sequence[Detections], proposals: Iterable[np.ndarray]
) -> dict[str, ClassErrors]:
    """Sort the errors of every class by kind; arguments and errors are those of `diagnose`."""
    check_detections(dataset, detections)
    flat, truth = flatten_detections(detections), flatten_ground_truth(dataset)
    overlaps = [best_overlaps(windows, sample.boxes) for windows, sample in zip(proposals, dataset, strict=True)]
    covered = np.concatenate([np.zeros(0), *overlaps]) >= FOUND_IOU
    similar = similar_classes(dataset.classes)
    return {name: class_errors(k, flat, truth, covered, similar[k]) for k, name in enumerate(dataset.classes)}


def diagnose(dataset: Dataset, detections: Sequence[Detections], proposals: Iterable[np.ndarray]) -> dict:
    """Sort the errors by kind, per class and over all classes, and compute mAP without each kind.

    Args:
        dataset: P samples of K classes.
        detections: P entries, in the order of ``dataset.samples``.
        proposals: P arrays ``(N, 4)`` of xyxy boxes, in the order of ``dataset.samples``.

    Returns:
        A dict of JSON's types:

        - ``pictures``: number of images.
        - ``mAP`` and ``mAP_area``: 11-point and area rule, in percent.
        - ``errors``: for each of ``KINDS`` and ``MISSED`` its ``count``, its ``share`` (0..1) of the detections with
          the highest scores or of the objects, and ``mAP`` and ``mAP_area`` without it.
        - ``totals``: for each of ``TOTALS`` ``mAP`` and ``mAP_area`` without it.
        - ``classes``: for each class ``AP`` and ``AP_area``; the numbers of its ``detections`` with the highest scores
          by outcome and of its ``objects`` by state; ``AP_without`` each error; ``confused_with``, the classes of the
          objects that its errors of kind ``similar``, ``misclassified`` and ``both`` are on, most frequent first.

        A class without objects that count has AP ``None`` and is left out of the means.

    Raises:
        SppdetError: as `sppdet.evaluation.voc.check_detections`.
    """
    return summarise(dataset, errors_by_class(dataset, detections, proposals))


def summarise(dataset: Dataset, by_class: dict[str, ClassErrors]) -> dict:
    """Count the errors of `errors_by_class` and compute mAP without each kind; returns what `diagnose` returns."""
    similar = similar_classes(dataset.classes)
    kinds = [kind for kind in KINDS if kind != "similar" or similar.any()]
    now = _precisions(by_class, None)
    without = {error: _precisions(by_class, error) for error in (*kinds, *MISSED)}

    classes = {}
    for name, errors in by_class.items():
        outcomes, states = errors.counts()
        classes[name] = {
            "AP": now["AP"][name],
            "AP_area": now["AP_area"][name],
            "detections": {outcome: outcomes[outcome] for outcome in ("correct", *kinds)},
            "objects": states,
            "AP_without": {error: precisions["AP"][name] for error, precisions in without.items()},
            "confused_with": errors.confusions(dataset.classes),
        }
    return {
        "pictures": len(dataset),
        "mAP": now["mAP"],
        "mAP_area": now["mAP_area"],
        "errors": {error: _share(classes, error) | _means(precisions) for error, precisions in without.items()},
        "totals": {total: _means(_precisions(by_class, total)) for total in TOTALS},
        "classes": classes,
    }


def _share(classes: dict[str, dict], error: str) -> dict[str, float]:
    """Count an error in all classes' detections of the highest scores, or in their objects, and compute its share."""
    counts = [figures["detections" if error in KINDS else "objects"] for figures in classes.values()]
    count, total = sum(of_class[error] for of_class in counts), sum(sum(of_class.values()) for of_class in counts)
    return {"count": count, "share": round(count / total, 4) if total else 0.0}


def _means(precisions: _Precisions) -> dict[str, float | None]:
    return {"mAP": precisions["mAP"], "mAP_area": precisions["mAP_area"]}


class _Precisions(TypedDict):
    """Average precision by class and its mean, in percent, by the 11-point rule and the area rule."""

    AP: dict[str, float | None]
    mAP: float | None
    AP_area: dict[str, float | None]
    mAP_area: float | None


def _precisions(by_class: dict[str, ClassErrors], error: str | None) -> _Precisions:
    """Compute average precision after the repair of all errors of one kind."""
    points, areas = (
        {name: _percent(*errors.repaired(error), rule, len(errors.state)) for name, errors in by_class.items()}
        for rule in ("11-point", "area")
    )
    return {"AP": points, "mAP": mean_over_known(points), "AP_area": areas, "mAP_area": mean_over_known(areas)}


def _percent(correct: np.ndarray, objects: int, rule: str, all_objects: int) -> float | None:
    """Compute average precision in percent; ``objects`` are those of ``all_objects`` that are left after a repair."""
    if not all_objects:
        return None
    if not objects:  # all objects were missed, and the repair leaves none: AP stays 0
        return 0.0
    hits = np.cumsum(correct)
    return 100 * average_precision(hits / objects, hits / np.arange(1, len(hits) + 1), rule)
