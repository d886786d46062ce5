"""A few VOC2007 photographs from beside the checkout, ImageNet weights, end to end. Skipped where they are not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import sppdet
from sppdet.cli.train import main

SHARED = Path(__file__).resolve().parents[2] / "shared"
VOC = SHARED / "VOCdevkit" / "VOC2007"
WEIGHTS = SHARED / "weights" / "squeezenet1_0-imagenet.pth"

pytestmark = pytest.mark.skipif(
    not (VOC.is_dir() and WEIGHTS.is_file()), reason="needs VOC2007 and weights in ../shared, beside the checkout"
)


def test_six_photographs(tmp_path, capsys):
    settings = tmp_path / "voc.yaml"
    settings.write_text("")
    train_ids = (VOC / "ImageSets" / "Main" / "trainval.txt").read_text().split()[:6]
    arguments = [
        str(settings), f"data.root={VOC}", "data.limit_train=6", "data.limit_test=3",
        f"backbone.weights={WEIGHTS}", "backbone.precision=float32", "regions.scales=[240]", "device=cpu",
        "proposals.max_side=250", "svm.random_negatives=300", "svm.max_negatives=300", "bbox.max_windows=200",
        "pooling.levels=[4,2,1]", "workers=2", f"run.dir={tmp_path / 'run'}", f"run.cache={tmp_path / 'cache'}",
    ]  # fmt: skip
    assert main(arguments) == 0
    costs = json.loads((tmp_path / "run" / "stages.json").read_text())
    assert costs["proposals"]["train"]["recall@0.5"] > 0.5
    assert costs["proposals"]["train"]["windows"] > 50
    # A class that was trained on so few images knows at least those.
    detector = sppdet.load(tmp_path / "run", device="cpu")
    found = detector.predict(next((VOC / "JPEGImages").glob(f"{train_ids[0]}.*")), threshold=None)
    assert len(found) > 0 and found.scores[0] > -1
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["pictures"] == 3 and list(metrics["AP"]) == list(detector.classes)
