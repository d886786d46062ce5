"""How well proposals cover objects: recall at two overlaps, and the average best overlap."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from sppdet.ops import boxes as geometry

if TYPE_CHECKING:
    from sppdet.data import Sample


def best_overlaps(proposals: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return the highest IoU of each target with any proposal.

    Args:
        proposals: float32 ``(N, 4)`` ``x1, y1, x2, y2`` in pixel edges.
        targets: float32 ``(M, 4)`` ground-truth boxes of the same image.

    Returns:
        float32 ``(M,)``, each 0 without proposals.

    Examples:
        >>> proposals = np.array([[0, 0, 10, 10], [0, 0, 10, 5]], np.float32)
        >>> best_overlaps(proposals, np.array([[0, 0, 10, 8]], np.float32))
        array([0.8], dtype=float32)
    """
    if not len(proposals) or not len(targets):
        return np.zeros(len(targets), np.float32)
    return geometry.iou(targets, proposals).max(axis=1)


def proposal_recall(proposals: Iterable[np.ndarray], targets: Iterable[np.ndarray]) -> dict[str, float | None]:
    """Compute the recall of the proposals of many images.

    Args:
        proposals: for each image its proposals ``(N, 4)``; at least one image.
        targets: for each image its ground-truth boxes ``(M, 4)``.

    Returns:
        The table of `recall_table`.
    """
    pairs = [(best_overlaps(windows, boxes), len(windows)) for windows, boxes in zip(proposals, targets)]
    overlaps, counts = zip(*pairs)
    return recall_table(np.concatenate(overlaps), float(np.mean(counts)))


def recall_of_samples(proposals: Iterable[np.ndarray], samples: Sequence[Sample]) -> dict[str, float]:
    """Compute the recall of the proposals of samples, whose difficult objects do not count.

    Args:
        proposals: for each sample its proposals ``(N, 4)``; at least one sample.
        samples: the images with their objects.

    Returns:
        The table of `recall_table`; without objects ``windows`` alone.
    """
    table = proposal_recall(proposals, (sample.boxes[~sample.difficult] for sample in samples))
    return {name: value for name, value in table.items() if value is not None}


def recall_table(overlaps: np.ndarray, windows: float) -> dict[str, float | None]:
    """Summarise how well all targets are covered.

    Args:
        overlaps: ``(M,)`` the best IoU of each target (`best_overlaps`).
        windows: mean number of proposals per image.

    Returns:
        ``windows``; ``recall@0.5`` and ``recall@0.7``, the share of targets with at least this overlap; and
        ``average_best_overlap``. All three are None without targets.
    """
    if not len(overlaps):
        return {"windows": windows, "recall@0.5": None, "recall@0.7": None, "average_best_overlap": None}
    return {
        "windows": float(windows),
        "recall@0.5": float((overlaps >= 0.5).mean()),
        "recall@0.7": float((overlaps >= 0.7).mean()),
        "average_best_overlap": float(overlaps.mean()),
    }


def recall_line(table: Mapping[str, float | None]) -> str:
    """Return the recalls and the overlap of a `recall_table` as text, ``-`` where they are None.

    Examples:
        >>> recall_line({"recall@0.5": 0.958, "recall@0.7": 0.792, "average_best_overlap": 0.796})
        'recall@0.5 0.958, @0.7 0.792, average best overlap 0.796'
    """
    half, strict, overlap = (
        "-" if table[name] is None else f"{table[name]:.3f}"
        for name in ("recall@0.5", "recall@0.7", "average_best_overlap")
    )
    return f"recall@0.5 {half}, @0.7 {strict}, average best overlap {overlap}"
