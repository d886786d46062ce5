"""The study of incomplete labels."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np

from sppdet.data.voc import read_voc

spec = importlib.util.spec_from_file_location(
    "study_incomplete_labels", Path(__file__).parents[2] / "scripts" / "study_incomplete_labels.py"
)
study = importlib.util.module_from_spec(spec)
spec.loader.exec_module(study)


def test_labels_are_removed_at_random_and_images_stay(shapes_root):
    dataset = read_voc(shapes_root, "trainval")
    half = study.without_labels(dataset, 0.5)
    assert [sample.id for sample in half] == [sample.id for sample in dataset]
    counts = [sum(len(sample.labels) for sample in data) for data in (dataset, half)]
    assert 0.2 * counts[0] < counts[1] < 0.8 * counts[0]
    for sample, full in zip(half, dataset):
        assert {*map(tuple, sample.boxes.tolist())} <= {*map(tuple, full.boxes.tolist())}
    for sample, full in zip(study.without_labels(dataset, 0), dataset):
        np.testing.assert_array_equal(sample.boxes, full.boxes)
