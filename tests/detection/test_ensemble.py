"""Several detectors as one: means derived by hand, folders made of runs, and runs that do not fit each other."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hand_made import WINDOWS, A, C, hand_made_detector, hand_made_map

from sppdet.cli.combine import main
from sppdet.detection.detector import Detector
from sppdet.detection.ensemble import Ensemble, load
from sppdet.detection.linear_layers import BoxRegressors, LinearSVMs, Softmax
from sppdet.utils.errors import SppdetError
from sppdet.utils.files import write_json


@pytest.fixture
def by_hand(tiny_features) -> Detector:
    return hand_made_detector(tiny_features)


def shifting(detector: Detector, across: float) -> Detector:
    """One that moves every box by this share of its width to the right."""
    bias = np.zeros((2, 4), np.float32)
    bias[:, 0] = across
    return replace(detector, regressors=BoxRegressors(np.zeros((2, 4, 2), np.float32), bias))


def detected(
    first: Detector, second: Detector, shares: tuple[float, float], maps: tuple, mirrored: tuple | None = None
):
    model = Ensemble((first, second), shares, first.detection)
    return model.detect(maps, WINDOWS, (64, 64), mirrored)


def test_margins_and_shifts_are_means(by_hand):
    # Red's window A scores 3 - 1 in one map and 6 - 1 in the other, blue's C 2 - 1 and 4 - 1.
    own, other = hand_made_map(), 2 * hand_made_map()
    found = detected(shifting(by_hand, 0.25), shifting(by_hand, 1.25), (0.75, 0.25), ([own], [other]))
    assert found.scores.tolist() == [0.75 * 2 + 0.25 * 5, 0.75 * 1 + 0.25 * 3]
    moved = np.array([A, C]) + np.array([8 * 0.5, 0, 8 * 0.5, 0])  # 0.75 of a quarter and 0.25 of 1.25 are a half
    np.testing.assert_allclose(found.boxes, moved, atol=1e-5)


def test_boxes_are_moved_by_those_that_learned_to(by_hand):
    maps = ([hand_made_map()], [hand_made_map()])
    found = detected(by_hand, shifting(by_hand, 1), (0.75, 0.25), maps)
    np.testing.assert_allclose(found.boxes, np.array([A, C]) + np.array([8, 0, 8, 0]), atol=1e-5)
    assert detected(by_hand, by_hand, (0.5, 0.5), maps).boxes.tolist() == [A, C]


def test_both_views_of_a_part_share_its_share(by_hand):
    own, mirrored = hand_made_map(), np.ascontiguousarray(hand_made_map()[:, ::-1])
    mirrored[2, 13, 0] = 2.8  # in place of 3: A's margin is 1.8 there
    found = detected(by_hand, by_hand, (0.25, 0.75), ([own], [2 * own]), ([mirrored], [2 * own[:, ::-1]]))
    assert found.scores[0] == pytest.approx(0.25 * (2 + 1.8) / 2 + 0.75 * 5)


def test_context_is_of_those_that_have_it(by_hand):
    no = LinearSVMs(np.zeros((2, 2), np.float32), np.array([-2, -2], np.float32))
    settings, maps = replace(by_hand.detection, context=0.5), ([hand_made_map()], [hand_made_map()])
    model = Ensemble((replace(by_hand, context=no), by_hand), (0.25, 0.75), settings)
    assert model.detect(maps, WINDOWS, (64, 64)).scores.tolist() == [2 - 0.25 * 0.5 * 2, 1 - 0.25 * 0.5 * 2]
    with pytest.raises(SppdetError, match=r"detection\.context: none of these models"):
        Ensemble((by_hand, by_hand), (0.5, 0.5), settings)


def test_no_proposals(by_hand):
    model = Ensemble((shifting(by_hand, 1), by_hand), (0.5, 0.5), by_hand.detection)
    for found in model.detect_both(([hand_made_map()],) * 2, np.zeros((0, 4), np.float32), (64, 64)):
        assert len(found) == 0


@pytest.fixture
def runs(tmp_path, monkeypatch, by_hand) -> Path:
    """A working folder with ``runs/a``, ``runs/b``, and others that do not fit them."""
    monkeypatch.chdir(tmp_path)
    others = {
        "a": by_hand,
        "b": shifting(by_hand, 0.25),
        "names": replace(by_hand, classes=("red", "green")),
        "softmax": replace(by_hand, classifier=Softmax(np.eye(3, 2, dtype=np.float32), np.zeros(3, np.float32))),
    }
    for name, model in others.items():
        model.save(f"runs/{name}")
        write_json(f"runs/{name}/config.json", {"run": {"dir": f"runs/{name}", "seed": 3}, "workers": 1})
    return tmp_path / "runs"


def test_a_folder_of_runs_is_a_run(runs, capsys):
    assert main(["runs/a", "runs/b", "--weights", "3", "1", "--output", "runs/both"]) == 0
    assert "python -m sppdet.evaluate runs/both" in capsys.readouterr().out
    assert json.loads((runs / "both/config.json").read_text()) == {"run": {"dir": "runs/both", "seed": 3}, "workers": 1}
    (runs / "a").rename(runs / "moved")  # it needs them no more
    model = load("runs/both", "cpu")
    assert model.shares == (0.75, 0.25) and model.classes == ("red", "blue")
    assert [one.regressors is None for one in model.detectors] == [True, False]
    assert sorted(path.name for path in runs.iterdir()) == ["b", "both", "moved", "names", "softmax"]


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
def test_runs_that_do_not_fit(runs, capsys, arguments, line):
    before = sorted(runs.rglob("*"))
    assert main([*arguments, "--output", "runs/both"]) == 2
    assert f"error: {line}" in capsys.readouterr().err
    assert sorted(runs.rglob("*")) == before


def test_an_output_that_cannot_be_written_is_named(runs, capsys):
    assert main(["runs/a", "runs/b", "--output", "runs/a/model.json/both"]) == 2
    assert "error: runs/a/model.json/both: cannot be written" in capsys.readouterr().err


def test_what_is_there_is_kept_and_a_combination_is_no_part(runs, capsys):
    assert main(["runs/a", "runs/b", "--output", "runs/both"]) == 0
    assert main(["runs/a", "runs/b", "--output", "runs/both"]) == 2
    assert "error: runs/both: is there already; give another --output" in capsys.readouterr().err
    assert main(["runs/a", "runs/both", "--output", "runs/more"]) == 2
    assert "name the runs that they were made of" in capsys.readouterr().err
