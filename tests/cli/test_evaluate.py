"""``python -m sppdet.evaluate``: what its options call, and the settings that it refuses."""

from __future__ import annotations

import pytest

from sppdet import evaluation
from sppdet.cli.evaluate import main


@pytest.fixture
def calls(monkeypatch) -> list[tuple]:
    """The calls of the evaluation, which does nothing here."""
    calls: list[tuple] = []

    def record(name: str, result: object):
        return lambda *arguments: calls.append((name, *arguments)) or result

    for name, result in (
        ("evaluate_run", {}), ("summary", "figures"), ("diagnose_run", "errors"), ("compare_runs", "gains")
    ):  # fmt: skip
        monkeypatch.setattr(evaluation, name, record(name, result), raising=False)
    return calls


@pytest.mark.parametrize(
    ("options", "call", "printed"),
    [
        (["detection.nms=0.4"], ("evaluate_run", "runs/a", False, ["detection.nms=0.4"]), "figures\n"),
        (["--force"], ("evaluate_run", "runs/a", True, []), "figures\n"),
        (["--diagnose", "data.root=voc"], ("diagnose_run", "runs/a", ["data.root=voc"]), "errors\n"),
        (["--diagnose", "workers=1"], ("diagnose_run", "runs/a", ["workers=1"]), "errors\n"),
        (["--against", "runs/b"], ("compare_runs", "runs/a", "runs/b", []), "gains\n"),
    ],
)
def test_options_choose_what_is_printed(calls, capsys, options, call, printed):
    assert main(["runs/a", *options]) == 0
    assert calls[0] == call
    assert capsys.readouterr().out == printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["regions.scales=[96]"], "regions.scales=[96]: the trained model has its own regions.scales; train again"),
        (
            ["--diagnose", "detection.nms=0.9"],
            "detection.nms=0.9: the last evaluation has its own detection.nms; evaluate again with it first",
        ),
        (
            ["--against", "runs/b", "detection.nms=0.9"],
            "detection.nms=0.9: the last evaluation has its own detection.nms; evaluate again with it first",
        ),
        (["--diagnose", "svm.C=1"], "svm.C=1: the trained model has its own svm.C; train again"),
    ],
)
def test_settings_of_the_model_and_of_the_last_evaluation_are_refused(calls, capsys, options, message):
    assert main(["runs/a", *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {message}")
    assert not calls


def test_a_folder_that_is_no_run_is_one_line(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"error: {tmp_path}: no run here; python -m sppdet.train CONFIG run.dir={tmp_path} makes one"


def test_two_actions_at_once_are_refused(capsys):
    with pytest.raises(SystemExit):
        main(["runs/a", "--force", "--diagnose"])
    assert "not allowed with argument" in capsys.readouterr().err
