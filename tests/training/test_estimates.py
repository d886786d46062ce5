"""Estimates follow from the speed of the machine, the number of images and what is in the cache."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_run import TinyRun

from sppdet.data.dataset import Sample
from sppdet.training.estimates import Speed, estimate, log_plan, measure_speed
from sppdet.utils.errors import SppdetError
from sppdet.utils.progress import Estimate

STAGES = ["proposals", "maps", "svm", "bbox", "evaluate"]


def test_each_stage_takes_its_time_per_image(tmp_path, shapes_root):
    inputs = TinyRun(tmp_path, shapes_root).pipeline("svm.flip=true", "regions.scales=[160,320]").inputs
    estimates = estimate(inputs, STAGES, Speed(proposals=2, maps=3, pooling=5, operation=1e-9))
    # 12 training images with mirror images, in which nothing is mined, 6 test images, 6 classes; one worker.
    assert estimates["proposals"] == Estimate(2 * 18, 18)
    assert estimates["maps"] == Estimate(3 * 30, 2 * 30)
    assert estimates["svm"] == Estimate(pytest.approx(5 * 3.0 * 24 * 2 / 3 + 6))
    # Box regression multiplies, for each class, a matrix with itself: 30 windows per object, but no more than 100.
    counts = np.bincount(np.concatenate([sample.labels for sample in inputs.train]), minlength=6)
    windows, features = np.minimum(30 * counts, 100), inputs.pooled_features.dimension
    operations = (2 * windows.astype(float) ** 2 * features + windows**3 / 3).sum()
    assert estimates["bbox"] == Estimate(pytest.approx(5 * 0.6 * 12 + 6 * 0.2 + 1e-9 * operations))
    assert estimates["evaluate"] == Estimate(pytest.approx(1 + 5 * 1.2 * 6), 6)


def test_what_is_in_the_cache_takes_no_time(run):
    estimates = estimate(run.pipeline().inputs, STAGES[:2], Speed(2, 3, 5, 0))
    assert estimates == {"proposals": Estimate(0, 0), "maps": Estimate(0, 0)}
    estimates = estimate(run.pipeline().inputs, STAGES[:2], Speed(2, 3, 5, 0), again=True)
    assert estimates == {"proposals": Estimate(2 * 18, 18), "maps": Estimate(3 * 18, 18)}


def test_without_a_speed_the_time_is_unknown(run, log_lines):
    estimates = estimate(run.pipeline().inputs, ["svm"], None)
    assert estimates == {"svm": Estimate(None)}
    log_plan(["svm"], estimates, 2)
    assert log_lines == ["to do: svm; the time is told on the way on 2 cores"]


def test_speed_is_measured_on_the_runs_images(run):
    speed = measure_speed(run.pipeline().inputs)
    assert speed is not None and min(speed.proposals, speed.maps, speed.pooling, speed.operation) > 0


def test_an_image_that_cannot_be_read_does_not_stop_the_measurement(run, monkeypatch):
    inputs = run.pipeline().inputs

    def broken(self):
        raise SppdetError("broken")

    monkeypatch.setattr(Sample, "read", broken)
    assert measure_speed(inputs) is None


def test_what_is_waiting_is_what_would_be_computed(run, tmp_path, shapes_root):
    assert run.pipeline().waiting() == ["svm", "bbox", "evaluate"]
    assert TinyRun(tmp_path / "new", shapes_root).pipeline("backbone.weights=pretrain").waiting("maps") == [
        "pretrain", "proposals", "maps",
    ]  # fmt: skip


def test_a_finished_run_has_nothing_waiting(trained):
    assert trained.pipeline().waiting() == []
    assert trained.pipeline().waiting("svm", force=True) == ["svm"]
