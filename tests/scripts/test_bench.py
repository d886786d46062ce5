"""scripts/bench.py and benchmarks/common.py: tables, targets, and a command without folders of this machine."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("bench", ROOT / "scripts" / "bench.py")
bench = importlib.util.module_from_spec(spec)
spec.loader.exec_module(bench)


@pytest.fixture
def common(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    return importlib.import_module("benchmarks.common")


def test_table(common):
    rows = [common.at_least("faster", 3.14159, 3), common.at_most("memory", 1.2, 1.1), common.Row("plain", 5, "ms")]
    assert common.table(rows).splitlines()[2:] == [
        "| faster | 3.14 x | at least 3 x | yes |  |",
        "| memory | 1.2 x | at most 1.1 x | **no** |  |",
        "| plain | 5 ms |  |  |  |",
    ]
    assert common.milliseconds("a", 0.02, 0.01, "writing").floor == "2.0 x writing"


def test_best_is_the_shortest_time_of_calls_in_turns(common, monkeypatch):
    # The clock shows when each call begins and ends; the first call of each function is not timed.
    clock = iter([0.0, 3.0, 10.0, 11.5, 20.0, 22.0, 30.0, 34.0])
    monkeypatch.setattr(common.time, "perf_counter", lambda: next(clock))
    calls = []
    times = common.best(2, a=lambda: calls.append("a"), b=lambda: calls.append("b"))
    assert calls == ["a", "b"] * 3 and times == {"a": 2.0, "b": 1.5}


def test_the_command_shown_names_no_folder():
    options = bench.parser().parse_args(["all", "--voc-root", "/some/where", "--cache", "/else"])
    shown = bench.command("mining", options)
    assert "/" not in shown.replace("scripts/bench.py", "") and shown.endswith("--cache CACHE")


def test_a_part_measured_anew_leaves_the_others_and_the_hand_written_end(tmp_path, monkeypatch):
    path = tmp_path / "performance.md"
    first = bench.document({"engine": "old engine", "pooling": "old pooling\n\n| 1 |"})
    path.write_text(f"{first}\n{bench.BY_HAND}\n\n## One photo\n\nMy words.\n")
    monkeypatch.setattr(bench, "run_apart", lambda name, options: f"new {name}")
    bench.main(["engine", "cache", "--write", str(path)])
    assert bench.read_parts(path) == {"pooling": "old pooling\n\n| 1 |", "cache": "new cache", "engine": "new engine"}
    assert path.read_text().endswith(f"{bench.BY_HAND}\n\n## One photo\n\nMy words.\n")
    assert list(bench.read_parts(path)) == ["pooling", "cache", "engine"]  # the order of a run of all


def test_what_a_benchmark_prints_beside_its_rows_stays_out_of_the_page(common, monkeypatch):
    row = {"what": "plain", "value": 5.0, "unit": "ms", "target": "", "met": None, "floor": ""}
    last = json.dumps({"name": "adding", "data": "drawn images", "limits": "1 GB/s", "rows": [row]})
    child = subprocess.CompletedProcess([], 0, f"the model is in /some/where\n| the table |\n{last}\n")
    monkeypatch.setattr(bench.subprocess, "run", lambda *arguments, **options: child)
    part = bench.run_apart("adding", bench.parser().parse_args(["adding"]))
    assert "/some/where" not in part and part.endswith(common.table([common.Row("plain", 5.0, "ms")]))


def test_every_name_is_a_module():
    assert sorted(bench.NAMES) == sorted(
        path.stem for path in (ROOT / "benchmarks").glob("*.py") if path.stem not in ("__init__", "common")
    )
