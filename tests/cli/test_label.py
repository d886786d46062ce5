"""``sppdet label`` as its users call it, with a tiny detector of random weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
from detectors import random_detector, two_rectangles
from PIL import Image

from sppdet.cli.label import main
from sppdet.data.labelled_folder import read_folder
from sppdet.detection.calibration import Calibration, Sigmoid


@pytest.fixture(scope="module")
def detector():
    detector = random_detector()
    curves = (Sigmoid(1.0, 0.0),) * 3
    return replace(detector, calibration=Calibration(curves, (-0.5, -0.5, 1e6), curves[0], -0.5))


@pytest.fixture
def folder(tmp_path, monkeypatch, detector):
    """A working folder with a run and three images, the last of which shows nothing."""
    monkeypatch.chdir(tmp_path)
    detector.save("run")
    images = tmp_path / "images"
    images.mkdir()
    for name, image in {"a.png": two_rectangles(), "b.png": two_rectangles()[:, ::-1], "c.png": None}.items():
        (Image.new("RGB", (160, 120)) if image is None else Image.fromarray(image)).save(images / name)
    return tmp_path


def files(folder, pattern: str) -> list[str]:
    return sorted(path.name for path in folder.glob(pattern))


def test_every_image_gets_an_annotation_that_is_read_back(folder, detector, capsys):
    assert main(["run", "images", "--as", "voc"]) == 0
    assert files(folder / "images", "*.xml") == ["a.xml", "b.xml", "c.xml"]
    expected = detector.predict(folder / "images" / "a.png").one_per_place()
    (image,) = (image for image in read_folder(folder / "images").images if image.path.name == "a.png")
    assert image.names == expected.names.tolist() and len(image.names) > 0
    assert image.boxes == pytest.approx(expected.xyxy, abs=0.01)
    listed = (folder / "images" / "to-check.list").read_text().split()
    assert sorted(listed) == ["a.png", "b.png", "c.png"]
    assert "3 images annotated" in capsys.readouterr().out


def test_the_first_in_order_are_annotated_and_the_others_next_time(folder):
    assert main(["run", "images", "--as", "yolo", "--max", "1", "--order", "name"]) == 0
    assert files(folder / "images", "?.txt") == ["a.txt"]
    (folder / "images" / "a.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    assert main(["run", "images", "--as", "yolo"]) == 0
    assert files(folder / "images", "?.txt") == ["a.txt", "b.txt", "c.txt"]
    assert (folder / "images" / "a.txt").read_text() == "0 0.5 0.5 0.1 0.1\n"


def test_images_are_copied_into_another_folder(folder):
    assert main(["run", "images", "--as", "coco", "--output", "tocheck", "--max", "2"]) == 0
    assert len(files(folder / "tocheck", "*.png")) == 2 and files(folder / "images", "*.json") == []
    (folder / "tocheck2").mkdir()
    Image.new("RGB", (8, 8)).save(folder / "tocheck2" / "a.png")
    assert main(["run", "images", "--as", "coco", "--output", "tocheck2"]) == 2


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["run", "nowhere", "--as", "voc"], "nowhere: no such folder"),
        (["nowhere", "images", "--as", "voc"], "no finished model"),
        (["run", "images", "--as", "voc", "--threshold", "2"], "2 is no probability"),
    ],
)
def test_bad_input_is_one_line(folder, capsys, arguments, message):
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line
    assert files(folder / "images", "*.xml") == []


def test_an_image_that_cannot_be_read_does_not_stop_the_others(folder, capsys):
    (folder / "images" / "b.png").write_bytes(b"no image")
    assert main(["run", "images", "--as", "voc"]) == 2
    assert "b.png" in capsys.readouterr().err
    assert files(folder / "images", "*.xml") == ["a.xml", "c.xml"]
