"""Videos and cameras, frame by frame, and videos that are written; both through OpenCV."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sppdet.utils import SppdetError, temporary_folder

_USUAL_RATE = 25.0  # frames per second of a file that does not say
_CAMERA_RATE = 10.0  # frames per second of the video that is written of a camera
_MISSING = 0.02  # share of the frames that a file's header may count too many


class Frame(NamedTuple):
    """A frame of a video.

    Attributes:
        number: of the frame, from 0; all frames count, also those that are passed over.
        seconds: from the first frame on.
        image: RGB uint8 ``(H, W, 3)``.
    """

    number: int
    seconds: float
    image: np.ndarray


class Video:
    """A video file or a camera, which can be iterated once.

    Args:
        source: path of a file, or the number of a camera.
        every: only every n-th frame is decoded and returned.

    Attributes:
        name: the path, or ``camera 0``.
        is_camera: whether it is a camera, which has no end.
        rate: frames per second, of those that are returned; of a camera, those of a video that is to be written.
        size: width and height in pixels.
        frames: how many frames will be returned, as far as the file says; 0 where it does not.

    Raises:
        SppdetError: it cannot be opened, or has no frame.
    """

    def __init__(self, source: str | int, every: int = 1):
        import cv2

        _silence_opencv()
        self.is_camera, self._every, self._read = isinstance(source, int), every, 0
        self.name = f"camera {source}" if self.is_camera else str(source)
        remedy = "check that it is connected and free" if self.is_camera else "copy it again, or convert it to MP4"
        self._capture = cv2.VideoCapture(source)
        self._first = self._capture.read()[1] if self._capture.isOpened() else None
        if self._first is None:
            raise SppdetError(f"{self.name}: cannot be opened as a video; {remedy}")
        self.size = self._first.shape[1], self._first.shape[0]
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        rate = rate if math.isfinite(rate) and 0 < rate <= 1000 else _USUAL_RATE
        self._file_rate = rate
        self.rate = _CAMERA_RATE if self.is_camera else rate / every
        count = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self._count = int(count) if not self.is_camera and 0 < count < 2**31 else 0
        self.frames = -(-self._count // every)

    def __iter__(self) -> Iterator[Frame]:
        began, image = time.monotonic(), self._first
        while image is not None:
            seconds = time.monotonic() - began if self.is_camera else self._read / self._file_rate
            yield Frame(self._read, seconds, np.ascontiguousarray(image[..., ::-1]))
            image = self._next()

    def _next(self) -> np.ndarray | None:
        """Return the next frame that counts, BGR; None at the end."""
        for _ in range(self._every - 1):
            self._read += 1
            if not self._capture.grab():
                return None
        self._read += 1
        return self._capture.read()[1]

    def lacks_frames(self) -> str | None:
        """Return a sentence where the video that was read to its end has fewer frames than it says; None else."""
        if self._read >= self._count - max(self._every, _MISSING * self._count):
            return None
        return f"{self.name}: ends early, after {self._read} of {self._count} frames; copy it again"

    def close(self) -> None:
        """Let go of the file or the camera."""
        self._capture.release()


def _silence_opencv() -> None:
    """Keep OpenCV and FFmpeg from printing their remarks on files and cameras: one line of ours says what is wrong."""
    import cv2

    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # read when the first video is opened
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


@contextmanager
def written_video(target: Path, rate: float, size: tuple[int, int]) -> Iterator[Callable[[np.ndarray, float], None]]:
    """Write a video (MPEG-4 in an MP4 file), which is whole and in its place however the context is left.

    Args:
        target: the file, which is replaced.
        rate: frames per second; an image stays for several frames where the next one comes later.
        size: width and height in pixels.

    Yields:
        A function that adds an RGB image, and the seconds from the beginning at which it is seen.

    Raises:
        SppdetError: the file cannot be written.
    """
    import cv2

    _silence_opencv()
    rate, written = max(rate, 1.0), 0
    with temporary_folder(target.parent) as folder:
        unfinished = folder / target.name
        writer = cv2.VideoWriter(str(unfinished), cv2.VideoWriter.fourcc(*"mp4v"), rate, size)
        if not writer.isOpened():
            raise SppdetError(f"{target}: OpenCV cannot write this video; give --no-pictures to do without it")

        def write(image: np.ndarray, seconds: float) -> None:
            nonlocal written
            for _ in range(max(1, round(seconds * rate) + 1 - written)):
                writer.write(np.ascontiguousarray(image[..., ::-1]))
                written += 1

        try:
            yield write
        finally:
            writer.release()
            if written:
                os.replace(unfinished, target)
