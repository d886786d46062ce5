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
def test_killed_interrupted_and_damaged_runs_end_as_undisturbed(tmp_path):
    arguments = [
        "--systems", "spp-net", "--parts", "kills", "signals", "damage", "bombs", "memory", "--kills", "3",
        "--signals", "1", "--every", "7", "--images", "20", "--json", "r.json", "--write", "r.md",
    ]  # fmt: skip
    command = [sys.executable, str(ROOT / "scripts/reliability.py"), *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    parts = json.loads((tmp_path / "r.json").read_text())["parts"]
    assert [part["failures"] for part in parts] == [[]] * 6
    assert parts[0]["tried"].startswith("3 in ") and parts[1]["tried"].startswith("1 in ")
    page = (tmp_path / "r.md").read_text()
    assert f"`python scripts/reliability.py {' '.join(arguments)}`" in page
    assert all(f"| {part['what']} | {part['tried']} | 0 |" in page for part in parts)
