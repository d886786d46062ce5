"""Two runs on the same pictures: resampled mAP against data sets that really hold the pictures drawn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from truth import picture

from sppdet import significance
from sppdet.data import Dataset
from sppdet.detections import Detections
from sppdet.evaluation import evaluate_voc
from sppdet.measure import Measured
from sppdet.settings import Config
from sppdet.significance import compare_runs, draw, resampled

CLASSES = ("cat", "cow", "dog")


def random_case(seed: int, pictures: int = 12) -> tuple[Dataset, list[Detections]]:
    """Objects, some of them difficult, and detections near them and elsewhere."""
    rng = np.random.default_rng(seed)
    samples, found = [], []
    for p in range(pictures):
        corners = rng.integers(0, 60, (rng.integers(0, 4), 2))
        boxes = np.concatenate([corners, corners + rng.integers(15, 40, corners.shape)], axis=1)
        labels = rng.integers(0, len(CLASSES), len(boxes))
        samples.append(picture(f"p{p}", *zip(boxes.tolist(), labels.tolist(), rng.random(len(boxes)) < 0.2)))
        near, elsewhere = (
            boxes + rng.integers(-6, 7, boxes.shape),
            np.array([0, 0, 30, 30]) + rng.integers(0, 60, (3, 1)),
        )
        labels = np.concatenate([labels, rng.integers(0, len(CLASSES), 3)])
        scores = np.sort(rng.random(len(labels)))[::-1].astype(np.float32)
        order = rng.permutation(len(labels))
        found.append(Detections(np.concatenate([near, elsewhere]).astype(np.float32)[order], labels[order], scores))
    return Dataset(CLASSES, tuple(samples)), found


@pytest.mark.parametrize("seed", range(20))
def test_a_draw_counts_as_a_data_set_that_holds_its_pictures(seed):
    dataset, found = random_case(seed)
    counts = np.concatenate([np.ones((1, 12), int), draw(12, 5, seed)])
    for weight, value in zip(counts, resampled(dataset, found, counts)):
        rows = np.repeat(np.arange(12), weight)
        samples = tuple(replace(dataset.samples[row], id=str(n)) for n, row in enumerate(rows))
        expected = evaluate_voc(Dataset(CLASSES, samples), [found[row] for row in rows])["mAP"]
        assert value == pytest.approx(expected) if expected is not None else np.isnan(value)


def test_a_draw_holds_as_many_pictures_as_there_are():
    counts = draw(7, 100)
    assert counts.shape == (100, 7) and (counts.sum(axis=1) == 7).all() and counts.std() > 0


def test_draws_without_any_object_are_left_out(monkeypatch):
    """Of three pictures one has an object: three draws in ten do not hold it."""
    here = ((0, 0, 20, 20), 0)
    dataset = Dataset(CLASSES, (picture("a", here), picture("b"), picture("c")))
    nothing = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.float32))
    right = Detections(np.array([here[0]], np.float32), np.zeros(1, np.int64), np.ones(1, np.float32))
    first = Measured(Path("good"), Config(), dataset, [right, nothing, nothing], {"mAP": 100.0})
    second = Measured(Path("blind"), Config(), dataset, [nothing] * 3, {"mAP": 0.0})
    monkeypatch.setattr(significance, "last_measured", lambda folder, _: {"good": first, "blind": second}[folder])
    assert ": +100.00, between +100.00 and +100.00 in 95% of" in compare_runs("good", "blind")
