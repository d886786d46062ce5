"""Ensembles in files."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from detectors import hand_made_detector

from sppdet.detection.detector import Detector
from sppdet.detection.ensemble import Ensemble
from sppdet.detection.linear_layers import BoxRegressors
from sppdet.detection.saved_ensemble import combine_runs, is_ensemble, is_ensemble_of, load
from sppdet.detection.shipped import shipped_model
from sppdet.features.crop_features import CropFeatures
from sppdet.features.warp import Crop
from sppdet.utils.errors import SppdetError
from sppdet.utils.files import read_json, write_json


@pytest.fixture
def runs(tmp_path, tiny_features) -> Path:
    """The folder of two runs, a and b; b has box regression."""
    detector = hand_made_detector(tiny_features, channels=128)
    regressors = BoxRegressors(np.zeros((2, 4, 128), np.float32), np.zeros((2, 4), np.float32))
    save_run(tmp_path / "runs/a", detector)
    save_run(tmp_path / "runs/b", replace(detector, regressors=regressors))
    return tmp_path / "runs"


def save_run(folder: Path, detector: Detector) -> None:
    detector.save(folder)
    write_json(folder / "config.json", {"run": {"dir": str(folder), "seed": 3}, "workers": 1})


def test_an_ensemble_holds_copies_of_its_runs(runs):
    combine_runs([runs / "a", runs / "b"], [3, 1], runs / "both")
    config = read_json(runs / "both/config.json")
    assert config == {"run": {"dir": str(runs / "both"), "seed": 3}, "workers": 1}
    (runs / "a").rename(runs / "moved")
    model = load(runs / "both", "cpu")
    assert isinstance(model, Ensemble)
    assert model.weights == (0.75, 0.25) and model.classes == ("red", "blue")
    assert [detector.regressors is None for detector in model.detectors] == [True, False]
    assert sorted(path.name for path in runs.iterdir()) == ["b", "both", "moved"]  # and no temporary folder


def test_an_ensemble_with_rcnn_does_not_score_moved_boxes_again(runs):
    first = load(runs / "b", "cpu")
    save_run(runs / "first", first.with_detection(rescore=0.5))
    save_run(runs / "rcnn", replace(first, features=CropFeatures(channels=128, crop=Crop("warp", 64, 4), levels=(1,))))
    combine_runs([runs / "first", runs / "b"], [1, 1], runs / "both")
    assert load(runs / "both", "cpu").detection.rescore == 0.5
    combine_runs([runs / "first", runs / "rcnn"], [1, 1], runs / "with_rcnn")
    model = load(runs / "with_rcnn", "cpu")
    assert model.detection.rescore == 0
    assert read_json(runs / "with_rcnn/config.json")["detection"] == {"rescore": 0}
    with pytest.raises(SppdetError, match=r"detection\.rescore: one of these models reads crops"):
        model.with_detection(rescore=0.5)


def test_the_description_of_an_ensemble(runs):
    """The format of files that other versions read."""
    combine_runs([runs / "a", runs / "b"], [3, 1], runs / "both")
    description = read_json(runs / "both/model.json")
    assert list(description) == ["format", "classes", "proposals", "detection", "parts"]
    assert description["format"] == "combination 1"
    assert [{**part, "digests": len(part["digests"])} for part in description["parts"]] == [
        {"folder": "parts/0", "share": 0.75, "run": "a", "digests": 2},
        {"folder": "parts/1", "share": 0.25, "run": "b", "digests": 2},
    ]


def test_an_ensemble_knows_its_runs(runs):
    combine_runs([runs / "a", runs / "b"], [1, 1], runs / "both")
    assert is_ensemble(runs / "both") and not is_ensemble(runs / "a") and not is_ensemble(runs / "none")
    assert is_ensemble_of(runs / "both", [runs / "a", runs / "b"])
    assert not is_ensemble_of(runs / "both", [runs / "b", runs / "a"])
    (runs / "b" / "model.json").write_text("trained again")
    assert not is_ensemble_of(runs / "both", [runs / "a", runs / "b"])


def test_the_detector_of_the_package_can_be_one_of_the_runs(tmp_path):
    shutil.copytree(shipped_model(), tmp_path / "mine")  # a run of the same classes
    write_json(tmp_path / "mine/config.json", {"run": {"dir": "mine"}})
    combine_runs([tmp_path / "mine", Path("voc07")], [1, 1], tmp_path / "both")
    assert is_ensemble_of(tmp_path / "both", [tmp_path / "mine", shipped_model()])


def test_runs_without_settings_are_refused(runs):
    (runs / "a/config.json").unlink()
    with pytest.raises(SppdetError, match=r"a/config\.json: does not exist; name a run's folder"):
        combine_runs([runs / "a", runs / "b"], [1, 1], runs / "both")
