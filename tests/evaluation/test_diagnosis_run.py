"""A run diagnosed from its files, and what is said where they are missing or of another evaluation."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sppdet import config
from sppdet.cli import evaluate
from sppdet.config.settings import Config
from sppdet.data.splits import load_split
from sppdet.detection.detections import Detections
from sppdet.evaluation.devkit_files import write_devkit_results
from sppdet.evaluation.diagnosis import KINDS, MISSED
from sppdet.evaluation.voc import evaluate_voc
from sppdet.features.cached_split import entry_names, proposal_store
from sppdet.proposals.search import SelectiveSearch
from sppdet.utils.files import read_json, write_json


@pytest.fixture
def run(tmp_path, shapes_root) -> Path:
    """What a finished run leaves: every object found twice, and the objects as proposals."""
    options = [f"data.root={shapes_root}", f"run.dir={tmp_path / 'run'}", f"run.cache={tmp_path / 'cache'}"]
    settings = config.override(Config(), options)
    dataset, folder = load_split(settings, "test"), tmp_path / "run"
    rng = np.random.default_rng(0)
    detections = []
    for sample in dataset:
        scores = np.sort(rng.random(2 * len(sample.boxes)))[::-1].astype(np.float32)
        boxes, labels = (np.concatenate([value, value]) for value in (sample.boxes, sample.labels))
        detections.append(Detections(boxes, labels, scores, dataset.classes))
    store = proposal_store(settings.run.cache, SelectiveSearch.of(settings.proposals))
    for name, sample in zip(entry_names(dataset), dataset):
        store.write(name, sample.boxes)
    write_devkit_results(folder / "detections", dataset, detections, "test")
    write_json(folder / "model.json", {"proposals": asdict(settings.proposals)})
    write_json(folder / "metrics.json", evaluate_voc(dataset, detections) | {"config": config.to_dict(settings)})
    return folder


def test_a_run_is_diagnosed_from_its_files(run, capsys):
    assert evaluate.main([str(run), "--diagnose"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("6 images, mAP") and str(run / "diagnosis.md") in printed.splitlines()[-1]
    assert (run / "diagnosis.md").read_text().count("| class |") == 2
    result, metrics = read_json(run / "diagnosis.json"), read_json(run / "metrics.json")
    assert result["mAP"] == pytest.approx(metrics["mAP"]) and set(result["errors"]) == {*KINDS, *MISSED} - {"similar"}
    assert result["errors"]["duplicate"]["mAP"] == pytest.approx(100)
    assert Image.open(run / "diagnosis.png").width > 1000
    assert sorted(path.name for path in run.iterdir() if path.name.startswith("diagnosis")) == [
        "diagnosis.json", "diagnosis.md", "diagnosis.png",
    ]  # fmt: skip


def stars(folder: Path) -> Path:
    return folder / "detections" / "comp4_det_test_star.txt"


def edit(path: Path, change) -> None:
    path.write_text(change(path.read_text()))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda run: (run / "metrics.json").unlink(), r"metrics.json: does not exist; python -m sppdet.evaluate"),
        (lambda run: (run / "model.json").unlink(), r"model.json: does not exist"),
        (lambda run: stars(run).unlink(), r"comp4_det_test_star.txt: cannot be read"),
        (lambda run: edit(stars(run), lambda text: text[:-20]), r"comp4_det_test_star.txt: a line is not"),
        (lambda run: edit(stars(run), lambda text: text.replace("test_", "cat_")), r"image 'cat_0"),
        (lambda run: edit(stars(run), lambda text: ""), r"the detections have mAP .*, but metrics.json says"),
        (lambda run: next((run.parent / "cache").rglob("*.npy")).unlink(), r"the proposals of 1 of 6 images"),
        (lambda run: (run.parent / "cache").rename(run.parent / "moved"), r"run.cache: .*cache does not exist"),
    ],
)
def test_what_is_missing_is_one_line(run, capsys, harm, message):
    harm(run)
    assert evaluate.main([str(run), "--diagnose"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert re.search(message, line)
    assert not (run / "diagnosis.json").exists()


def test_a_cache_that_moved_is_named(run):
    (run.parent / "cache").rename(run.parent / "moved")
    assert evaluate.main([str(run), "--diagnose", f"run.cache={run.parent / 'moved'}"]) == 0
