"""scripts/compare.py: documents hold the figures of the runs, and runs share stages and members."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from sppdet import config
from sppdet.detection.model_files import MODEL_FILES
from sppdet.utils.errors import SppdetError
from sppdet.utils.files import file_digest, write_json

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("compare", ROOT / "scripts" / "compare.py")
compare = importlib.util.module_from_spec(spec)
sys.modules["compare"] = compare  # dataclasses look their module up
spec.loader.exec_module(compare)


def metrics(value: float, **stages: float) -> dict:
    return {
        "mAP": value + 2, "without_bbox": {"mAP": value}, "AP": {"cat": value, "dog": None}, "pictures": 7,
        "proposals": {"windows": 400.0, "recall@0.5": 0.9, "recall@0.7": 0.8, "average_best_overlap": 0.75},
        "stages": {
            name: {"seconds": cost, "peak_memory_mb": 100 * cost, "disk_mb": cost} for name, cost in stages.items()
        },
        "training_images": 20, "detection": (0.05, 0.1234, 0.02),
    }  # fmt: skip


def test_a_document_holds_the_figures_of_the_runs(monkeypatch, tmp_path, capsys):
    results = {"SPP-net": metrics(40.04, proposals=10, svm=20), "Fast R-CNN": metrics(50.0, end_to_end=30)}
    monkeypatch.setattr(compare, "measure", lambda row, options: results[row.name])
    rows = [row for row in compare.SYSTEMS if row.name in results]
    monkeypatch.setitem(compare.TABLES, "systems", replace(compare.TABLES["systems"], rows=rows))
    written = tmp_path / "systems.md"
    assert compare.main(["systems", "--voc-root", "/some/where", "data.limit_test=7", "--write", str(written)]) == 0
    text = written.read_text()
    assert text in capsys.readouterr().out and "/some/where" not in text
    assert "compare.py systems --voc-root VOCDEVKIT data.limit_test=7" in text
    assert "trained on 20 images and tested on 7" in text
    assert "| SPP-net | 40.0 | 42.0 | 43.0 |  |" in text
    assert "| cat | 40.0 | 50.0 |" in text and "| dog | - | - |" in text
    heads = "training | peak memory, MB | disk, MB | per image: proposals | network | the rest"
    assert f"| | proposals | end_to_end | svm | {heads} |" in text
    assert "| SPP-net | 10 |  | 20 | 30 | 2000 | 30 | 0.050 | 0.123 | 0.020 |" in text
    assert "| Fast R-CNN |  | 30 |  | 40 | 3000 | 30 | 0.050 | 0.123 | 0.020 |" in text
    assert "| SPP-net, fine-tuned fc7, 1 scale | ZF-5 | 54.5 | 58.0 | 0.142 |" in text


def test_rows_are_chosen_by_their_name_or_a_text_in_it():
    rows = [compare.Row(name, "b.yaml") for name in ("pool5", "pool5, five", "fc7", "fc7, five")]
    assert compare.choose(rows, []) == rows
    assert [row.name for row in compare.choose(rows, ["five", "pool5"])] == ["pool5", "pool5, five", "fc7, five"]
    with pytest.raises(SppdetError, match="--rows: no row's name holds 'fc8'; they are pool5; pool5, five"):
        compare.choose(rows, ["fc7", "fc8"])


def test_the_spread_is_over_the_seeds_of_one_configuration():
    seeds = [compare.Row("best", "b.yaml"), *(compare.Row(f"best {n}", "b.yaml", (f"run.seed={n}",)) for n in (1, 2))]
    rows = [*seeds, compare.Row("other", "b.yaml", ("svm.C=1",))]
    table = compare.spread(rows, [metrics(value) for value in (50, 51, 55, 40)])  # 2 more with box regression
    assert table.splitlines()[2:] == ["| best | 3 | 54.0 | 2.6 |"]
    combined = compare.Row("two", "b.yaml", of=(("best", 1), ("other", 1)))
    assert compare.spread([seeds[0], combined], [metrics(50), metrics(55)]) == ""
    assert compare.spread(rows[2:], [metrics(50), metrics(40)]) == ""


@pytest.mark.parametrize(
    "row", [row for table in compare.TABLES.values() for row in table.rows], ids=lambda row: row.name
)
def test_every_row_is_a_configuration(row):
    config.load(ROOT / row.config, row.changes)


def test_members_of_an_ensemble_come_before_it(tmp_path):
    names = [row.name for row in compare.ABLATION]
    (row,) = [row for row in compare.ABLATION if row.of]
    assert all(names.index(name) < names.index(row.name) for name, _ in row.of)
    options = compare.parser().parse_args(["ablation", "--runs", str(tmp_path)])
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "model.json").touch()
    with pytest.raises(SppdetError, match=r"train them first: --rows 'pool5, 2 scales, image context'$"):
        compare.combine_rows(row, options, tmp_path / row.folder)


def test_an_ensemble_is_made_again_if_a_member_has_changed(monkeypatch, tmp_path):
    commands = []
    monkeypatch.setattr(compare, "run_command", lambda row, command: commands.append(command[0]))
    (row,) = [row for row in compare.ABLATION if row.of]
    runs = [tmp_path / compare.Row(name, "").folder for name, _ in row.of]
    for run, file in product(runs, MODEL_FILES):
        write_json(run / file, run.name)
    options = compare.parser().parse_args(["ablation", "--runs", str(tmp_path), "--voc-root", "VOC"])
    compare.combine_rows(row, options, tmp_path / row.folder)
    assert commands == ["sppdet.combine", "sppdet.evaluate"]
    parts = [
        [file_digest(tmp_path / compare.Row(name, "").folder / file) for file in MODEL_FILES] for name, _ in row.of
    ]
    write_json(tmp_path / row.folder / "model.json", {"parts": [{"digests": digests} for digests in parts]})
    compare.combine_rows(row, options, tmp_path / row.folder)
    assert commands[2:] == ["sppdet.evaluate"]
    write_json(tmp_path / "best" / "model.safetensors", ["trained again"])
    compare.combine_rows(row, options, tmp_path / row.folder)
    assert commands[3:] == ["sppdet.combine", "sppdet.evaluate"]
    assert not (tmp_path / row.folder).exists()


def test_every_row_has_its_own_folder():
    for table in compare.TABLES.values():
        assert len({row.folder for row in table.rows}) == len(table.rows)


def test_a_run_begins_with_the_stages_of_the_newest_other_run(tmp_path):
    old = tmp_path / "old" / "stages"
    old.mkdir(parents=True)
    (old / "a").write_text("1")
    (tmp_path / "new" / "stages.part").mkdir(parents=True)  # what an interrupted copy leaves
    compare.copy_stages(tmp_path / "new", tmp_path)
    assert (tmp_path / "new" / "stages" / "a").read_text() == "1"
    (old / "a").write_text("2")
    compare.copy_stages(tmp_path / "new", tmp_path)  # it has stages now
    assert (tmp_path / "new" / "stages" / "a").read_text() == "1"
