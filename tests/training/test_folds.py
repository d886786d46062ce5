"""Cross-validation: maps once, a model per fold, a figure of all images, a model of all images."""

from __future__ import annotations

import numpy as np
import pytest

from sppdet import config
from sppdet.evaluation.run import evaluate_run, read_last_evaluation
from sppdet.training.folds import cross_validate
from sppdet.training.pipeline import Pipeline
from sppdet.utils.errors import SppdetError


@pytest.fixture
def settings(run) -> config.Config:
    return config.load(run.yaml)


def test_folds_measure_every_image_once_and_the_model_learns_from_all(run, settings, log_lines):
    pipeline = cross_validate(settings, 2)
    metrics = run.json("metrics.json")
    assert len(pipeline.inputs.train) == 18 and metrics["pictures"] == 18
    of_folds = [run.json(f"folds/{number}/metrics.json") for number in (1, 2)]
    assert sum(fold["pictures"] for fold in of_folds) == 18
    assert metrics["folds"]["mAP"] == [fold["mAP"] for fold in of_folds]
    assert metrics["proposals"]["windows"] == pytest.approx(np.mean([f["proposals"]["windows"] for f in of_folds]))
    assert sum(metrics["objects"].values()) == sum(len(sample.boxes) for sample in pipeline.inputs.train)
    # The maps of all images were in the cache: nothing but SVMs and boxes was computed.
    assert len(run.stored("maps", ".b2nd")) == 18
    assert any(line.startswith("fold 2 of 2: mAP ") for line in log_lines)
    assert "\n2 folds, mean and spread: mAP " in "\n".join(log_lines)
    assert sum(line.endswith("finished earlier") for line in log_lines) == 2  # proposals and maps
    assert run.detector().classes == pipeline.inputs.train.classes

    # Its files are those of any evaluation; it is not repeated on images that the model has learned from.
    last = read_last_evaluation(run.folder)
    last.check_map(metrics["mAP"])
    assert evaluate_run(run.folder) == metrics
    with pytest.raises(SppdetError, match="was measured by cross-validation and has learned from all"):
        evaluate_run(run.folder, overrides=["detection.nms=0.9"])

    # A second call has nothing to learn.
    before = run.times("**/stages/**/*")
    cross_validate(settings, 2)
    assert run.times("**/stages/**/*") == before


def test_an_interrupted_cross_validation_resumes_at_its_fold(run, settings, monkeypatch):
    stages = Pipeline.run_stages

    def interrupt_second(self, *arguments, **options):
        if self.name.startswith("fold 2"):
            raise KeyboardInterrupt
        stages(self, *arguments, **options)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Pipeline, "run_stages", interrupt_second)
        cross_validate(settings, 2)
    first = run.times("folds/1/stages/**/*")
    assert first
    cross_validate(settings, 2)
    assert run.times("folds/1/stages/**/*") == first and run.json("metrics.json")["pictures"] == 18


def test_a_network_that_learns_from_the_images_is_refused(settings):
    with pytest.raises(SppdetError, match=r"--folds: with backbone\.weights=pretrain a network learns from the images"):
        cross_validate(config.override(settings, ["backbone.weights=pretrain"]), 2)
