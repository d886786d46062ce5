"""Cross-validation: maps once, a model per fold, a figure of all images, a model of all images."""

from __future__ import annotations

import numpy as np
import pytest

from sppdet import config
from sppdet.evaluation.run import evaluate_run, read_last_evaluation
from sppdet.training import folds
from sppdet.training.folds import cross_validate, measure_learning_curve
from sppdet.training.pipeline import Pipeline
from sppdet.utils.errors import SppdetError


@pytest.fixture
def settings(run) -> config.Config:
    return config.load(run.yaml)


def test_folds_measure_every_image_once_and_the_model_learns_from_all(run, settings, log_lines):
    maps = set(run.stored("maps", ".b2nd"))
    pipeline = cross_validate(settings, 2)
    metrics = run.json("metrics.json")
    assert len(pipeline.inputs.train) == 18 and metrics["pictures"] == 18
    of_folds = [run.json(f"folds/{number}/metrics.json") for number in (1, 2)]
    assert sum(fold["pictures"] for fold in of_folds) == 18
    assert metrics["folds"]["mAP"] == [fold["mAP"] for fold in of_folds]
    assert metrics["proposals"]["windows"] == pytest.approx(np.mean([f["proposals"]["windows"] for f in of_folds]))
    assert sum(metrics["objects"].values()) == sum(len(sample.boxes) for sample in pipeline.inputs.train)
    # The maps of all images were in the cache: nothing but SVMs and boxes was computed.
    assert set(run.stored("maps", ".b2nd")) == maps
    # One report, of all folds.
    assert [path.parent for path in run.folder.rglob("report.html")] == [run.folder]
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


@pytest.mark.parametrize(("change", "images"), [("data.limit_train=8", 8), ("data.tiles=64", 18)])
def test_folds_of_some_images_or_of_tiles_are_a_run_like_any_other(run, settings, tmp_path, change, images):
    cross_validate(config.override(settings, [change, f"run.cache={tmp_path / 'cache'}"]), 2)
    metrics = run.json("metrics.json")
    assert metrics["pictures"] == images and (run.folder / "report.html").exists()
    assert evaluate_run(run.folder) == metrics and len(read_last_evaluation(run.folder).dataset) == images


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


@pytest.mark.parametrize("folds", [1, 0, -2])
def test_fewer_than_two_folds_are_refused(settings, folds):
    with pytest.raises(SppdetError, match=f"--folds: expected 2 or more, found {folds}"):
        cross_validate(settings, folds)


def test_a_network_that_learns_from_the_images_is_refused(settings):
    with pytest.raises(SppdetError, match=r"--folds: with backbone\.weights=pretrain a network learns from the images"):
        cross_validate(config.override(settings, ["backbone.weights=pretrain"]), 2)


class TestLearningCurve:
    def test_folds_bring_one_where_it_takes_little(self, run, settings, monkeypatch, log_lines):
        monkeypatch.setattr(folds, "_MOST_OF_TRAINING", 100)
        cross_validate(settings, 2)
        metrics = run.json("metrics.json")
        quarter, half, every = metrics["learning_curve"]
        # Each fold has 9 images to learn from: 4 of them are a half, or 5, and of these 2 or 3 a quarter.
        assert every == {"images": 9, **metrics["folds"]}
        assert 2 <= quarter["images"] <= 3 and 4 <= half["images"] <= 5 and len(half["mAP"]) == 2
        assert half["mAP"] == [run.json(f"folds/{n}/learning_curve/half-1/metrics.json")["mAP"] for n in (1, 2)]
        assert "mAP by the number of training images: " in "\n".join(log_lines)
        assert "2 folds, svm, bbox, learning curve; about " in "".join(log_lines)
        assert "training images mAP " in (run.folder / "report.html").read_text(encoding="utf-8")
        before = run.times("**/stages/**/*")
        cross_validate(settings, 2)
        assert run.times("**/stages/**/*") == before

    def test_folds_leave_it_out_where_it_takes_long_until_it_is_asked_for(self, run, settings, monkeypatch, log_lines):
        monkeypatch.setattr(folds, "_MOST_OF_TRAINING", 0)
        cross_validate(settings, 2)
        (line,) = [line for line in log_lines if line.startswith("no learning curve, which would take about ")]
        assert line.endswith(f"; sppdet report {run.folder} --learning-curve measures it later")
        assert "learning_curve" not in run.json("metrics.json") and not [*run.folder.rglob("learning_curve")]
        curve = measure_learning_curve(run.folder)
        assert [point["images"] for point in curve][-1] == 9
        cross_validate(settings, 2)  # what was measured stays
        assert run.json("metrics.json")["learning_curve"] == curve

    def test_a_run_without_folds_is_measured_on_request(self, run, log_lines):
        run.train()
        before, learned = run.json("metrics.json"), run.times("stages/**/*")
        log_lines.clear()
        curve = measure_learning_curve(run.folder)
        assert run.json("metrics.json") == {**before, "learning_curve": curve}
        assert [(point["images"], len(point["mAP"])) for point in curve] == [(3, 4), (6, 2), (12, 1)]
        assert curve[-1]["mAP"] == [before["mAP"]] and curve[-1]["AP75"] == [before["coco"]["AP75"]]
        # The run is as it was, and nothing but the figures is left of the others.
        assert run.times("stages/**/*") == learned and not (run.folder / "learning_curve").exists()
        assert sum(line.startswith("learning curve, ") for line in log_lines) == 6

    def test_a_run_of_other_images_than_now_is_refused(self, run):
        run.train()
        with pytest.raises(SppdetError, match="images, annotations or settings have changed since it was trained"):
            measure_learning_curve(run.folder, ["data.limit_train=11"])

    def test_too_few_images_are_refused(self, run):
        run.train("data.limit_train=7")
        with pytest.raises(SppdetError, match="has learned from too few images to divide them"):
            measure_learning_curve(run.folder)

    def test_a_folder_without_a_run_is_named(self, tmp_path):
        with pytest.raises(SppdetError, match="no measured run here"):
            measure_learning_curve(tmp_path)
