"""Evaluation of a trained run: its files, when it is done again, and what is read back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sppdet import config
from sppdet.config.settings import Config
from sppdet.detection.detector import Detector
from sppdet.detection.linear_layers import BoxRegressors, LinearSVMs
from sppdet.evaluation import run as evaluation
from sppdet.evaluation.coco import evaluate_coco
from sppdet.evaluation.report import page
from sppdet.evaluation.run import evaluate_run, read_last_evaluation, summary
from sppdet.evaluation.voc import evaluate_voc
from sppdet.features.pyramid_features import PyramidFeatures
from sppdet.networks.backbone import Backbone
from sppdet.proposals.search import SelectiveSearch
from sppdet.utils.errors import SppdetError
from sppdet.utils.files import read_json, write_json

CLASSES = ("circle", "cross", "ring", "square", "star", "triangle")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, shapes_root) -> Config:
    """The settings of a run whose detector has random SVMs and regressors that make every box a little larger."""
    folder = tmp_path_factory.mktemp("evaluated")
    settings = config.override(
        Config(),
        [
            f"data.root={shapes_root}", f"run.dir={folder / 'run'}", f"run.cache={folder / 'cache'}",
            "backbone.name=small", "backbone.weights=random", "backbone.precision=float32", "regions.scales=[160]",
            "pooling.levels=[2,1]", "device=cpu", "workers=1", "detection.context=0", "detection.min_margin=-1",
        ],
    )  # fmt: skip
    backbone = Backbone.create("small", "random", "cpu", "float32", seed=3)
    features = PyramidFeatures.create(backbone, settings.regions, settings.pooling)
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(len(CLASSES), features.dimension)).astype(np.float32) * 0.01
    moves = np.zeros((len(CLASSES), 4, features.dimension), np.float32)
    Detector(
        classes=CLASSES,
        backbone=backbone,
        features=features,
        search=SelectiveSearch.of(settings.proposals),
        classifier=LinearSVMs(weight, np.zeros(len(CLASSES), np.float32)),
        regressors=BoxRegressors(moves, np.full((len(CLASSES), 4), (0, 0, 0.1, 0.1), np.float32)),
        detection=settings.detection,
    ).save(folder / "run")
    write_json(folder / "run" / "config.json", config.to_dict(settings))
    evaluate_run(settings)
    return settings


def test_the_figures_are_those_of_the_detections_that_are_written(trained):
    folder = Path(trained.run.dir)
    metrics = read_json(folder / "metrics.json")
    last = read_last_evaluation(folder)
    assert sum(map(len, last.detections)) > 0 and last.config == trained and last.metrics == metrics
    voc = evaluate_voc(last.dataset, last.detections)
    assert {name: metrics[name] for name in voc} == voc
    assert metrics["coco"] == evaluate_coco(last.dataset, last.detections)
    assert metrics["pictures"] == 6 and metrics["proposals"]["windows"] > 0
    assert metrics["config"] == json.loads(json.dumps(config.to_dict(trained)))
    assert list(metrics) == [
        "mAP", "mAP_area", "AP", "AP_area", "recall", "without_bbox", "coco", "proposals", "pictures", "objects",
        "stages", "config", "key", "detections",
    ]  # fmt: skip
    assert list(metrics["stages"]["evaluate"]) == ["seconds", "peak_memory_mb"]
    labels = np.concatenate([sample.labels[~sample.difficult] for sample in last.dataset])
    assert [*metrics["objects"].values()] == np.bincount(labels, minlength=len(metrics["AP"])).tolist()
    results = json.loads((folder / "detections" / "coco_results.json").read_text())
    assert len(results) == sum(map(len, last.detections))


def test_an_evaluation_writes_a_report_and_a_missing_one_is_written_again(trained):
    path = Path(trained.run.dir) / "report.html"
    assert f"mAP</span><strong>{evaluate_run(trained)['mAP']:.1f}<" in path.read_text(encoding="utf-8")
    path.unlink()
    evaluate_run(trained)
    assert path.exists()


def test_a_report_that_cannot_be_written_costs_a_warning_and_no_old_one_stays(trained, monkeypatch, caplog):
    def fail(folder):
        raise SppdetError("no report today")

    monkeypatch.setattr(page, "write_report", fail)
    assert evaluate_run(trained, force=True)["mAP"] is not None
    assert "no report: no report today" in caplog.text
    assert not (Path(trained.run.dir) / "report.html").exists()


def test_box_regression_is_in_the_figures_and_out_of_those_without_it(trained):
    metrics = evaluate_run(trained)
    without = metrics["without_bbox"]
    assert set(without) == {"mAP", "mAP_area", "AP", "AP_area", "recall"}
    assert without["mAP"] != metrics["mAP"]


@pytest.fixture
def counted(trained, monkeypatch) -> list[int]:
    """The settings' run; a list that grows with every evaluation that is really done."""
    calls: list[int] = []
    detect_all = evaluation.detect_all
    monkeypatch.setattr(evaluation, "detect_all", lambda *arguments: calls.append(1) or detect_all(*arguments))
    return calls


