"""A training whose images are read as tiles, measured on whole images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_run import TinyRun

from sppdet.config.settings import CalibrationSettings
from sppdet.data import large_images
from sppdet.data.dataset import Dataset, Sample
from sppdet.data.splits import read_dataset
from sppdet.data.tiles import Tiles, tile_dataset
from sppdet.detection.tiles import TrainedOn
from sppdet.evaluation.diagnosis_run import diagnose_run
from sppdet.evaluation.in_memory import evaluate_detector
from sppdet.evaluation.voc import flatten_detections
from sppdet.training.held_out import calibration_folds
from sppdet.training.training_sizes import advice, trained_on
from sppdet.utils.errors import SppdetError

TILES = ("data.tiles=100", "data.tile_overlap=48", "calibration.folds=2")


def test_a_detector_that_was_trained_on_tiles_is_measured_on_whole_images(tmp_path, trained):
    """The figures are those of `Detector.predict`, which cuts the test images as training did."""
    run = TinyRun(tmp_path, trained.root)
    run.train(*TILES)
    metrics = run.json("metrics.json")
    assert metrics["pictures"] == 6
    detector = run.detector()
    assert detector.trained_on.tiles == Tiles(100, 48)
    assert any(name.endswith("_100_100") for name in run.stored("maps", ".b2nd"))
    test = read_dataset(trained.root, "test", detector.classes)
    assert metrics["objects"] == {
        name: int(sum((s.labels[~s.difficult] == k).sum() for s in test)) for k, name in enumerate(detector.classes)
    }
    detections = [detector.predict(sample.read(), threshold=None) for sample in test]
    assert any((found.xyxy[:, 2] > 100).any() for found in detections)
    figures = evaluate_detector(detector, test, workers=1)
    assert abs(figures["mAP"] - metrics["mAP"]) < 0.5  # the maps of training are stored in half precision
    assert "per class" in diagnose_run(run.folder)
    assert len(flatten_detections(detections)[0]) == len(run.json("detections/coco_results.json"))


def test_images_of_any_size_are_learned_from_in_tiles(tmp_path, trained, monkeypatch):
    """Pillow takes every image for a decompression bomb; libvips reads what Pillow reads, but for rounding in JPEG."""
    pytest.importorskip("pyvips", reason="needs the extra large: pip install 'sppdet[large]'")
    runs = [TinyRun(tmp_path / name, trained.root, tmp_path / name / "cache") for name in ("whole", "parts")]
    runs[0].train(*TILES)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5000)
    large_images._opened.cache_clear()
    with pytest.raises(SppdetError, match=r"too many to read at once; .* data\.tiles=SIDE"):
        runs[1].train()
    runs[1].train(*TILES)
    assert "cannot be read" not in (runs[1].folder / "report.html").read_text()
    whole, parts = (run.json("metrics.json") for run in runs)
    assert parts["objects"] == whole["objects"] and abs(parts["mAP"] - whole["mAP"]) < 5
    detector = runs[1].detector()
    assert abs(evaluate_detector(detector, runs[1].pipeline(*TILES).inputs.test, workers=1)["mAP"] - parts["mAP"]) < 0.5


def test_what_a_model_remembers_of_its_images(shapes_root):
    dataset = read_dataset(shapes_root, "trainval")
    known = trained_on(dataset, None)
    sides = np.concatenate([(s.boxes[:, 2:] - s.boxes[:, :2]).max(axis=1) for s in dataset])
    assert known == TrainedOn(
        round(np.median([max(s.width, s.height) for s in dataset])), int(np.ceil(np.quantile(sides, 0.95)))
    )
    pieces = tile_dataset(dataset, Tiles(100, 48))
    assert trained_on(pieces, Tiles(100, 48)).image_side == 100


def test_advice_on_tiles():
    def images(width: int, side: float) -> Dataset:
        box = np.array([[0, 0, side, side]], np.float32)
        return Dataset(("x",), (Sample("a", Path("a"), width, width, box, np.zeros(1, int), np.zeros(1, bool)),))

    assert advice(images(500, 10), None) is None and advice(images(4000, 400), None) is None
    assert advice(images(4000, 62), None) == (
        "half of the objects are smaller than 62 pixels, in images of 4000: data.tiles=700 reads these in 64 tiles "
        "each, which takes as many times as long and finds smaller objects"
    )
    assert advice(images(4000, 62), Tiles(700, 70)) is None
    assert advice(images(4000, 90), Tiles(700, 70)).endswith("cut many of them; give data.tile_overlap=90")


def test_tiles_of_one_image_are_in_one_fold(shapes_root):
    pieces = tile_dataset(read_dataset(shapes_root, "trainval"), Tiles(100, 48))
    folds = calibration_folds(pieces.samples, CalibrationSettings(folds=3), 0)
    of_folds = [{pieces[int(i)].path for i in fold} for fold in folds]
    assert len(folds) == 3 and sum(map(len, of_folds)) == len(set().union(*of_folds)) == 12
    assert sorted(np.concatenate(folds).tolist()) == list(range(len(pieces)))
