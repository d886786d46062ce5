"""A short form of the campaign of scripts/reliability.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="its commands are forked")
def test_killed_interrupted_and_damaged_runs_end_as_undisturbed_and_the_campaign_resumes(tmp_path):
    arguments = [
        "--works", "spp-net", "add", "--parts", "kills", "sigint", "sigterm", "damage", "bombs", "memory", "--kills",
        "4", "--signals", "1", "--every", "7", "--images", "20", "--json", "r.json", "--write", "r.md",
    ]  # fmt: skip
    command = [sys.executable, str(ROOT / "scripts/reliability.py"), *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    steps = json.loads((tmp_path / "r.json").read_text())
    assert [*steps] == [
        "kills: spp-net", "kills: add", "sigint: spp-net", "sigterm: spp-net", "damage: spp-net", "bombs", "memory"
    ]  # fmt: skip
    assert [step["failures"] for step in steps.values()] == [[]] * 7
    assert [step["tried"] for step in steps.values()][:4] == [2, 2, 1, 1]
    page = (tmp_path / "r.md").read_text()
    assert f"`python scripts/reliability.py {' '.join(arguments)}`" in page
    assert "| SIGKILL at random moments, then finished | 4 | 0 |" in page
    assert f"| kills | add | 2 {steps['kills: add']['details']} | 0 |" in page

    steps["bombs"]["failures"] = ["as if one was read"]  # only such a step is repeated, or one of another size
    (tmp_path / "r.json").write_text(json.dumps(steps))
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert ended.returncode == 0 and "[1/1] bombs" in ended.stdout
    assert (tmp_path / "r.md").read_text() == page
