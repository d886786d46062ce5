"""Train and evaluate on a few VOC2007 photographs with ImageNet weights, where shared/ beside the checkout has them."""

from __future__ import annotations

from pathlib import Path

import pytest

from sppdet.training import train_detector
from sppdet.utils.files import read_json

SHARED = Path(__file__).resolve().parents[2] / "shared"
VOC = SHARED / "VOCdevkit" / "VOC2007"
WEIGHTS = SHARED / "weights" / "squeezenet1_0-imagenet.pth"

pytestmark = pytest.mark.skipif(
    not (VOC.is_dir() and WEIGHTS.is_file()), reason="needs VOC2007 and weights in ../shared, beside the checkout"
)


def test_six_photographs(tmp_path):
    detector = train_detector(
        overrides=[
            f"data.root={VOC}", "data.limit_train=6", "data.limit_test=3", f"backbone.weights={WEIGHTS}",
            "backbone.precision=float32", "regions.scales=[240]", "device=cpu", "proposals.max_side=250",
            "svm.random_negatives=300", "svm.max_negatives=300", "bbox.max_windows=200", "pooling.levels=[4,2,1]",
            "workers=2", f"run.dir={tmp_path / 'run'}", f"run.cache={tmp_path / 'cache'}",
        ]
    )  # fmt: skip
    proposals = read_json(tmp_path / "run" / "stages.json")["proposals"]["train"]
    assert proposals["recall@0.5"] > 0.5 and proposals["windows"] > 50
    # Trained on so few images, it recognises at least the objects of these.
    first = (VOC / "ImageSets" / "Main" / "trainval.txt").read_text().split()[0]
    detections = detector.predict(next((VOC / "JPEGImages").glob(f"{first}.*")), threshold=None)
    assert len(detections) > 0 and detections.scores[0] > -1
    metrics = read_json(tmp_path / "run" / "metrics.json")
    assert metrics["pictures"] == 3 and list(metrics["AP"]) == list(detector.classes)
