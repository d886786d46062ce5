"""How many objects the proposals cover: recall at two overlaps, and the average best overlap."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from sppdet.ops import boxes as geometry


def best_overlaps(proposals: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """``(M,)``: for each of the M target boxes the highest IoU with any proposal; 0 where there is none."""
    if not len(proposals) or not len(targets):
        return np.zeros(len(targets), np.float32)
    return geometry.iou(targets, proposals).max(axis=1)


def proposal_recall(found: Iterable[np.ndarray], targets: Iterable[np.ndarray]) -> dict[str, float]:
    """:func:`recall_table` of many images: of each its proposals ``(N, 4)`` and its target boxes ``(M, 4)``."""
    overlaps, counts = zip(*((best_overlaps(windows, boxes), len(windows)) for windows, boxes in zip(found, targets)))
    return recall_table(np.concatenate(overlaps), float(np.mean(counts)))


def recall_line(table: dict[str, float]) -> str:
    """The recall and overlap of a :func:`recall_table`, for a terminal."""
    return (
        f"recall@0.5 {table['recall@0.5']:.3f}, @0.7 {table['recall@0.7']:.3f}, "
        f"average best overlap {table['average_best_overlap']:.3f}"
    )


def recall_table(overlaps: np.ndarray, windows: float) -> dict[str, float]:
    """Recall at IoU 0.5 and 0.7, average best overlap, and windows an image, from all targets' best overlaps."""
    if not len(overlaps):
        return {"windows": windows, "recall@0.5": 0.0, "recall@0.7": 0.0, "average_best_overlap": 0.0}
    return {
        "windows": float(windows),
        "recall@0.5": float((overlaps >= 0.5).mean()),
        "recall@0.7": float((overlaps >= 0.7).mean()),
        "average_best_overlap": float(overlaps.mean()),
    }
