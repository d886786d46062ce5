"""Finished runs in the commands that take them: evaluated again, compared, and combined."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
from tiny_run import TinyRun

import sppdet
from sppdet.cli.combine import main as combine
from sppdet.cli.evaluate import main as evaluate
from sppdet.utils.errors import SppdetError

METRICS = ("AP", "coco", "proposals", "without_bbox")


@pytest.fixture
def twice(tmp_path, trained):
    """A finished run combined with itself."""
    assert combine([str(trained.folder), str(trained.folder), "--output", str(tmp_path / "twice")]) == 0
    return tmp_path / "twice"


def metrics_of(folder) -> dict:
    return json.loads((folder / "metrics.json").read_text())


def test_other_thresholds_of_detection_need_no_training(tmp_path, trained):
    shutil.copytree(trained.folder, tmp_path / "run")
    run = TinyRun(tmp_path, trained.root, trained.cache)
    assert evaluate([str(run.folder), "detection.max_per_class=1"]) == 0
    metrics = run.json("metrics.json")
    assert metrics["config"]["detection"]["max_per_class"] == 1
    detections = run.json("detections/coco_results.json")
    pairs = [(detection["image_id"], detection["category_id"]) for detection in detections]
    assert len(pairs) == len(set(pairs)) == 6 * 6
    assert run.model() == trained.model()


def test_a_run_combined_with_itself_detects_the_same(twice, trained):
    assert evaluate([str(twice)]) == 0
    for name in METRICS:
        assert metrics_of(twice)[name] == metrics_of(trained.folder)[name]


def test_a_combination_is_compared_and_its_errors_are_told(twice, trained, capsys):
    assert evaluate([str(twice)]) == 0
    assert evaluate([str(twice), "--against", str(trained.folder)]) == 0
    assert re.search(r"\+0\.00, between \+0\.00 and \+0\.00 ", capsys.readouterr().out)
    assert evaluate([str(twice), "--diagnose"]) == 0


def test_a_combination_is_not_replaced_by_one_model(twice, trained):
    before = sorted(twice.rglob("*"))
    run = TinyRun(twice.parent, trained.root, trained.cache)
    with pytest.raises(SppdetError, match=r"twice: holds an ensemble of detectors, .* give another run\.dir"):
        run.pipeline(f"run.dir={twice}")
    assert sorted(twice.rglob("*")) == before


def test_runs_are_compared_on_the_same_images_only(run, trained, capsys):
    run.train("svm.C=0.002", "data.limit_test=3")
    capsys.readouterr()
    assert evaluate([str(trained.folder), "--against", str(run.folder)]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert "on other images" in line


def test_different_systems_are_combined(tmp_path, run, trained, shapes_root):
    """SPP-net and R-CNN, with the mirror images of the test images."""
    run.train("regions.crop=warp", "regions.crop_size=64", "regions.context=4", "bbox.enabled=false")
    both = tmp_path / "both"
    assert combine([str(trained.folder), str(run.folder), "--output", str(both)]) == 0
    assert evaluate([str(both), "detection.flip=true"]) == 0
    assert metrics_of(both)["pictures"] == 6
    detections = sppdet.load(both, device="cpu").predict(shapes_root / "JPEGImages" / "test_00000.jpg")
    assert len(detections) > 0 and (np.diff(detections.scores) <= 0).all()
