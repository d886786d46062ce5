"""Flat figures, as experiment trackers read them."""

from __future__ import annotations

import json

import pytest

from sppdet.evaluation.flat_metrics import flat_numbers

METRICS = {
    "mAP": 61.5, "AP": {"cat": 61.5, "ünï (b)": 3, "dog": None}, "coco": {"AP75": 20.25}, "objects": {"cat": 7},
    "proposals": {"recall@0.5": 0.99}, "calibration": {"error": 0.03, "bins": [1, 2]}, "config": {"svm": {"C": 0.01}},
}  # fmt: skip
NUMBERS = {
    "mAP": 61.5, "AP/cat": 61.5, "AP/ünï _b_": 3, "coco/AP75": 20.25, "proposals/recall_0.5": 0.99,
    "calibration/error": 0.03,
}  # fmt: skip


def test_figures_alone_are_kept():
    assert flat_numbers(METRICS) == NUMBERS


def test_mlflow_logs_them(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="needs mlflow-skinny: docs/other-tools.md")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "runs").as_uri())
    with mlflow.start_run() as run:
        mlflow.log_metrics(flat_numbers(METRICS))
    assert mlflow.get_run(run.info.run_id).data.metrics == NUMBERS


def test_dvc_shows_them(tmp_path, monkeypatch):
    api = pytest.importorskip("dvc.api", reason="needs dvc: docs/other-tools.md")
    from dvc.repo import Repo

    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    (tmp_path / "metrics_flat.json").write_text(json.dumps(flat_numbers(METRICS)))
    Repo.init(str(tmp_path), no_scm=True)
    monkeypatch.chdir(tmp_path)
    assert api.metrics_show("metrics_flat.json") == NUMBERS
