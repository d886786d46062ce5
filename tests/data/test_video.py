"""Videos that are read and written."""

from __future__ import annotations

import numpy as np
import pytest

from sppdet.data import video as video_module
from sppdet.data.video import Video, written_video
from sppdet.utils.errors import SppdetError


def grey(level: int) -> np.ndarray:
    return np.full((48, 64, 3), level, np.uint8)


@pytest.fixture
def path(tmp_path):
    """A video of 12 frames at 10 frames per second, each brighter than the one before."""
    with written_video(tmp_path / "a.mp4", 10, (64, 48)) as write:
        for number in range(12):
            write(grey(20 * number), number / 10)
    return tmp_path / "a.mp4"


def levels(frames) -> list[int]:
    return [round(frame.image.mean() / 20) for frame in frames]


def test_every_frame_that_was_written_is_read(path):
    video = Video(str(path))
    assert (video.rate, video.size, video.frames, video.is_camera) == (10, (64, 48), 12, False)
    frames = list(video)
    assert [frame.number for frame in frames] == levels(frames) == list(range(12))
    assert [round(frame.seconds, 3) for frame in frames] == [round(n / 10, 3) for n in range(12)]
    assert video.lacks_frames() is None
    video.close()


def test_colours_are_red_green_blue(tmp_path):
    with written_video(tmp_path / "a.mp4", 10, (64, 48)) as write:
        write(np.broadcast_to(np.array([250, 0, 0], np.uint8), (48, 64, 3)), 0)
    (frame,) = Video(str(tmp_path / "a.mp4"))
    assert frame.image[..., 0].mean() > 200 > 50 > frame.image[..., 2].mean()


@pytest.mark.parametrize("every, expected", [(5, [0, 5, 10]), (11, [0, 11]), (100, [0])])
def test_frames_are_passed_over(path, every, expected):
    video = Video(str(path), every)
    assert (video.rate, video.frames) == (10 / every, len(expected))
    frames = list(video)
    assert [frame.number for frame in frames] == levels(frames) == expected
    assert [frame.seconds for frame in frames] == [number / 10 for number in expected]
    assert video.lacks_frames() is None


def test_an_image_stays_until_the_next_one_is_seen(tmp_path):
    with written_video(tmp_path / "a.mp4", 10, (64, 48)) as write:
        write(grey(0), 0)
        write(grey(60), 0.4)
    assert levels(Video(str(tmp_path / "a.mp4"))) == [0, 3, 3, 3, 3]


def test_a_video_whose_writing_is_interrupted_can_be_read(tmp_path):
    with pytest.raises(KeyboardInterrupt), written_video(tmp_path / "a.mp4", 10, (64, 48)) as write:
        write(grey(40), 0)
        raise KeyboardInterrupt
    assert levels(Video(str(tmp_path / "a.mp4"))) == [2]
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.mp4"]


def test_a_video_that_ends_early_says_so(path, tmp_path, monkeypatch):
    video = Video(str(path))
    monkeypatch.setattr(video, "_count", 100)
    list(video)
    assert video.lacks_frames() == f"{path}: ends early, after 12 of 100 frames; copy it again"


@pytest.mark.parametrize("content", [b"", b"no video"])
def test_a_file_that_is_no_video_is_one_line(tmp_path, capfd, content):
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(SppdetError, match=r"a\.mp4: cannot be opened as a video; copy it again, or convert it to MP4$"):
        Video(str(tmp_path / "a.mp4"))
    assert capfd.readouterr().err == ""


def test_a_camera_that_is_not_there_is_one_line(capfd):
    with pytest.raises(SppdetError, match=r"^camera 77: cannot be opened as a video; check that it is connected"):
        Video(77)
    assert capfd.readouterr().err == ""


def test_a_camera_has_the_time_of_the_clock(monkeypatch):
    import cv2

    class Camera:
        def __init__(self, number):
            self.left = 3

        def isOpened(self):
            return True

        def read(self):
            self.left -= 1
            return (True, grey(self.left)) if self.left >= 0 else (False, None)

        def get(self, name):
            return 0.0

    clock = iter([5.0, 5.0, 5.5, 7.0])
    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    monkeypatch.setattr(video_module.time, "monotonic", lambda: next(clock))
    camera = Video(0)
    assert (camera.name, camera.is_camera, camera.rate, camera.frames) == ("camera 0", True, 10, 0)
    assert [(frame.number, frame.seconds) for frame in camera] == [(0, 0), (1, 0.5), (2, 2)]
