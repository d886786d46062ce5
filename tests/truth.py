"""Small data sets and detections in a line, for the tests of what measures them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sppdet.data.dataset import Dataset, Sample
from sppdet.detection.detections import Detections
from sppdet.ops.boxes import as_boxes

# Objects far from each other, 100 square pixels each, and windows beside them.
HERE, THERE, ELSEWHERE = (0, 0, 10, 10), (100, 0, 110, 10), (200, 0, 210, 10)


def found(*rows) -> Detections:
    """Detections from rows of (box, label, score)."""
    return Detections(
        as_boxes([row[0] for row in rows]),
        np.array([row[1] for row in rows], np.int64),
        np.array([row[2] for row in rows], np.float32),
    )


def image(name, *rows, path=None) -> Sample:
    """A sample from rows of (box, label) or (box, label, difficult)."""
    return Sample(
        name,
        Path(path or f"JPEGImages/{name}.jpg"),
        640,
        480,
        as_boxes([row[0] for row in rows]),
        np.array([row[1] for row in rows], np.int64),
        np.array([len(row) > 2 and row[2] for row in rows], bool),
    )


def dataset(*samples, classes=("cat", "dog")) -> Dataset:
    return Dataset(tuple(classes), tuple(samples))


def scattered(objects: int, seed: int):
    """One object an image, found in seven of ten; a window on nothing in each; scores all differ."""
    random = np.random.default_rng(seed)
    truth = dataset(*(image(f"{i:06d}", (HERE, 0)) for i in range(objects)), classes=["cat"])
    scores = random.permutation(2 * objects).reshape(objects, 2)
    rows = [[(HERE, 0, s), (THERE, 0, t)] if random.random() < 0.7 else [(THERE, 0, s)] for s, t in scores]
    return truth, [found(*row) for row in rows]
