"""Where the errors of a detector come from, and what mean average precision would be without each kind of them.

A class with G objects that count is looked at in two ways:

- Its G surest detections: with them a perfect detector would find every object (Hoiem et al. 2012, Diagnosing Error
  in Object Detectors, section 2). Each is correct or one of ``KINDS``.
- Its G objects: those detections found them, or they are missed in one of the ways of ``MISSED``.

Difficult objects, and detections on them, are in neither, as in VOC.

What would be without an error is TIDE's question (Bolya et al. 2020, arXiv 2008.08115, section 3): one kind is mended
wherever it is in the whole list of detections, everything else stays. The gains do not add up: mending one kind
changes what the others cost, and an object that is missed has often a badly placed detection beside it.

Names: K classes, and of one class D detections that count and G objects that count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from sppdet.data import Dataset
from sppdet.detection import Detections
from sppdet.evaluation.voc import (
    average_precision,
    best_truth,
    check_detections,
    flatten_detections,
    flatten_ground_truth,
    match_class,
    mean_over_known,
)
from sppdet.proposals import best_overlaps

FOUND_IOU, NEAR_IOU = 0.5, 0.1  # from the first on an object is found, below the second a window is off it

# What is wrong with a detection. The first that holds counts, as in Hoiem et al., who take the first two together.
KINDS = {
    "localisation": "on an object of the class, but badly: IoU in [0.1, 0.5)",
    "duplicate": "on an object that a surer detection has found",
    "similar": "on an object of a similar class: IoU 0.1 or more",
    "other": "on an object of another class: IoU 0.1 or more",
    "background": "on nothing that is annotated",
}
# Why an object is not among what the G surest detections found.
MISSED = {
    "outranked": "found, but below that many others",
    "undetected": "a proposal was there, but no detection: below the threshold, suppressed or moved away",
    "unproposed": "no proposal with IoU 0.5 or more, and no detection",
}
OUTCOMES = ("correct", *KINDS)  # of a detection; the codes of ClassErrors are places in here
STATES = ("found", *MISSED)  # and of an object
_NEVER = np.iinfo(np.int64).max

SIMILAR = (  # Hoiem et al., section 2, for VOC's classes
    {"aeroplane", "bicycle", "boat", "bus", "car", "motorbike", "train"},
    {"bird", "cat", "cow", "dog", "horse", "sheep", "person"},
    {"chair", "diningtable", "sofa"},
    {"aeroplane", "bird"},
)


def similar_classes(classes: Sequence[str]) -> np.ndarray:
    """``(K, K)`` bool: which classes are similar to which others; none are where the names are not VOC's."""
    return np.array([[a != b and any({a, b} <= group for group in SIMILAR) for b in classes] for a in classes], bool)


