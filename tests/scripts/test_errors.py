"""What a script cannot use is one line, as with the commands, and no traceback."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("pack_detector", ["missing"]),
        ("study_add", ["--root", "missing"]),
        ("study_faster_rcnn", ["missing", "--minutes", "1"]),
        ("study_front_door", ["missing", "--work", "runs"]),
        ("study_incomplete_labels", ["--root", "missing"]),
        ("study_label", ["missing"]),
        ("bench", ["photo", "--weights", "missing"]),
        ("bench", ["all", "--voc-root", "missing"]),
    ],
)
def test_a_folder_or_file_that_does_not_exist(script, arguments, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    spec = importlib.util.spec_from_file_location(script, SCRIPTS / f"{script}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.main(arguments) == 2
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert errors and "missing" in errors[0]
