"""Two runs on the same images: resampled mAP against data sets that really hold the images drawn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from evaluation_data import image_of

from sppdet.config.settings import Config
from sppdet.data.dataset import Dataset
from sppdet.detection.detections import Detections
from sppdet.evaluation import significance
from sppdet.evaluation.run import LastEvaluation
from sppdet.evaluation.significance import compare_runs, draw_image_counts, mean_over_classes, resampled_ap
from sppdet.evaluation.voc import evaluate_voc

CLASSES = ("cat", "cow", "dog")


def random_case(seed: int, images: int = 12) -> tuple[Dataset, list[Detections]]:
    """Objects, some of them difficult, and detections near them and elsewhere."""
    rng = np.random.default_rng(seed)
    samples, found = [], []
    for p in range(images):
        corners = rng.integers(0, 60, (rng.integers(0, 4), 2))
        boxes = np.concatenate([corners, corners + rng.integers(15, 40, corners.shape)], axis=1)
        labels = rng.integers(0, len(CLASSES), len(boxes))
        samples.append(image_of(f"p{p}", *zip(boxes.tolist(), labels.tolist(), rng.random(len(boxes)) < 0.2)))
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
def test_a_draw_counts_as_a_data_set_that_holds_its_images(seed):
    dataset, found = random_case(seed)
    counts = np.concatenate([np.ones((1, 12), int), draw_image_counts(12, 5, seed)])
    by_class = resampled_ap(dataset, found, counts)
    for weight, values, mean in zip(counts, by_class.T, mean_over_classes(by_class)):
        rows = np.repeat(np.arange(12), weight)
        samples = tuple(replace(dataset.samples[row], id=str(n)) for n, row in enumerate(rows))
        expected = evaluate_voc(Dataset(CLASSES, samples), [found[row] for row in rows])
        for value, figure in zip([mean, *values], [expected["mAP"], *expected["AP"].values()]):
            assert value == pytest.approx(figure) if figure is not None else np.isnan(value)


def test_a_draw_holds_as_many_images_as_there_are():
    counts = draw_image_counts(7, 100)
    assert counts.shape == (100, 7) and (counts.sum(axis=1) == 7).all() and counts.std() > 0


def nothing() -> Detections:
    return Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.float32))


def right(box: tuple[int, ...], label: int) -> Detections:
    return Detections(np.array([box], np.float32), np.array([label]), np.ones(1, np.float32))


def compared(monkeypatch, dataset: Dataset, first: list[Detections], second: list[Detections]) -> list[str]:
    """The lines that compare runs of these detections."""
    runs = {
        name: LastEvaluation(Path(name), Config(), dataset, found, {"mAP": evaluate_voc(dataset, found)["mAP"]})
        for name, found in (("first", first), ("second", second))
    }
    monkeypatch.setattr(significance, "read_last_evaluation", lambda folder, _: runs[folder])
    return compare_runs("first", "second").splitlines()


BOX = (0, 0, 20, 20)


def test_draws_without_any_object_are_left_out(monkeypatch):
    """Of three images one has an object: three draws in ten do not hold it."""
    dataset = Dataset(CLASSES, (image_of("a", (BOX, 0)), image_of("b"), image_of("c")))
    lines = compared(monkeypatch, dataset, [right(BOX, 0), nothing(), nothing()], [nothing()] * 3)
    assert ": +100.00, between +100.00 and +100.00 in 95% of" in lines[0]


def test_classes_whose_gain_other_images_would_keep_are_marked(monkeypatch):
    """Cats are found by the first run alone; of cows each run finds those of one image; there are no dogs."""
    dataset = Dataset(CLASSES, tuple(image_of(f"{n}", (BOX, n % 2)) for n in range(4)))
    cats, cow = [right(BOX, 0), nothing(), right(BOX, 0), nothing()], right(BOX, 1)
    first, second = [cats[0], cow, cats[2], nothing()], [nothing(), nothing(), nothing(), cow]
    lines = compared(monkeypatch, dataset, first, second)
    assert [line.split() for line in lines[2:-1]] == [
        ["cat", "100.0", "0.0", "+100.0", "+100.0", "to", "+100.0", "*"],
        ["cow", "54.5", "54.5", "+0.0", "-100.0", "to", "+100.0"],
    ]
