"""From the scores of an image's windows to its detections: candidates, box regression, suppression and votes.

With ``detection.vote`` 0, as in the original systems, regression moves the boxes that survived suppression, leaves
their scores, and is followed by a second suppression. Otherwise, as in Fast R-CNN, all candidates are moved before
suppression; those around a survivor then vote on its box (`sppdet.ops.vote`), both before and after box regression.
With ``detection.rescore`` the candidates that were moved are scored once more where they lie now, and the mean of both
margins counts: one proposal may score high by chance, and what is moved onto an object well scores high there, too.
``detection.move_penalty`` lowers the margins of those that regression moved far: what is far from its object is placed
less exactly after the move, too.

All is computed with arrays, or where the margins are tensors with these, on their device.

Names: N proposals, K classes, n candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from sppdet.config import DetectionSettings
from sppdet.detection.detections import Detections
from sppdet.ops import Array, is_tensor, like, nms_by_class, on_host, vote
from sppdet.ops import boxes as geometry

if TYPE_CHECKING:  # detection does not load torch unless it needs it
    import torch


Deltas = Callable[[Array, Array], Array]  # of rows and labels: see `WindowScores`
MarginsAt = Callable[[np.ndarray], Array]  # of boxes: see `WindowScores`


@dataclass(frozen=True, eq=False)
class WindowScores:
    """The scores of an image's proposals by one detector, read in the image or in its mirror image.

    Attributes:
        margins: ``(N, K)``.
        deltas: ``deltas(rows, labels)`` computes the box regression ``(n, 4)`` (dx, dy, dw, dh, see
            `sppdet.ops.boxes.decode`) of the proposals ``rows`` ``(n,)``, each by the regressor of its label
            ``(n,)``; None without box regression. In the frame of the image, also where the mirror image was read.
        margins_at: ``margins_at(boxes)`` computes the margins ``(n, K)`` of other boxes ``(n, 4)`` of the image; None
            without ``detection.rescore``.
    """

    margins: Array
    deltas: Deltas | None
    margins_at: MarginsAt | None = None

    def on_host(self) -> WindowScores:
        """Return the scores as arrays."""
        margins, deltas, margins_at = self.margins, self.deltas, self.margins_at
        if not is_tensor(margins):
            return self
        return WindowScores(
            on_host(margins),
            deltas and (lambda rows, labels: on_host(deltas(like(rows, margins), like(labels, margins)))),
            margins_at and (lambda boxes: on_host(margins_at(boxes))),
        )


@dataclass(frozen=True, eq=False)
class Candidates:
    """Windows that may become detections.

    Attributes:
        rows: ``(n,)`` index of each among the proposals.
        labels: ``(n,)``.
        scores: ``(n,)``.
        boxes: ``(n, 4)`` pixel edges.
    """

    rows: Array
    labels: Array
    scores: Array
    boxes: Array

    def __getitem__(self, chosen: Array) -> Candidates:
        return Candidates(self.rows[chosen], self.labels[chosen], self.scores[chosen], self.boxes[chosen])


WeightedScores = Sequence[tuple[float, WindowScores]]  # of several detectors; the weights sum to 1; empty: no proposals


def choose_candidates(scores: WeightedScores, proposals: np.ndarray, min_margin: float, most: int) -> Candidates:
    """Return the ``most`` best windows of each class, of those above ``min_margin``; class by class, best first.

    Args:
        scores: of the proposals.
        proposals: ``(N, 4)`` pixel edges.
        min_margin: windows of this mean margin or a lower one are left out.
        most: per class.
    """
    if not scores:
        return Candidates(*(np.zeros(0, np.int64),) * 2, np.zeros(0, np.float32), np.zeros((0, 4), np.float32))
    margins = sum(weight * score.margins for weight, score in scores)
    if is_tensor(margins):
        return _choose_by_torch(margins, proposals, min_margin, most)
    rows_of_classes, labels_of_classes = [], []
    for k in range(margins.shape[1]):
        above = np.flatnonzero(margins[:, k] > min_margin)
        best = above[np.argsort(-margins[above, k], kind="stable")[:most]]
        rows_of_classes.append(best)
        labels_of_classes.append(np.full(len(best), k, np.int64))
    rows, labels = np.concatenate(rows_of_classes), np.concatenate(labels_of_classes)
    return Candidates(rows, labels, margins[rows, labels], proposals[rows])


def _choose_by_torch(margins: torch.Tensor, proposals: np.ndarray, min_margin: float, most: int) -> Candidates:
    """Return what `choose_candidates` does on the device of the margins ``(N, K)``."""
    best, rows = (each[:most].T for each in margins.sort(dim=0, descending=True, stable=True))  # (K, most)
    labels, ranks = (best > min_margin).nonzero(as_tuple=True)
    rows = rows[labels, ranks]
    return Candidates(rows, labels, best[labels, ranks], like(proposals, margins)[rows])


def suppress_and_vote(candidates: Candidates, settings: DetectionSettings, classes: tuple[str, ...]) -> Detections:
    """Return the candidates that survive suppression, voted on if ``settings.vote`` is set; best first."""
    kept, overlap = _suppress(candidates, settings), settings.vote
    if overlap:
        boxes = vote(candidates.boxes, candidates.scores, candidates.labels, kept, overlap)
    else:
        boxes = candidates.boxes[kept]
    boxes, labels, scores = map(on_host, (boxes, candidates.labels[kept], candidates.scores[kept]))
    order = np.argsort(-scores, kind="stable")
    return Detections(boxes[order], labels[order], scores[order], classes)


def move(
    scores: WeightedScores, candidates: Candidates, size: tuple[int, int], settings: DetectionSettings
) -> Candidates | None:
    """Return the candidates moved by box regression; None if no detector has it.

    Without votes only those are left that survive suppression where they were.

    Args:
        scores: those that the candidates were chosen by.
        candidates: those of `choose_candidates`.
        size: ``(width, height)`` of the image in pixels, to which boxes are cut.
        settings: of suppression and votes.
    """
    regressors = [(weight, score.deltas) for weight, score in scores if score.deltas is not None]
    if not regressors:
        return None
    if not settings.vote:
        candidates = candidates[_suppress(candidates, settings)]
    if not len(candidates.rows):
        return candidates
    total = sum(weight for weight, _ in regressors)  # some parts of an ensemble may have no box regression
    deltas = sum(compute(candidates.rows, candidates.labels) * (weight / total) for weight, compute in regressors)
    return replace(candidates, boxes=geometry.clip(geometry.decode(candidates.boxes, deltas), *size))


def rescore(
    scores: WeightedScores,
    moved: Candidates,
    proposals: np.ndarray,
    settings: DetectionSettings,
    min_margin: float,
) -> Candidates:
    """Return moved candidates with the margins that count after the move.

    Args:
        scores: those that the candidates were chosen by.
        moved: n candidates, whose scores are the margins of the proposals that they were.
        proposals: ``(N, 4)`` pixel edges.
        settings: ``rescore``, the weight of the margins where the candidates lie now in the mean; and ``move_penalty``,
            of which one that overlaps its proposal by an IoU of o loses ``1 - o``.
        min_margin: candidates of this margin or a lower one are left out.
    """
    if not len(moved.rows) or not (settings.rescore or settings.move_penalty):
        return moved
    boxes, margins = on_host(moved.boxes), moved.scores
    if settings.rescore:
        rows = like(np.arange(len(moved.rows)), moved.labels)
        margins = (1 - settings.rescore) * margins
        for share, score in scores:
            assert score.margins_at is not None  # as detection.rescore is set
            margins = margins + settings.rescore * share * score.margins_at(boxes)[rows, moved.labels]
    if settings.move_penalty:
        overlaps = geometry.iou_of_pairs(proposals[on_host(moved.rows)], boxes)
        margins = margins - settings.move_penalty * (1 - like(overlaps, margins))
    return replace(moved, scores=margins)[margins > min_margin]


def _suppress(candidates: Candidates, settings: DetectionSettings) -> Array:
    """Return the rows of the candidates that survive suppression, class by class."""
    return nms_by_class(candidates.boxes, candidates.scores, candidates.labels, settings.nms, settings.max_per_class)
