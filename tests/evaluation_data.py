"""Small data sets and detections, each in one line, for the tests of the evaluation."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sppdet.data.dataset import Dataset, Sample
from sppdet.detection.detections import Detections
from sppdet.ops.boxes import as_boxes

# Objects far from each other, of 10 x 10 pixels.
HERE, THERE, ELSEWHERE = (0, 0, 10, 10), (100, 0, 110, 10), (200, 0, 210, 10)


def detections_of(*rows) -> Detections:
    """Return detections from rows of (box, label, score)."""
    return Detections(
        as_boxes([row[0] for row in rows]),
        np.array([row[1] for row in rows], np.int64),
        np.array([row[2] for row in rows], np.float32),
    )


def image_of(name: str, *rows, path: str | None = None) -> Sample:
    """Return a sample of 640 x 480 pixels from rows of (box, label) or (box, label, difficult)."""
    return Sample(
        name,
        Path(path or f"JPEGImages/{name}.jpg"),
        640,
        480,
        as_boxes([row[0] for row in rows]),
        np.array([row[1] for row in rows], np.int64),
        np.array([len(row) > 2 and row[2] for row in rows], bool),
    )


def dataset_of(*images: Sample, classes=("cat", "dog")) -> Dataset:
    """Return a data set of these images."""
    return Dataset(tuple(classes), tuple(images))


def random_detections(images: int, seed: int) -> tuple[Dataset, list[Detections]]:
    """Return images of one cat each, of which seven in ten are detected, with a false detection in each image.

    No two scores are equal.
    """
    rng = np.random.default_rng(seed)
    dataset = dataset_of(*(image_of(f"{i:06d}", (HERE, 0)) for i in range(images)), classes=["cat"])
    scores = rng.permutation(2 * images).reshape(images, 2)
    rows = [[(HERE, 0, s), (THERE, 0, t)] if rng.random() < 0.7 else [(THERE, 0, s)] for s, t in scores]
    return dataset, [detections_of(*row) for row in rows]
