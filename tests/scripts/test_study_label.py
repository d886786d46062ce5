"""The study of pre-labels."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np

from sppdet.data.dataset import Sample
from sppdet.detection.detections import Detections

spec = importlib.util.spec_from_file_location("study_label", Path(__file__).parents[2] / "scripts" / "study_label.py")
study = importlib.util.module_from_spec(spec)
spec.loader.exec_module(study)


def test_every_box_is_kept_moved_deleted_or_drawn():
    objects = np.array([[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10], [60, 0, 70, 10], [80, 0, 90, 10]], np.float32)
    sample = Sample("a", Path("a.png"), 100, 20, objects, np.array([0, 0, 1, 0, 0]), np.array([0, 0, 0, 0, 1], bool))
    boxes = np.array([[0, 0, 10, 9], [0, 0, 10, 10], [20, 0, 30, 6], [40, 0, 50, 10]], np.float32)
    found = Detections(boxes, np.zeros(4, np.int64), np.array([4, 3, 2, 1], np.float32))
    # The second is a double of the first, the fourth of another class; two objects have no box, one is difficult.
    assert study.corrections(sample, found, 0.75) == {"keep": 1, "delete": 2, "move": 1, "draw": 2}
