"""``sppdet detect`` on videos, on cameras and in tiles, with a tiny detector of random weights."""

from __future__ import annotations

import json

import numpy as np
import pytest
from detectors import random_detector, two_rectangles
from PIL import Image

from sppdet.cli import detect_video
from sppdet.cli.detect import main
from sppdet.data.video import Frame, Video, written_video


@pytest.fixture(scope="module")
def detector():
    return random_detector()


@pytest.fixture
def folder(tmp_path, detector):
    """The working folder: a model, ``runs/x``, and a video of six frames at 10 frames per second."""
    detector.save(tmp_path / "runs/x")
    (tmp_path / "runs/x/metrics.json").write_text("{}")
    with written_video(tmp_path / "a.mp4", 10, (160, 120)) as write:
        for number in range(6):
            write(np.roll(two_rectangles(), 4 * number, axis=1), number / 10)
    return tmp_path


def lines_of(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_video_is_written_with_boxes_and_lines(folder, capsys, detector):
    assert main(["a.mp4"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("a.mp4: 6 frames to 0.5 s: ") and out.endswith("-> detections/a.mp4, detections/a.jsonl\n")
    lines = lines_of((folder / "detections/a.jsonl").read_text())
    assert [(line["frame"], line["time"]) for line in lines] == [(n, n / 10) for n in range(6)]
    frames = list(Video("a.mp4"))
    expected = detector.predict(frames[2].image).one_per_place()
    assert lines[2]["detections"] == expected.to_list() and len(expected)
    assert {key: lines[2][key] for key in ("path", "width", "height")} == {"path": "a.mp4", "width": 160, "height": 120}
    drawn = list(Video("detections/a.mp4"))
    assert len(drawn) == 6
    written, read = drawn[2].image.astype(int), frames[2].image
    assert np.abs(written - expected.draw(read)).mean() < np.abs(written - read).mean() / 2  # it is compressed


def test_json_prints_a_line_per_frame_that_counts(folder, capsys, detector):
    assert main(["a.mp4", "--json", "--every", "4"]) == 0
    lines = lines_of(capsys.readouterr().out)
    assert [line["frame"] for line in lines] == [0, 4]
    assert lines[1]["detections"] == detector.predict(list(Video("a.mp4"))[4].image).to_list()
    assert not (folder / "detections").exists()


def test_without_pictures_frames_are_printed(folder, capsys):
    assert main(["a.mp4", "--no-pictures", "--every", "5"]) == 0
    first, second, last = capsys.readouterr().out.splitlines()
    assert first.startswith("  frame 0, 0.00 s: ") and second.startswith("  frame 5, 0.50 s: ")
    assert last.startswith("a.mp4: 2 frames to 0.5 s: ") and "->" not in last


def test_an_interrupted_video_is_whole(folder, capsys, monkeypatch):
    shown = detect_video._entry
    calls = []

    def interrupt(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return shown(*arguments)

    monkeypatch.setattr(detect_video, "_entry", interrupt)
    assert main(["a.mp4"]) == 130
    assert capsys.readouterr().out.startswith("a.mp4: 2 frames to 0.1 s, interrupted: ")
    assert len(lines_of((folder / "detections/a.jsonl").read_text())) == len(list(Video("detections/a.mp4"))) == 2


def test_a_broken_video_does_not_stop_the_others(folder, capsys):
    (folder / "0.mp4").write_bytes(b"no video")
    assert main(["0.mp4", "a.mp4", "--every", "5"]) == 2
    captured = capsys.readouterr()
    assert "error: 0.mp4: cannot be opened as a video; copy it again, or convert it to MP4\n" in captured.err
    assert captured.out.startswith("a.mp4: 2 frames")


def test_a_video_that_ends_early_keeps_what_was_found(folder, capsys, monkeypatch):
    monkeypatch.setattr(Video, "lacks_frames", lambda self: "a.mp4: ends early, after 6 of 100 frames; copy it again")
    assert main(["a.mp4"]) == 2
    assert "error: a.mp4: ends early, after 6 of 100 frames; copy it again" in capsys.readouterr().err
    assert len(lines_of((folder / "detections/a.jsonl").read_text())) == 6


def test_a_camera_is_looked_through_until_ctrl_c(folder, capsys, monkeypatch):
    class Camera:
        name, is_camera, rate, size, frames = "camera 3", True, 10.0, (160, 120), 0

        def __init__(self, source, every):
            assert (source, every) == (3, 1)

        def __iter__(self):
            yield Frame(0, 0.0, two_rectangles())
            yield Frame(1, 0.4, two_rectangles())
            raise KeyboardInterrupt

        def close(self):
            pass

    monkeypatch.setattr(detect_video, "Video", Camera)
    assert main(["--camera", "3"]) == 0
    first, second, last = capsys.readouterr().out.splitlines()
    assert first.startswith("  frame 0, 0.00 s: ") and second.startswith("  frame 1, 0.40 s: ")
    assert last.startswith("camera 3: 2 frames to 0.4 s: ")
    assert len(list(Video("detections/camera-3.mp4"))) == 5  # as long as it took


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "error: no image: give images, folders or videos, or --camera 0\n"),
        (["a.mp4", "a.png", "--json"], "error: --json: is one document for images and lines for videos; give either"),
        (["b.mp4"], "error: b.mp4: no such image or folder; check the path\n"),
        (["a.mp4", "--output", "."], "error: a.mp4: would be overwritten, and is one of the images"),
        (
            ["--camera", "77", "--no-pictures"],
            "error: camera 77: cannot be opened as a video; check that it is connect",
        ),
    ],
)
def test_what_cannot_be_done_is_one_line(folder, capsys, arguments, message):
    Image.fromarray(two_rectangles()).save("a.png")
    assert main(arguments) == 2
    err = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("model: ")]
    assert len(err) == 1 and (err[0] + "\n").startswith(message)


