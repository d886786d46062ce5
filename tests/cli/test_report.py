"""``python -m sppdet.report``: what it calls, and the settings that it refuses."""

from __future__ import annotations

from sppdet import evaluation, training
from sppdet.cli.report import main


def test_it_prints_where_the_report_is(monkeypatch, capsys):
    monkeypatch.setattr(evaluation, "write_report", lambda run, overrides: f"{run}/{overrides}", raising=False)
    assert main(["runs/a", "data.root=voc"]) == 0
    assert capsys.readouterr().out == "runs/a/['data.root=voc']\n"


def test_a_learning_curve_is_measured_before_the_report(monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(training, "measure_learning_curve", lambda *call: calls.append(call), raising=False)
    monkeypatch.setattr(evaluation, "write_report", lambda *call: calls.append(call), raising=False)
    assert main(["runs/a", "--learning-curve", "run.cache=c"]) == 0
    assert calls == [("runs/a", ["run.cache=c"])] * 2


def test_settings_of_the_last_evaluation_are_refused(capsys):
    assert main(["runs/a", "detection.nms=0.9"]) == 2
    assert "detection.nms=0.9: the last evaluation has its own detection.nms" in capsys.readouterr().err


def test_a_folder_that_was_not_evaluated_is_one_line(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path / 'metrics.json'}: does not exist; python -m sppdet.evaluate")
