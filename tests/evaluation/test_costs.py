"""RUN/stages.json: costs of stages, recorded one by one."""

from __future__ import annotations

from sppdet.evaluation.costs import forget_cost, read_costs, record_cost, stage_line


def test_each_stage_keeps_its_last_cost(tmp_path):
    assert read_costs(tmp_path) == {}
    record_cost(tmp_path, "maps", {"seconds": 1.5})
    record_cost(tmp_path, "svm", {"seconds": 2.0})
    record_cost(tmp_path, "maps", {"seconds": 3.0, "disk_mb": 7})
    assert read_costs(tmp_path) == {"maps": {"seconds": 3.0, "disk_mb": 7}, "svm": {"seconds": 2.0}}


def test_a_stage_that_a_run_no_longer_has_is_forgotten(tmp_path):
    forget_cost(tmp_path, "maps")
    assert not (tmp_path / "stages.json").exists()
    record_cost(tmp_path, "maps", {"seconds": 1.5})
    record_cost(tmp_path, "svm", {"seconds": 2.0})
    forget_cost(tmp_path, "maps")
    assert read_costs(tmp_path) == {"svm": {"seconds": 2.0}}


def test_a_line_shows_time_memory_disk_and_recall():
    recall = {"windows": 204.6, "recall@0.5": 0.78125, "recall@0.7": 0.6875, "average_best_overlap": 0.729}
    cost = {"seconds": 23.04, "peak_memory_mb": 988, "disk_mb": 0.4, "train": recall}
    assert stage_line("proposals", cost) == (
        "proposals     23.0 s    988 MB memory  0 MB disk  "
        "train: 205 windows, recall@0.5 0.781, @0.7 0.688, average best overlap 0.729"
    )
    assert stage_line("svm", {}) == "svm            0.0 s      0 MB memory"
