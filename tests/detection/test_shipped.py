"""The detector of VOC's 20 classes that is part of the package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sppdet.data.splits import read_dataset
from sppdet.detection import load
from sppdet.detection.shipped import model_folder, shipped_model
from sppdet.ops.boxes import iou
from sppdet.training.adding import add_classes

VOC = Path(__file__).resolve().parents[3] / "shared" / "VOCdevkit" / "VOC2007" / "JPEGImages"


def test_its_files_are_small():
    assert sum(file.stat().st_size for file in shipped_model().iterdir()) < 6e6


def test_a_folder_of_its_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert model_folder("voc07") == shipped_model()
    (tmp_path / "voc07").mkdir()
    assert model_folder("voc07") == Path("voc07")


def test_a_class_is_added_to_it_from_its_bank(tmp_path, shapes_root):
    """Its bank is of the vectors that this version computes; else it would be refused."""
    few = read_dataset(shapes_root, "trainval")[:3]
    name = few.classes[few.samples[0].labels[0]]
    detector = add_classes("voc07", few, [name], output=tmp_path / "mine", workers=1)
    assert detector.classes == (*load("voc07", "cpu").classes, name)


@pytest.mark.skipif(not VOC.is_dir(), reason="needs VOC2007 in ../shared, beside the checkout")
def test_it_finds_the_dog_of_a_photograph():
    best = load("voc07", "cpu").predict(VOC / "000029.jpg")[:1]
    assert best.names[0] == "dog" and best.scores[0] > 0.5
    annotated = np.array([[55, 62, 284, 290]])
    assert iou(best.xyxy, annotated)[0, 0] > 0.7
