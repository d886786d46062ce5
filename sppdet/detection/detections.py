"""What a detector finds in one image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Detections:
    """Boxes, best first.

    Attributes:
        boxes: ``(N, 4)`` float32 in the convention of :mod:`sppdet.ops.boxes`.
        labels: ``(N,)`` int64, index into ``classes``.
        scores: ``(N,)`` float32 SVM margins: not probabilities; 0 is the decision boundary.
        classes: names of all K classes.
    """

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.scores)

    def only(self, rows: np.ndarray) -> Detections:
        """Those at ``rows``, indices or a mask."""
        return Detections(self.boxes[rows], self.labels[rows], self.scores[rows], self.classes)

    def above(self, threshold: float) -> Detections:
        """Those with a margin of at least ``threshold``."""
        return self.only(self.scores >= threshold)

    def to_list(self) -> list[dict]:
        """JSON-like: ``[{"label": "dog", "score": 0.71, "box": [x1, y1, x2, y2]}, ...]``, pixel edges, 0-based."""
        return [
            {
                "label": self.classes[label] if self.classes else int(label),
                "score": round(float(score), 5),
                "box": [round(float(edge), 2) for edge in box],
            }
            for box, label, score in zip(self.boxes, self.labels, self.scores)
        ]
