"""Curves of trainings: CSV files, and events that TensorBoard itself reads."""

from __future__ import annotations

import csv
import sys

import pytest

from sppdet.utils.curves import Curves
from sppdet.utils.errors import SppdetError

RECORDS = [{"step": 3, "loss": 1.0}, {"step": 6, "loss": 0.5, "error": 0.25}]


def test_a_table_has_every_record(tmp_path):
    curves = Curves(tmp_path / "curves", "csv")
    for count in (1, 2):
        curves.write("end to end", RECORDS[:count])
    with open(tmp_path / "curves" / "end_to_end.csv", newline="") as file:
        assert list(csv.reader(file)) == [["step", "loss", "error"], ["3", "1.0", ""], ["6", "0.5", "0.25"]]


def test_tensorboard_reads_what_is_valid_after_an_interruption(tmp_path):
    """The first process got to step 6, its last checkpoint was of step 3."""
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="needs tensorboard: docs/other-tools.md"
    )
    curves = Curves(tmp_path, "tensorboard")
    for count in (1, 2):
        curves.write("fine-tuning", RECORDS[:count])
    resumed, again = Curves(tmp_path, "tensorboard"), {"step": 6, "loss": 0.75}
    resumed.write("fine-tuning", [RECORDS[0], again])
    resumed.write("fine-tuning", [RECORDS[0], again, {"step": 9, "loss": 0.25}])
    events = accumulator.EventAccumulator(str(tmp_path / "fine-tuning")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(3, 1.0), (6, 0.75), (9, 0.25)]


def test_without_tensorboard_the_setting_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(SppdetError, match=r"run\.curves: tensorboard is not installed; run 'pip install tensorboard'"):
        Curves.of(tmp_path, "tensorboard")
    assert Curves.of(tmp_path, "none") is None
