"""Comparison of two runs: AP on resampled images, beside the evaluation of data sets that really hold those images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from evaluation_data import detections_of, image_of, random_detections

from sppdet.config.settings import Config
from sppdet.data.dataset import Dataset
from sppdet.detection.detections import Detections
from sppdet.evaluation import significance
from sppdet.evaluation.coco import evaluate_coco
from sppdet.evaluation.run import LastEvaluation
from sppdet.evaluation.significance import (
    compare_runs,
    draw_image_counts,
    mean_over_classes,
    resampled_ap,
    resampled_coco_ap,
)
from sppdet.evaluation.voc import evaluate_voc
from sppdet.utils.errors import SppdetError

CLASSES = ("cat", "cow", "dog")
BOX = (0, 0, 20, 20)


def random_case(seed: int, images: int = 12) -> tuple[Dataset, list[Detections]]:
    """Return objects, some of them difficult, and detections near them and elsewhere."""
    rng = np.random.default_rng(seed)
    samples, detections = [], []
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
        detections.append(
            Detections(np.concatenate([near, elsewhere]).astype(np.float32)[order], labels[order], scores)
        )
    return Dataset(CLASSES, tuple(samples)), detections


@pytest.mark.parametrize("seed", range(20))
def test_resampled_ap_equals_that_of_a_data_set_with_repeated_images(seed):
    dataset, detections = random_case(seed)
    counts = np.concatenate([np.ones((1, 12), int), draw_image_counts(12, 5, seed)])
    by_class = resampled_ap(dataset, detections, counts)
    for weight, values, mean in zip(counts, by_class.T, mean_over_classes(by_class)):
        rows = np.repeat(np.arange(12), weight)
        samples = tuple(replace(dataset.samples[row], id=str(n)) for n, row in enumerate(rows))
        expected = evaluate_voc(Dataset(CLASSES, samples), [detections[row] for row in rows])
        for value, figure in zip([mean, *values], [expected["mAP"], *expected["AP"].values()]):
            assert value == pytest.approx(figure) if figure is not None else np.isnan(value)


def test_each_draw_holds_as_many_images_as_there_are():
    counts = draw_image_counts(7, 2000)
    assert (counts.sum(axis=1) == 7).all()
    # Each image is drawn 7 times with a chance of 1 in 7: mean 1, variance 6/7.
    np.testing.assert_allclose(counts.mean(axis=0), 1, atol=0.1)
    np.testing.assert_allclose(counts.var(axis=0), 6 / 7, atol=0.1)


def one_detection(label: int) -> Detections:
    """Return one correct detection."""
    return detections_of((BOX, label, 1.0))


def compared(monkeypatch, dataset: Dataset, first: list[Detections], second: list[Detections]) -> list[str]:
    """Return the lines that compare runs with these detections."""
    runs = {
        name: LastEvaluation(
            Path(name), Config(), dataset, detections, {"mAP": evaluate_voc(dataset, detections)["mAP"]}
        )
        for name, detections in (("first", first), ("second", second))
    }
    monkeypatch.setattr(significance, "read_last_evaluation", lambda folder, _: runs[folder])
    return compare_runs("first", "second").splitlines()


def test_draws_without_any_object_are_left_out(monkeypatch):
    """One of three images has an object: three draws in ten do not hold it."""
    dataset = Dataset(CLASSES, (image_of("a", (BOX, 0)), image_of("b"), image_of("c")))
    nothing = detections_of()
    lines = compared(monkeypatch, dataset, [one_detection(0), nothing, nothing], [nothing] * 3)
    assert lines[0].startswith("mAP 100.00, of second 0.00: +100.00, between +100.00 and +100.00 in 95% of 1000")


def test_classes_whose_gain_is_on_one_side_of_0_are_marked(monkeypatch):
    """Cats are found by the first run alone; of cows each run finds those of one image; there are no dogs."""
    dataset = Dataset(CLASSES, tuple(image_of(f"{n}", (BOX, n % 2)) for n in range(4)))
    cat, cow, nothing = one_detection(0), one_detection(1), detections_of()
    lines = compared(monkeypatch, dataset, [cat, cow, cat, nothing], [nothing, nothing, nothing, cow])
    assert [line.split() for line in lines[2:-1]] == [
        ["cat", "100.0", "0.0", "+100.0", "+100.0", "to", "+100.0", "*"],
        ["cow", "54.5", "54.5", "+0.0", "-100.0", "to", "+100.0"],
    ]


def test_test_images_without_objects_are_refused(monkeypatch):
    dataset = Dataset(CLASSES, (image_of("a"),))
    with pytest.raises(SppdetError, match="first: its test images have no objects"):
        compared(monkeypatch, dataset, [detections_of()], [detections_of()])


def test_the_images_as_they_are_have_nearly_cocos_ap():
    dataset, detections = random_detections(60, seed=2)
    rng = np.random.default_rng(0)
    detections = [replace(entry, xyxy=entry.xyxy + rng.uniform(0, 1, entry.xyxy.shape)) for entry in detections]
    (ap,) = resampled_coco_ap(dataset, detections, np.ones((1, 60), int))
    assert ap == pytest.approx(evaluate_coco(dataset, detections)["AP"], abs=0.8)
    twice = resampled_coco_ap(dataset, detections, np.array([[2] + [0] * 59, [0] * 60]))
    assert twice.shape == (2,) and np.isnan(twice[1])
