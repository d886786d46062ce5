"""Images in, boxes out: what one detector and several combined have in common once each window has its margins.

Names: N proposals, K classes, n candidates.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch

from sppdet.config import DetectionSettings
from sppdet.data import to_rgb
from sppdet.detection.detections import Detections
from sppdet.ops import boxes as geometry
from sppdet.ops import nms, vote
from sppdet.proposals import SelectiveSearch


class WindowScores(Protocol):
    """The proposals of an image as one classifier, with its box regressors, sees them.

    Attributes:
        margins: ``(N, K)``.
        mirrored: whether they were seen in the image's mirror image.
        moves: whether there are box regressors.
    """

    margins: np.ndarray
    mirrored: bool
    moves: bool

    def deltas(self, chosen: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """``(n, 4)`` shifts of the proposals ``chosen`` ``(n,)``, each by the regressor of its label ``(n,)``."""


@dataclass(frozen=True, eq=False)
class Candidates:
    """Windows that may become detections: ``rows`` ``(n,)`` among the proposals, labels, scores, boxes ``(n, 4)``."""

    rows: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray

    def only(self, chosen: np.ndarray) -> Candidates:
        return Candidates(self.rows[chosen], self.labels[chosen], self.scores[chosen], self.boxes[chosen])


class Predictor(ABC):
    """What users hold.

    Attributes:
        classes: K names.
        search: where the proposals come from.
        detection: thresholds.
    """

    classes: tuple[str, ...]
    search: SelectiveSearch
    detection: DetectionSettings

    @property
    @abstractmethod
    def parts(self) -> tuple:
        """The detectors, each with a network of its own, that look at the windows."""

    @property
    @abstractmethod
    def needs_windows(self) -> bool:
        """Whether :meth:`read` has to know the proposals."""

    @abstractmethod
    def with_detection(self, detection: DetectionSettings) -> Predictor:
        """The same with other thresholds."""

    @abstractmethod
    def read(self, image: np.ndarray, proposals: np.ndarray | None = None):
        """What the windows of an RGB uint8 image are read from; R-CNN has to know the proposals ``(N, 4)``."""

    @abstractmethod
    def of_parts(self, read: Sequence):
        """What :meth:`read` gives, from what it gives for each of the ``parts``."""

    @abstractmethod
    def views(self, maps, proposals: np.ndarray, size: tuple[int, int], mirrored) -> list[tuple[float, WindowScores]]:
        """Each with its share, of 1 in all, in margins and shifts; none where there are no proposals."""

    def predict(self, image) -> Detections:
        """Find objects in an image: a path, a Pillow image, or an RGB uint8 array ``(H, W, 3)``."""
        image = to_rgb(image)
        size = (image.shape[1], image.shape[0])
        threads = torch.get_num_threads()
        # One thread: one of many workers, and other images take the other cores. The native search uses all cores.
        if threads == 1 or self.needs_windows or self.search.engine == "native":
            proposals = self.search(image)
            return self.detect(self.read(image, proposals), proposals, size, self.read_mirrored(image, proposals))
        with ThreadPoolExecutor(1) as helper:
            proposals = helper.submit(self.search, image)
            # The threads of a layer wait for each other: one that shared its core with the search would hold up all.
            torch.set_num_threads(threads - 1)
            try:
                maps, mirrored = self.read(image), self.read_mirrored(image)
            finally:
                torch.set_num_threads(threads)
            return self.detect(maps, proposals.result(), size, mirrored)

    def read_mirrored(self, image: np.ndarray, proposals: np.ndarray | None = None):
        """As :meth:`read`, of the image's mirror image, where ``detection.flip`` asks for it."""
        if not self.detection.flip:
            return None
        there = None if proposals is None else geometry.mirror(proposals, image.shape[1])
        return self.read(np.ascontiguousarray(image[:, ::-1]), there)

    def detect(self, maps, proposals: np.ndarray, size: tuple[int, int], mirrored=None) -> Detections:
        """Detections among proposals ``(N, 4)`` of an image of ``(width, height)``, from what :meth:`read` gave.

        ``mirrored`` is that of its mirror image: margins and shifts are then the means of both views'.
        """
        views = self.views(maps, proposals, size, mirrored)
        found = self._candidates(views, proposals)
        moved = self._moved(views, found, size)
        return self._survivors(found) if moved is None else moved

    def detect_both(
        self, maps, proposals: np.ndarray, size: tuple[int, int], mirrored=None
    ) -> tuple[Detections, Detections]:
        """Detections before and after box regression; twice the same if there is none.

        With ``detection.vote`` 0, as in the originals: regression moves the boxes that survived the suppression,
        leaves their scores, and is followed by a second suppression. Else all candidates are moved before they are
        suppressed, as in Fast R-CNN, and the survivors are voted on (:func:`vote`), moved or not.
        """
        views = self.views(maps, proposals, size, mirrored)
        found = self._candidates(views, proposals)
        plain, moved = self._survivors(found), self._moved(views, found, size)
        return plain, plain if moved is None else moved

    def _candidates(self, views: list[tuple[float, WindowScores]], proposals: np.ndarray) -> Candidates:
        """Each class's best windows above ``detection.min_margin``."""
        if not views:
            return Candidates(*(np.zeros(0, np.int64),) * 2, np.zeros(0, np.float32), np.zeros((0, 4), np.float32))
        margins = sum(share * view.margins for share, view in views)
        rows, labels = [], []
        for k in range(margins.shape[1]):
            above = np.flatnonzero(margins[:, k] > self.detection.min_margin)
            best = above[np.argsort(-margins[above, k], kind="stable")[: self.detection.max_candidates]]
            rows.append(best)
            labels.append(np.full(len(best), k, np.int64))
        rows, labels = np.concatenate(rows), np.concatenate(labels)
        return Candidates(rows, labels, margins[rows, labels], proposals[rows])

    def _moved(
        self, views: list[tuple[float, WindowScores]], found: Candidates, size: tuple[int, int]
    ) -> Detections | None:
        """What is left of candidates whose boxes regression has moved; None without regression."""
        views = [(share, view) for share, view in views if view.moves]
        if not views:
            return None
        if not self.detection.vote:
            found = found.only(self._suppress(found))
        if not len(found.rows):
            return self._survivors(found)
        deltas = np.zeros((len(found.rows), 4), np.float32)
        whole = sum(share for share, _ in views)
        for share, view in views:
            own = view.deltas(found.rows, found.labels) * (share / whole)
            deltas += own * (-1, 1, 1, 1) if view.mirrored else own
        boxes = geometry.clip(geometry.decode(found.boxes, deltas), *size)
        return self._survivors(replace(found, boxes=boxes))

    def _survivors(self, found: Candidates) -> Detections:
        """What the suppression leaves of candidates, voted on where that is asked for; best first."""
        kept, overlap = self._suppress(found), self.detection.vote
        boxes = vote(found.boxes, found.scores, found.labels, kept, overlap) if overlap else found.boxes[kept]
        order = np.argsort(-found.scores[kept], kind="stable")
        kept = kept[order]
        return Detections(boxes[order], found.labels[kept], found.scores[kept], self.classes)

    def _suppress(self, found: Candidates) -> np.ndarray:
        """The survivors of every class's own suppression."""
        kept = []
        for k in np.unique(found.labels):
            rows = np.flatnonzero(found.labels == k)
            survivors = nms(found.boxes[rows], found.scores[rows], self.detection.nms)
            kept.append(rows[survivors[: self.detection.max_per_class]])
        return np.concatenate([np.zeros(0, np.int64), *kept])
