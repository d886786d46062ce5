"""The check of GPUs, tried in small on the CPU."""

from __future__ import annotations

import sys

import pytest

from scripts import check_cuda


def test_the_check_runs_in_small_on_a_cpu(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["check_cuda.py", "--device", "cpu", "--seconds", "0.1", "--no-tests"])
    check_cuda.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:3] == ["pooling: same bits as on the CPU", "gradient of pooling: same as on the CPU"]
    assert float(lines[3].split("CPU ")[1].split(" ")[0]) < 1e-5
    votes = lines[4].removeprefix("suppression: same boxes as on the CPU, votes within ")
    assert float(votes.split(" ")[0]) < 1e-4
    assert [line.split(" | ")[0] for line in lines[7:]] == [
        "| small, one scale", "| small and fc7, one scale", "| paper, fastest network",
    ]  # fmt: skip
    assert len({line.count("|") for line in lines[5:]}) == 1


def test_a_machine_without_cuda_is_told(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["check_cuda.py"])
    monkeypatch.setattr(check_cuda.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="--device: this machine has no usable CUDA"):
        check_cuda.main()