@pytest.mark.parametrize("option", [["--tiles", "20"], ["--tiles", "x"], ["--every", "0"], ["--camera", "-1"]])
def test_options_without_sense_are_named(option, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["a.png", *option])
    assert f"argument {option[0]}: " in capsys.readouterr().err


# Tiles


def test_an_image_is_read_in_tiles(folder, capsys, detector):
    image = np.tile(two_rectangles(), (2, 2, 1))
    Image.fromarray(image).save("a.png")
    assert main(["a.png", "--tiles", "160", "--json", "--output", "drawn"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)["images"]
    assert (entry["width"], entry["height"]) == (320, 240)
    assert entry["detections"] == detector.predict(image, tiles=160).to_list() != detector.predict(image).to_list()
    with Image.open("drawn/a.jpg") as drawing:
        assert drawing.size == (320, 240)


def test_auto_leaves_images_alone_that_are_like_those_of_the_training(folder, capsys, detector):
    Image.fromarray(two_rectangles()).save("a.png")
    outputs = []
    for tiles in ("auto", "none"):
        assert main(["a.png", "--tiles", tiles, "--no-pictures"]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]
    assert detector.trained_on is None and detector.plan_tiles((800, 100), "auto").tiles.side == 500


def test_a_large_file_is_drawn_shrunk(folder, capsys, monkeypatch, detector):
    pytest.importorskip("pyvips", reason="needs the extra large: pip install 'sppdet[large]'")
    monkeypatch.setattr("sppdet.data.large_images._IN_MEMORY", 1000)
    monkeypatch.setattr("sppdet.data.large_images._OVERVIEW", 160)
    image = np.tile(two_rectangles(), (2, 2, 1))
    Image.fromarray(image).save("a.png")
    assert main(["a.png", "--tiles", "160"]) == 0
    with Image.open("detections/a.jpg") as drawing:
        assert drawing.size == (160, 120)
