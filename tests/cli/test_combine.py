"""``sppdet combine`` as its users call it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from detectors import hand_made_detector

from sppdet.cli.combine import main
from sppdet.detection.linear_layers import Softmax
from sppdet.detection.saved_ensemble import load
from sppdet.utils.files import write_json


@pytest.fixture
def runs(tmp_path, monkeypatch, tiny_features) -> Path:
    """A working folder with ``runs/a``, ``runs/b``, and runs that do not fit them."""
    monkeypatch.chdir(tmp_path)
    detector = hand_made_detector(tiny_features, channels=128)
    others = {
        "a": detector,
        "b": detector,
        "names": replace(detector, classes=("red", "green")),
        "softmax": replace(detector, classifier=Softmax(np.eye(3, 128, dtype=np.float32), np.zeros(3, np.float32))),
    }
    for name, model in others.items():
        model.save(f"runs/{name}")
        write_json(f"runs/{name}/config.json", {"run": {"dir": f"runs/{name}", "seed": 3}, "workers": 1})
    return tmp_path / "runs"


def test_an_ensemble_is_written_and_its_measurement_suggested(runs, capsys):
    assert main(["runs/a", "runs/b", "--weights", "3", "1", "--output", "runs/both"]) == 0
    assert capsys.readouterr().out == "runs/both: 2 models; python -m sppdet.evaluate runs/both measures it\n"
    assert load("runs/both", "cpu").weights == (0.75, 0.25)


def test_all_runs_weigh_the_same_by_default(runs):
    assert main(["runs/a", "runs/b", "runs/a", "runs/b", "--output", "new/folder"]) == 0
    assert load("new/folder", "cpu").weights == (0.25,) * 4


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["runs/a", "runs/names"], "runs/names: its classes (red, green) are not those of runs/a (red, blue)"),
        (["runs/a", "runs/softmax"], "runs/softmax: SVMs and a softmax cannot be averaged; runs/a has the other one"),
        (["runs/a", "runs/none"], "runs/none: no finished model"),
        (["runs/a", "runs/b", "--weights", "1"], "--weights: give a number above 0 for each of the 2 runs"),
        (["runs/a", "runs/b", "--weights", "1", "0"], "--weights: give a number above 0 for each of the 2 runs"),
        (["runs/a", "runs/b", "--weights", "1", "nan"], "--weights: give a number above 0 for each of the 2 runs"),
    ],
)
def test_runs_that_do_not_fit_are_named_and_nothing_is_written(runs, capsys, arguments, line):
    before = sorted(runs.rglob("*"))
    assert main([*arguments, "--output", "runs/both"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {line}")
    assert sorted(runs.rglob("*")) == before


def test_an_output_that_cannot_be_written_is_named(runs, capsys):
    assert main(["runs/a", "runs/b", "--output", "runs/a/model.json/both"]) == 2
    assert "error: runs/a/model.json/both: cannot be written" in capsys.readouterr().err


def test_a_folder_that_exists_is_kept(runs, capsys):
    assert main(["runs/a", "runs/b", "--output", "runs/names"]) == 2
    assert capsys.readouterr().err == "error: runs/names: exists already; give another --output\n"
    assert load("runs/names", "cpu").classes == ("red", "green")


def test_ensembles_are_not_combined(runs, capsys):
    assert main(["runs/a", "runs/b", "--output", "runs/both"]) == 0
    assert main(["runs/a", "runs/both", "--output", "runs/more"]) == 2
    line = "error: runs/both: ensembles cannot be combined; name the runs that it was made of\n"
    assert capsys.readouterr().err == line
