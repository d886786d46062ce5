"""Examples of a report: labels that are probably wrong, the surest false alarms, and missed objects.

A detection is *sure* if its score is at least the median of the scores of its class's correct detections. An object is
*missed* if no detection finds it at the threshold with the best F1 of its class.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from sppdet.config import DEFAULT_THRESHOLD
from sppdet.data import Dataset
from sppdet.detection import Detections
from sppdet.evaluation.diagnosis import FOUND_IOU, NEAR_IOU, OUTCOMES, ClassErrors
from sppdet.evaluation.report.figures import ThresholdCounts
from sppdet.evaluation.voc import flatten_detections, flatten_ground_truth, match_label
from sppdet.ops import boxes as geometry

_LIMIT = 12  # examples per group


@dataclass(frozen=True)
class Marked:
    """A box that is drawn over an example.

    Attributes:
        box: ``(4,)`` xyxy.
        is_detection: a detection, or an object of the annotation.
        text: class, and score of a detection.
    """

    box: np.ndarray
    is_detection: bool
    text: str


@dataclass(frozen=True)
class Example:
    """A detection or an object to look at.

    Attributes:
        image: number of the image in the data set.
        focus: the box that the example is about.
        text: what it is.
        others: boxes that are drawn beside it.
    """

    image: int
    focus: Marked
    text: str
    others: list[Marked]


@dataclass(frozen=True)
class Group:
    """Examples of one kind.

    Attributes:
        title: a heading.
        text: what the group holds, and what to do with it.
        count: number of all such cases, of which ``examples`` are the clearest.
        examples: at most ``_LIMIT``.
    """

    title: str
    text: str
    count: int
    examples: list[Example]


def choose_examples(
    dataset: Dataset,
    detections: Sequence[Detections],
    errors: dict[str, ClassErrors],
    counts: ThresholdCounts,
) -> tuple[list[Group], list[Group]]:
    """Choose the clearest examples.

    Args:
        dataset: P samples of K classes.
        detections: P entries, in the order of the data set.
        errors: as `sppdet.evaluation.diagnosis.errors_by_class` returns them.
        counts: of the same detections.

    Returns:
        Groups of probable mistakes in the labels, and groups of mistakes of the detector. No case is in two groups.
    """
    return _Chooser(dataset, detections, errors, counts).groups()


def perhaps_missed(dataset: Dataset, entries: Sequence[dict]) -> Group:
    """Return what the labels of the training images perhaps miss.

    Args:
        dataset: the training images.
        entries: the content of perhaps_missed.json.
    """
    numbers = {sample.id: i for i, sample in enumerate(dataset)}
    examples: list[Example] = []
    per_class = Counter[str]()
    most = _most_per_class(dataset.classes)
    for entry in entries:
        if entry["image"] in numbers and per_class[entry["class"]] < most and len(examples) < _LIMIT:
            per_class[entry["class"]] += 1
            image = numbers[entry["image"]]
            sample = dataset[image]
            labels = [Marked(box, False, dataset.classes[label]) for box, label in zip(sample.boxes, sample.labels)]
            box = Marked(np.array(entry["box"], np.float32), True, f"{entry['class']} {entry['margin']:.2f}")
            examples.append(Example(image, box, "no label there", labels))
    return Group(
        "Perhaps an object without a label, in the training images",
        "Models that have not learned from these images are sure of them, so they were not taken for background. If an "
        "object is real, add its label. perhaps_missed.json lists all.",
        len(entries),
        examples,
    )


def _most_per_class(classes: Sequence[str]) -> int:
    """Return how many examples of one class a group may have."""
    return max(2, -(-2 * _LIMIT // max(1, len(classes))))


class _Chooser:
    """All detections and objects of a data set, and what became of them."""

    def __init__(
        self,
        dataset: Dataset,
        detections: Sequence[Detections],
        errors: dict[str, ClassErrors],
        counts: ThresholdCounts,
    ):
        self.dataset, self.classes = dataset, dataset.classes
        flat, truth = flatten_detections(detections), flatten_ground_truth(dataset)
        self.images, self.boxes, self.labels, self.scores = flat
        self.object_images, self.object_boxes, self.object_labels, self.difficult = truth
        best = [counts.best(k) for k in range(len(self.classes))]
        self.thresholds = np.array([DEFAULT_THRESHOLD if value is None else value for value in best])
        self.outcome = np.full(len(self.scores), -1)  # -1: on a difficult object
        self.confused = np.full(len(self.scores), -1)
        self.found_at = np.full(len(self.object_labels), -np.inf)  # score of the detection that finds the object
        self.sure = np.zeros(len(self.scores), bool)
        for k, of_class in enumerate(errors.values()):
            self.outcome[of_class.rows], self.confused[of_class.rows] = of_class.outcome, of_class.confused
            match = match_label(flat, truth, k, FOUND_IOU)
            rows, object_rows = np.flatnonzero(self.labels == k)[match.order], np.flatnonzero(self.object_labels == k)
            right = self.scores[rows][match.true_positive]
            self.found_at[object_rows[match.nearest[match.true_positive]]] = right
            if len(right):
                self.sure[rows] = self.scores[rows] >= max(np.median(right), self.thresholds[k])
        self.shown = self.scores >= self.thresholds[self.labels]
        self.missed = (self.found_at < self.thresholds[self.object_labels]) & ~self.difficult

    def groups(self) -> tuple[list[Group], list[Group]]:
        """Return the groups of `choose_examples`."""
        sure_first = np.argsort(-self.scores, kind="stable")
        size = np.sqrt(geometry.areas(self.object_boxes))
        large_first = np.argsort(-size, kind="stable")

        unlabelled = self.sure & self._is("background")
        unlabelled[[row for row in np.flatnonzero(unlabelled).tolist() if self._holds_object_of_its_class(row)]] = False
        taken_for: dict[int, int] = {}  # object -> the sure detection of another class on it
        for row in sure_first[(self.sure & self._is("similar", "misclassified"))[sure_first]]:
            target, overlap = self._object_under(row, self.confused[row])
            if overlap >= FOUND_IOU and self.missed[target]:
                taken_for.setdefault(target, row)
        untouched = self.missed & ~self._is_touched() & self._is_of_usual_size(size)
        untouched[list(taken_for)] = False
        labels = [
            Group(
                "Perhaps an object without a label",
                "The detector is sure of these, and nothing is labelled there. If the object is real, add its label.",
                int(unlabelled.sum()),
                [self._false_alarm(row) for row in self._choose(sure_first[unlabelled[sure_first]], self.labels)],
            ),
            Group(
                "Perhaps the wrong class",
                "Labelled as one class, but surely detected as another. If the label is wrong, correct it.",
                len(taken_for),
                [
                    self._wrong_class(i, taken_for[i])
                    for i in self._choose(np.array(list(taken_for), np.int64), self.object_labels)
                ],
            ),
            Group(
                "Labels without a detection",
                "No detection that counts lies on these labels, though they are as large as objects that are found. "
                "The box may be misplaced, or on something that cannot be seen. The largest come first.",
                int(untouched.sum()),
                [self._missed(i) for i in self._choose(large_first[untouched[large_first]], self.object_labels)],
            ),
        ]
        listed = np.zeros(len(self.scores), bool)
        listed[list(taken_for.values())] = True
        wrong = (self.outcome > 0) & self.shown & ~unlabelled & ~listed
        missed = self.missed & ~untouched
        missed[list(taken_for)] = False
        mistakes = [
            Group(
                "Surest false alarms",
                "Wrong detections with the highest scores, those under “Labels to check” left out.",
                int(wrong.sum()),
                [self._false_alarm(row) for row in self._choose(sure_first[wrong[sure_first]], self.labels)],
            ),
            Group(
                "Missed objects",
                "No detection finds these objects at the best threshold of their class; the largest first, those under "
                "“Labels to check” left out.",
                int(missed.sum()),
                [self._missed(i) for i in self._choose(large_first[missed[large_first]], self.object_labels)],
            ),
        ]
        return labels, mistakes

    def _is(self, *outcomes: str) -> np.ndarray:
        """Return which detections have one of these outcomes."""
        return np.isin(self.outcome, [OUTCOMES.index(outcome) for outcome in outcomes])

    def _is_touched(self) -> np.ndarray:
        """Return which objects a shown detection of any class overlaps."""
        touched = np.zeros(len(self.object_labels), bool)
        for image in np.unique(self.object_images[self.missed]):
            rows, objects = self.shown & (self.images == image), self.object_images == image
            if rows.any():
                touched[objects] = (geometry.iou(self.object_boxes[objects], self.boxes[rows]) >= NEAR_IOU).any(axis=1)
        return touched

    def _is_of_usual_size(self, size: np.ndarray) -> np.ndarray:
        """Return which objects are at least as large as the median object of their class that is found."""
        usual = np.full(len(self.classes), np.inf)
        for k in range(len(self.classes)):
            sizes = size[(self.object_labels == k) & (self.found_at >= self.thresholds[k])]
            usual[k] = np.median(sizes) if len(sizes) else np.inf
        return size >= usual[self.object_labels]

    def _holds_object_of_its_class(self, row: int) -> bool:
        """Whether the detection holds the centre of an object of its class, as a box around a group does."""
        x1, y1, x2, y2 = self.boxes[row]
        objects = self.object_boxes[(self.object_images == self.images[row]) & (self.object_labels == self.labels[row])]
        x, y = (objects[:, 0] + objects[:, 2]) / 2, (objects[:, 1] + objects[:, 3]) / 2
        return bool(((x1 <= x) & (x <= x2) & (y1 <= y) & (y <= y2)).any())

    def _object_under(self, row: int, label: int) -> tuple[int, float]:
        """Return the object of class ``label`` that a detection overlaps best, -1 if there is none, and their IoU."""
        objects = np.flatnonzero((self.object_images == self.images[row]) & (self.object_labels == label))
        if not len(objects):
            return -1, 0.0
        overlaps = geometry.iou(self.boxes[row : row + 1], self.object_boxes[objects])[0]
        return int(objects[overlaps.argmax()]), float(overlaps.max())

    def _choose(self, rows: Iterable[int], labels: np.ndarray) -> list[int]:
        """Return the first rows, but not all of them of one class where there are several classes."""
        per_class, chosen = _most_per_class(self.classes), Counter[int]()
        result: list[int] = []
        for row in rows:
            if chosen[labels[row]] < per_class:
                chosen[labels[row]] += 1
                result.append(int(row))
            if len(result) == _LIMIT:
                break
        return result

    def _false_alarm(self, row: int) -> Example:
        """Return the example of a wrong detection."""
        name = self.classes[self.labels[row]]
        outcome = OUTCOMES[self.outcome[row]]
        text = "no label there (IoU below 0.1)"
        if outcome in ("localisation", "duplicate"):
            _, overlap = self._object_under(row, self.labels[row])
            placed = "badly placed on" if outcome == "localisation" else "a second box on"
            text = f"{placed} {name} (IoU {overlap:.2f})"
        elif outcome != "background":
            _, overlap = self._object_under(row, self.confused[row])
            text = f"on {self.classes[self.confused[row]]} (IoU {overlap:.2f})"
        image = int(self.images[row])
        return Example(image, self._detection(row), text, self._objects(image))

    def _wrong_class(self, i: int, row: int) -> Example:
        """Return the example of an object that is detected as another class."""
        return self._example_of_object(i, f"detected as {self._detection(row).text}", [self._detection(row)])

    def _missed(self, i: int) -> Example:
        """Return the example of an object that is missed."""
        label, image = self.object_labels[i], self.object_images[i]
        rows = np.flatnonzero(self.shown & (self.images == image))
        near = rows[geometry.iou(self.object_boxes[i : i + 1], self.boxes[rows])[0] > 0] if len(rows) else rows
        score = self.found_at[i]
        text = "no detection" if np.isinf(score) else f"score {score:.2f}, below the threshold"
        return self._example_of_object(i, f"{text} {self.thresholds[label]:.2f}" if np.isfinite(score) else text,
                                       [self._detection(row) for row in near[:6]])  # fmt: skip

    def _example_of_object(self, i: int, text: str, shown: list[Marked]) -> Example:
        """Return an example of object ``i``, with detections on or near it."""
        image = int(self.object_images[i])
        return Example(image, self._object(i), text, self._objects(image, i) + shown)

    def _detection(self, row: int) -> Marked:
        return Marked(self.boxes[row], True, f"{self.classes[self.labels[row]]} {self.scores[row]:.2f}")

    def _object(self, i: int) -> Marked:
        text = self.classes[self.object_labels[i]]
        return Marked(self.object_boxes[i], False, f"{text} (difficult)" if self.difficult[i] else text)

    def _objects(self, image: int, without: int = -1) -> list[Marked]:
        """Return the labelled objects of an image, except one."""
        return [self._object(i) for i in np.flatnonzero(self.object_images == image).tolist() if i != without]
