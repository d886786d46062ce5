"""scripts/study_proposals.py: its tables and its plot."""

import importlib.util
from pathlib import Path

from PIL import Image

from sppdet.data.shapes import make_shapes

spec = importlib.util.spec_from_file_location(
    "study_proposals", Path(__file__).parents[2] / "scripts" / "study_proposals.py"
)
study = importlib.util.module_from_spec(spec)
spec.loader.exec_module(study)


def test_the_study_prints_two_tables_and_draws_them(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(study, "STUDIED", {"fast": study.RECIPES["fast"]})
    monkeypatch.setattr(study, "WIDTHS", (100, 200))
    monkeypatch.setattr(study, "COUNTS", (10, 100))
    root = make_shapes(tmp_path / "shapes", train=3, test=1)
    assert study.main([str(root), "--images", "2", "--plot", str(tmp_path / "plot.png")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "2 images of `train`"
    assert sum(line.startswith("| fast |") for line in lines) == 2
    assert sum(line.startswith(("| opencv |", "| native |")) for line in lines) == 6
    assert Image.open(tmp_path / "plot.png").size == (1700, 500)
