"""scripts/results.py: tables of the figures in metrics.json."""

import importlib.util
import json
from pathlib import Path

spec = importlib.util.spec_from_file_location("results", Path(__file__).parents[2] / "scripts" / "results.py")
results = importlib.util.module_from_spec(spec)
spec.loader.exec_module(results)

METRICS = {
    "mAP": 61.84,
    "mAP_area": 63.0,
    "AP": {"cat": 61.84, "unseen": None},
    "without_bbox": {"mAP": 60.0, "mAP_area": 61.0},
    "pictures": 7,
    "proposals": {"windows": 409.4, "recall@0.5": 0.996, "recall@0.7": 0.961, "average_best_overlap": 0.905},
    "stages": {
        "maps": {"seconds": 24.4, "peak_memory_mb": 3217, "disk_mb": 266.2},
        "svm": {"seconds": 10.2, "peak_memory_mb": 3210},
    },
}


def test_tables_hold_the_figures_of_the_run(tmp_path, capsys):
    (tmp_path / "metrics.json").write_text(json.dumps(METRICS))
    assert results.main([str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "| SVMs + box regression | 61.8 | 63.0 |" in lines
    assert "| maps | 24 | 3217 | 266 |" in lines
    assert "| svm | 10 | 3210 |  |" in lines
    assert "| all | 35 | | |" in lines
    assert lines[-1] == "AP by class: cat 61.8"


def test_a_run_without_metrics_is_named(tmp_path, capsys):
    assert results.main([str(tmp_path)]) == 2
    assert "metrics.json: does not exist" in capsys.readouterr().err
