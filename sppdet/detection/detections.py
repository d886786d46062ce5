"""The objects that a detector reports in one image.

Names: N detections, K classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, overload

import numpy as np

from sppdet.ops import boxes as geometry

if TYPE_CHECKING:
    import supervision

    from sppdet.data import ImageLike


class _Detection(NamedTuple):
    xyxy: np.ndarray
    label: int
    name: str
    score: float


class Detection(_Detection):
    """One object in an image; a tuple of the first four attributes.

    Attributes:
        xyxy: ``(4,)`` float32 ``x1, y1, x2, y2``: pixel edges, 0-based.
        label: index of the class.
        name: name of the class; the label as text where the classes have no names.
        score: SVM margin. Not a probability; 0 is the decision boundary.
        probability: how probable it is that the detection is right, 0 to 1; None if the model does not tell.
    """

    probability: float | None = None


@dataclass(frozen=True, eq=False, repr=False)
class Detections:
    """The objects that a detector reports in one image, best first.

    Iteration yields a `Detection` each; an integer index gives one of them. A slice, a boolean mask or an array
    of indices gives `Detections`.

    Args:
        xyxy: ``(N, 4)`` boxes ``x1, y1, x2, y2``: pixel edges, 0-based, so that a width is ``x2 - x1``.
        labels: ``(N,)`` indices of classes, from 0.
        scores: ``(N,)`` SVM margins. They are not probabilities; 0 is the decision boundary.
        classes: names of all K classes; empty where they have none.
        probabilities: ``(N,)`` how probable it is that each detection is right, 0 to 1: that its box overlaps an object
            of its class, which no better detection has taken, by an IoU of 0.5. None if the model does not tell.

    The arrays are converted to float32, int64 and float32, probabilities to float32.

    Raises:
        ValueError: if the arrays do not fit each other or the classes.

    Examples:
        >>> detections = Detections([[8, 8, 16, 20], [0, 0, 4, 4]], [1, 0], [0.75, -0.25], ("cat", "dog"))
        >>> detections
        Detections(2: dog 1, cat 1; scores 0.75 to -0.25)
        >>> detections.names.tolist()
        ['dog', 'cat']
        >>> detections[0].name, detections[0].score
        ('dog', 0.75)
        >>> detections[detections.scores > 0].xyxy.tolist()
        [[8.0, 8.0, 16.0, 20.0]]
    """

    xyxy: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    classes: tuple[str, ...] = ()
    probabilities: np.ndarray | None = None

    def __post_init__(self) -> None:
        xyxy, labels = np.asarray(self.xyxy, np.float32), np.asarray(self.labels)
        scores, classes = np.asarray(self.scores, np.float32), tuple(self.classes)
        xyxy = xyxy if xyxy.size else xyxy.reshape(0, 4)
        if xyxy.ndim != 2 or xyxy.shape[1] != 4 or labels.ndim != 1 or scores.ndim != 1:
            raise ValueError(
                f"Detections: xyxy, labels and scores have shapes {xyxy.shape}, {labels.shape} and {scores.shape}; "
                "give (N, 4), (N,) and (N,)"
            )
        if not len(xyxy) == len(labels) == len(scores):
            raise ValueError(
                f"Detections: {len(xyxy)} boxes, {len(labels)} labels and {len(scores)} scores; "
                "give one of each per detection"
            )
        if len(labels) and labels.dtype.kind not in "iu":
            raise ValueError(f"Detections: labels are {labels.dtype}; give integers, indices of classes")
        labels = labels.astype(np.int64, copy=False)
        if classes and len(labels) and not (labels.min() >= 0 and labels.max() < len(classes)):
            raise ValueError(
                f"Detections: labels from {labels.min()} to {labels.max()} are outside 0..{len(classes) - 1}, "
                f"the indices of {len(classes)} classes"
            )
        probabilities = None if self.probabilities is None else np.asarray(self.probabilities, np.float32)
        if probabilities is not None and probabilities.shape != scores.shape:
            raise ValueError(
                f"Detections: {len(scores)} scores and probabilities of shape {probabilities.shape}; give one of each "
                "per detection"
            )
        values = {"xyxy": xyxy, "labels": labels, "scores": scores, "classes": classes, "probabilities": probabilities}
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @classmethod
    def merge(cls, several: Sequence[Detections]) -> Detections:
        """Join detections of one image, such as those of several detectors, without suppression.

        Args:
            several: detections of the same classes.

        Returns:
            All detections, in the order of ``several``: not sorted by score. They have probabilities if all have.

        Raises:
            ValueError: if the classes differ.

        Examples:
            >>> cat = Detections([[0, 0, 4, 4]], [0], [0.5], ("cat", "dog"))
            >>> Detections.merge([cat, cat[:0], cat]).names.tolist()
            ['cat', 'cat']
        """
        if not several:
            return cls(np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0))
        classes = several[0].classes
        for other in several[1:]:
            if other.classes != classes:
                raise ValueError(
                    f"Detections.merge: classes {list(other.classes)} are not {list(classes)}; "
                    "give detections of the same classes"
                )
        xyxy = np.concatenate([detections.xyxy for detections in several])
        labels = np.concatenate([detections.labels for detections in several])
        scores = np.concatenate([detections.scores for detections in several])
        known = [one.probabilities for one in several if one.probabilities is not None]
        return cls(xyxy, labels, scores, classes, np.concatenate(known) if len(known) == len(several) else None)

    @property
    def boxes(self) -> np.ndarray:
        """The boxes ``xyxy``, by the name that `sppdet.data.Sample` has for ground truth."""
        return self.xyxy

    @property
    def names(self) -> np.ndarray:
        """The name of each detection's class, ``(N,)`` strings; its label as text where the classes have no names.

        An array, so that ``detections[detections.names == "dog"]`` selects.
        """
        names = [self.classes[label] if self.classes else str(label) for label in self.labels.tolist()]
        return np.array(names, dtype=object)

    @property
    def confidence(self) -> np.ndarray:
        """A number from 0 to 1 per detection, as other tools want it: the probability.

        If the model does not tell it: a guess by the score, 1 / (1 + exp(-2 score)), with the order of the scores.
        """
        if self.probabilities is not None:
            return self.probabilities.copy()
        return (1 / (1 + np.exp(-2 * self.scores.astype(float)))).astype(np.float32)

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[Detection]:
        for row in range(len(self)):
            yield self[row]

    @overload
    def __getitem__(self, rows: int | np.integer) -> Detection: ...

    @overload
    def __getitem__(self, rows: slice | np.ndarray | Sequence[int] | Sequence[bool]) -> Detections: ...

    def __getitem__(
        self, rows: int | np.integer | slice | np.ndarray | Sequence[int] | Sequence[bool]
    ) -> Detection | Detections:
        """Return the `Detection` at an index, or the detections of a slice, a mask or an array of indices."""
        if isinstance(rows, (int, np.integer)):
            label = int(self.labels[rows])
            name = self.classes[label] if self.classes else str(label)
            detection = Detection(self.xyxy[rows], label, name, float(self.scores[rows]))
            if self.probabilities is not None:
                detection.probability = float(self.probabilities[rows])
            return detection
        if not isinstance(rows, slice):
            rows = np.asarray(rows)
            rows = rows if rows.size else rows.astype(np.int64)  # an empty list is an array of floats
        probabilities = None if self.probabilities is None else self.probabilities[rows]
        return Detections(self.xyxy[rows], self.labels[rows], self.scores[rows], self.classes, probabilities)

    def __repr__(self) -> str:
        if not len(self):
            return "Detections(0)"
        counts = ", ".join(f"{name} {count}" for name, count in Counter(self.names).most_common(5))
        more = ", ..." if len(set(self.names)) > 5 else ""
        name, values = ("scores", self.scores) if self.probabilities is None else ("probabilities", self.probabilities)
        return f"Detections({len(self)}: {counts}{more}; {name} {values.max():.2f} to {values.min():.2f})"

    def above(self, threshold: float) -> Detections:
        """Return the detections with a probability of at least ``threshold``; where they have none, with that score."""
        return self[(self.scores if self.probabilities is None else self.probabilities) >= threshold]

    def of_class(self, name: str) -> Detections:
        """Return the detections of the class ``name``.

        Raises:
            ValueError: if there is no such class.
        """
        if name not in self.classes:
            raise ValueError(f"'{name}' is none of the classes: {', '.join(self.classes) or 'they have no names'}")
        return self[self.labels == self.classes.index(name)]

    def to_list(self) -> list[dict]:
        """Return the detections as JSON-like values.

        Returns:
            One entry per detection: ``{"label": "dog", "probability": 0.93, "score": 0.71, "box": [x1, y1, x2, y2]}``,
            without ``probability`` if the model does not tell it. ``label`` is the class's name, or its index where the
            classes have no names; probabilities and scores are rounded to 5 digits, boxes (pixel edges, 0-based) to 2.
        """
        entries = []
        for row, (box, label) in enumerate(zip(self.xyxy.tolist(), self.labels.tolist())):
            entry: dict = {"label": self.classes[label] if self.classes else label}
            if self.probabilities is not None:
                entry["probability"] = round(float(self.probabilities[row]), 5)
            entry |= {"score": round(float(self.scores[row]), 5), "box": [round(edge, 2) for edge in box]}
            entries.append(entry)
        return entries

    def to_coco(self, image_id: int) -> list[dict]:
        """Return the detections as entries of a COCO results file, unrounded.

        Args:
            image_id: the image's ``id`` in the annotation file.

        Returns:
            One entry per detection: ``image_id``, ``category_id`` (label + 1: COCO counts from 1), ``bbox`` (left, top,
            width and height in pixels) and ``score``.

        Examples:
            >>> Detections([[8, 8, 16, 20]], [1], [0.75]).to_coco(image_id=7)
            [{'image_id': 7, 'category_id': 2, 'bbox': [8.0, 8.0, 8.0, 12.0], 'score': 0.75}]
        """
        rows = zip(geometry.to_xywh(self.xyxy).tolist(), self.labels.tolist(), self.scores.tolist())
        return [
            {"image_id": image_id, "category_id": label + 1, "bbox": bbox, "score": score}
            for bbox, label, score in rows
        ]

    def to_supervision(self) -> supervision.Detections:
        """Return the detections as those of supervision, for its annotators, trackers and metrics.

        ``confidence`` is `Detections.confidence`; ``data`` holds ``class_name`` and ``margin`` (the scores).

        Raises:
            SppdetError: the package supervision is not installed.
        """
        from sppdet.detection.interchange import to_supervision

        return to_supervision(self)

    def to_transformers(self) -> list[dict]:
        """Return the detections in the form of transformers' object-detection pipeline.

        Boxes are rounded to whole pixels, as in that form they are integers; ``score`` is `Detections.confidence`.

        Examples:
            >>> Detections([[8, 8, 16.7, 20]], [1], [0.0], ("cat", "dog")).to_transformers()
            [{'score': 0.5, 'label': 'dog', 'box': {'xmin': 8, 'ymin': 8, 'xmax': 17, 'ymax': 20}}]
        """
        from sppdet.detection.interchange import to_transformers

        return to_transformers(self)

    def to_megadetector(self, size: tuple[int, int]) -> list[dict]:
        """Return the detections as entries of an image in MegaDetector's JSON.

        Boxes are left, top, width and height as shares of the image; ``conf`` is `Detections.confidence`; categories
        count from 1. ``sppdet detect --as megadetector`` prints the whole document.

        Args:
            size: width and height of the image.

        Examples:
            >>> Detections([[8, 8, 16, 20]], [1], [0.0], ("cat", "dog")).to_megadetector((80, 40))
            [{'category': '2', 'conf': 0.5, 'bbox': [0.1, 0.2, 0.1, 0.3]}]
        """
        from sppdet.detection.interchange import to_megadetector

        return to_megadetector(self, size)

    def one_per_place(self, iou: float = 0.7) -> Detections:
        """Return the detections without those that overlap a better one of another class by more than ``iou``.

        Examples:
            >>> box = [0, 0, 10, 10]
            >>> detections = Detections([box, box, [20, 0, 30, 10]], [0, 1, 1], [0.9, 0.5, 0.1], ("cat", "dog"))
            >>> detections.one_per_place().names.tolist()
            ['cat', 'dog']
        """
        shown: list[int] = []
        overlaps = geometry.iou(self.xyxy, self.xyxy) > iou
        for i in range(len(self)):
            if not (overlaps[i, shown] & (self.labels[shown] != self.labels[i])).any():
                shown.append(i)
        return self[shown]

    def draw(self, image: ImageLike, labels: bool = True) -> np.ndarray:
        """Draw the detections into a copy of their image; see `sppdet.detection.draw_detections`.

        Args:
            image: the image, as `sppdet.Detector.predict` takes it.
            labels: whether class and score are written.

        Returns:
            The copy, RGB uint8 ``(H, W, 3)``.
        """
        from sppdet.data import to_rgb
        from sppdet.detection.drawing import draw_detections

        return draw_detections(to_rgb(image), self, labels)