def test_an_evaluation_is_not_repeated_unless_something_changes(trained, counted):
    first = evaluate_run(trained)
    assert evaluate_run(trained.run.dir) == first and not counted
    changed = evaluate_run(trained.run.dir, overrides=["detection.nms=0.9"])
    assert len(counted) == 1 and changed["config"]["detection"]["nms"] == 0.9 and changed["key"] != first["key"]
    assert evaluate_run(trained, overrides=["detection.nms=0.9"]) == changed and len(counted) == 1
    again = evaluate_run(trained, force=True)
    assert len(counted) == 2
    assert {**again, "stages": None} == {**first, "stages": None}


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(SppdetError, match=r"nothing: no run here; python -m sppdet.train CONFIG run.dir="):
        evaluate_run(tmp_path / "nothing")


def test_classes_that_are_not_the_models_are_refused(trained):
    with pytest.raises(SppdetError, match=r"data\.classes: .* was trained on circle, cross, ring"):
        evaluate_run(trained, overrides=["data.classes=[cross,circle]"])


def test_the_last_evaluation_is_read_where_the_data_are_now(trained, tmp_path, shapes_root):
    (tmp_path / "moved").symlink_to(shapes_root)
    last = read_last_evaluation(trained.run.dir, [f"data.root={tmp_path / 'moved'}"])
    assert last.config.data.root == str(tmp_path / "moved")
    assert last.dataset[0].path.is_relative_to(tmp_path / "moved")


def test_detections_of_another_evaluation_are_refused(trained):
    last = read_last_evaluation(trained.run.dir)
    last.check_map(last.metrics["mAP"] + 0.009)
    for measured in (last.metrics["mAP"] + 0.02, None):
        with pytest.raises(SppdetError, match=f"the detections have mAP {measured}, but metrics.json says"):
            last.check_map(measured)


def test_edited_figures_are_named(trained):
    """A file without its checksum may hold anything."""
    path = Path(trained.run.dir) / "metrics.json"
    content = path.read_text()
    try:
        for name, value in {"coco": {}, "recall": {}, "proposals": [], "objects": {"circle": "x"}}.items():
            write_json(path, read_json(path) | {name: value})
            with pytest.raises(SppdetError, match=r"metrics\.json: holds something else than expected"):
                evaluate_run(trained.run.dir)
            path.write_text(content)
    finally:
        path.write_text(content)


def test_a_run_that_was_not_evaluated_is_named(tmp_path):
    with pytest.raises(SppdetError, match=r"metrics\.json: does not exist; python -m sppdet\.evaluate"):
        read_last_evaluation(tmp_path)


def test_the_summary_has_means_and_proposals():
    metrics = {
        "mAP": 61.84, "mAP_area": 63.0, "AP": {"cat": 61.84, "dog": None}, "AP_area": {"cat": 63.0, "dog": None},
        "recall": {"cat": 90.0, "dog": None}, "without_bbox": {"mAP": 60.0}, "pictures": 7,
        "proposals": {"windows": 409.4, "recall@0.5": 0.996, "recall@0.7": 0.961, "average_best_overlap": 0.905},
        "coco": {"AP": 30.04, "AP50": 61.0, "AP75": None},
    }  # fmt: skip
    assert summary(metrics).splitlines() == [
        "class AP 11-pt  AP area   recall",
        "cat       61.8     63.0     90.0",
        "dog          -        -        -",
        "mean      61.8     63.0",
        "7 images; 409 proposals per image, recall@0.5 0.996, @0.7 0.961, average best overlap 0.905",
        "mAP 61.8 at IoU 0.5 (11-point; 60.0 without box regression); COCO AP 30.0, AP50 61.0, AP75 -",
    ]
    metrics |= {"objects": {"cat": 12, "dog": 0}, "folds": {"mAP": [60.0, 62.0, None], "AP75": [30.0, 30.0, 30.0]}}
    lines = summary(metrics).splitlines()
    assert lines[:4] == [
        "class  objects AP 11-pt  AP area   recall",
        "cat         12     61.8     63.0     90.0",
        "dog          0        -        -        -",
        "mean        12     61.8     63.0",
    ]
    assert lines[-1] == "3 folds, mean and spread: mAP 61.0 ± 1.4, AP75 30.0 ± 0.0"


def test_other_tools_find_flat_numbers_and_coco_s_ground_truth(trained):
    folder, metrics = Path(trained.run.dir), evaluate_run(trained)
    numbers = json.loads((folder / "metrics_flat.json").read_text())
    assert all(type(value) in (int, float) for value in numbers.values())
    assert numbers["mAP"] == metrics["mAP"] and numbers["coco/AP75"] == metrics["coco"]["AP75"]
    assert numbers["AP/star"] == metrics["AP"]["star"]
    assert numbers["proposals/recall_0.5"] == metrics["proposals"]["recall@0.5"]
    truth = json.loads((folder / "detections" / "coco_ground_truth.json").read_text())
    results = json.loads((folder / "detections" / "coco_results.json").read_text())
    assert len(truth["images"]) == 6 and {row["image_id"] for row in results} <= {row["id"] for row in truth["images"]}
    assert len(truth["annotations"]) == sum(metrics["objects"].values())