@dataclass(frozen=True, eq=False)
class ClassErrors:
    """What the detections of one class are, surest first, and what became of its objects.

    Attributes:
        outcome: ``(D,)`` places in ``OUTCOMES``.
        target: ``(D,)`` for a localisation error the object that it belongs to, else -1.
        confused: ``(D,)`` for a confusion the label of the object that it is on, else -1.
        state: ``(G,)`` places in ``STATES``.
    """

    outcome: np.ndarray
    target: np.ndarray
    confused: np.ndarray
    state: np.ndarray

    def counts(self) -> tuple[dict[str, int], dict[str, int]]:
        """How many of the G surest detections and of the G objects are what."""
        outcomes = np.bincount(self.outcome[: len(self.state)], minlength=len(OUTCOMES))
        states = np.bincount(self.state, minlength=len(STATES))
        return dict(zip(OUTCOMES, outcomes.tolist())), dict(zip(STATES, states.tolist()))

    def confusions(self, classes: Sequence[str]) -> dict[str, int]:
        """The classes that the G surest detections take for this one, most frequent first."""
        confused = self.confused[: len(self.state)]
        return {classes[k]: count for k, count in Counter(confused[confused >= 0].tolist()).most_common()}

    def mended(self, error: str | None = None) -> tuple[np.ndarray, int]:
        """Whether each detection is right once one kind of error is gone, surest first, and the number of objects.

        - ``localisation``: where an object is found by no detection, the surest that is badly placed on it becomes
          right; the others leave.
        - other ``KINDS``: those detections leave.
        - ``outranked``: the detections that find these objects come right after the G surest.
        - other ``MISSED``: these objects no longer count.
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
        return correct, objects


def class_errors(
    label: int, found: tuple[np.ndarray, ...], truth: tuple[np.ndarray, ...], covered: np.ndarray, similar: np.ndarray
) -> ClassErrors:
    """The errors of one class.

    Args:
        found: images, boxes, labels and scores of all classes' detections (:func:`sppdet.evaluation.voc.flatten_detections`).
        truth: images, boxes, labels and difficulty of all objects (:func:`sppdet.evaluation.voc.flatten_ground_truth`).
        covered: bool, for each of those objects: does a proposal find it?
        similar: ``(K,)`` bool, the classes that are similar to this one.
    """
    images, boxes, labels, scores = found
    truth_images, truth_boxes, truth_labels, difficult = truth
    mine, own = np.flatnonzero(labels == label), np.flatnonzero(truth_labels == label)
    match = match_class(
        images[mine], boxes[mine], scores[mine], truth_images[own], truth_boxes[own], difficult[own], FOUND_IOU
    )
    counted = ~match.ignored
    rows = mine[match.order[counted]]
    correct, overlap, nearest = match.true_positive[counted], match.overlap[counted], match.nearest[counted]
    finder = np.full(len(own), _NEVER)  # the place of the detection that found each object
    finder[nearest[correct]] = np.flatnonzero(correct)

    outcome = np.full(len(rows), OUTCOMES.index("background"))
    confused = np.full(len(rows), -1)
    for kind, classes in (("other", ~similar), ("similar", similar)):  # the latter goes before the former
        theirs = np.flatnonzero(classes[truth_labels] & (truth_labels != label))
        near, which = best_truth(images[rows], boxes[rows], truth_images[theirs], truth_boxes[theirs])
        on = near >= NEAR_IOU
        outcome[on], confused[on] = OUTCOMES.index(kind), truth_labels[theirs[which[on]]]
    outcome[overlap >= NEAR_IOU] = OUTCOMES.index("localisation")
    outcome[overlap >= FOUND_IOU] = OUTCOMES.index("duplicate")
    outcome[correct] = 0
    confused[overlap >= NEAR_IOU] = -1

    # A badly placed detection that is moved onto a difficult object, or onto one that is found, is gone.
    free = ~difficult[own] & (finder == _NEVER)
    target = np.full(len(rows), -1)
    badly = np.flatnonzero(outcome == OUTCOMES.index("localisation"))
    badly = badly[free[nearest[badly]]]
    target[badly] = nearest[badly]

    state = np.where(covered[own], STATES.index("undetected"), STATES.index("unproposed"))
    state[finder < _NEVER] = STATES.index("outranked")
    state[finder < match.positives] = STATES.index("found")
    return ClassErrors(outcome, target, confused, state[~difficult[own]])


def diagnose(dataset: Dataset, detections: Sequence[Detections], proposals: Iterable[np.ndarray]) -> dict:
    """Where errors come from, by class and over all.

    Args:
        detections, proposals: an entry for each sample of ``dataset``; proposals are ``(N, 4)`` boxes.

    Returns:
        ``images``; ``mAP`` and ``mAP_area`` (11-point and area rule, percent); ``errors``: for each of ``KINDS`` and
        ``MISSED`` its ``count``, its ``share`` of the surest detections or of the objects, and ``mAP`` and
        ``mAP_area`` without it; ``classes``: for each ``AP`` and ``AP_area``, how many of its surest ``detections``
        and of its ``objects`` are what, ``AP_without`` each error, and ``confused_with``, the classes of the objects
        that its confusions are on, most frequent first. As in :func:`sppdet.evaluation.evaluate_voc`, a class without
        objects that count has AP ``None`` and is in no mean.

    Raises:
        SppdetError: where detections do not fit the dataset.
    """
    check_detections(dataset, detections)
    found, truth = flatten_detections(detections), flatten_ground_truth(dataset)
    overlaps = [best_overlaps(windows, sample.boxes) for windows, sample in zip(proposals, dataset, strict=True)]
    covered = np.concatenate([np.zeros(0), *overlaps]) >= FOUND_IOU
    similar = similar_classes(dataset.classes)
    by_class = {name: class_errors(k, found, truth, covered, similar[k]) for k, name in enumerate(dataset.classes)}
    kinds = [kind for kind in KINDS if kind != "similar" or similar.any()]
    now = _without(by_class, None)
    without = {error: _without(by_class, error) for error in (*kinds, *MISSED)}

    classes = {}
    for name, own in by_class.items():
        detected, objects = own.counts()
        classes[name] = {
            "AP": now["AP"][name],
            "AP_area": now["AP_area"][name],
            "detections": {outcome: detected[outcome] for outcome in ("correct", *kinds)},
            "objects": objects,
            "AP_without": {error: mended["AP"][name] for error, mended in without.items()},
            "confused_with": own.confusions(dataset.classes),
        }
    errors = {
        error: _share(classes, error) | {key: without[error][key] for key in ("mAP", "mAP_area")} for error in without
    }
    return {
        "pictures": len(dataset),
        "mAP": now["mAP"],
        "mAP_area": now["mAP_area"],
        "errors": errors,
        "classes": classes,
    }


def _share(classes: dict[str, dict], error: str) -> dict:
    """How many of all classes' surest detections, or of their objects, an error is, and what share of them."""
    counts = [own["detections" if error in KINDS else "objects"] for own in classes.values()]
    count, total = sum(own[error] for own in counts), sum(sum(own.values()) for own in counts)
    return {"count": count, "share": round(count / total, 4) if total else 0.0}


def _without(by_class: dict[str, ClassErrors], error: str | None) -> dict:
    """Average precision by class and over all, percent, by both rules, once a kind of error is gone."""
    result = {}
    for key, rule in (("AP", "11-point"), ("AP_area", "area")):
        result[key] = {name: _percent(*own.mended(error), rule, len(own.state)) for name, own in by_class.items()}
        result["m" + key] = mean_over_known(result[key])
    return result


def _percent(correct: np.ndarray, objects: int, rule: str, all_objects: int) -> float | None:
    if not all_objects:
        return None
    if not objects:  # none was found, and none is left to be found: nothing is known but that it was 0
        return 0.0
    true = np.cumsum(correct)
    return 100 * average_precision(true / objects, true / np.arange(1, len(true) + 1), rule)
