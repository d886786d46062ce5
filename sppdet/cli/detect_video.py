"""What ``sppdet detect`` does with a video or a camera: a video with boxes, and a line of JSON per frame."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING

from sppdet.cli import common as cli
from sppdet.data import Video, written_video
from sppdet.utils import SppdetError, bar, counted, in_threads, thread_count

if TYPE_CHECKING:
    import numpy as np

    from sppdet.data import Frame
    from sppdet.detection import Detections

Shown = Callable[["np.ndarray"], "Detections"]  # the detections of an image that are shown


def detect_in_video(source: str | int, shown: Shown, options: argparse.Namespace, target: Path | None) -> int:
    """Detect objects in a video or what a camera sees, print and write them; return the exit status.

    Args:
        source: path of the video, or number of the camera.
        shown: detects.
        options: of the command.
        target: the video to write, and beside it a file of JSON lines; None: only print.

    Raises:
        KeyboardInterrupt: the user ended the work in a video; what was written is whole.
    """
    try:
        return _detect(source, shown, options, target)
    except SppdetError as error:  # the others are processed all the same
        cli.say(f"error: {error}", sys.stderr)
        return cli.FAILED


def _detect(source: str | int, shown: Shown, options: argparse.Namespace, target: Path | None) -> int:
    """Do the work of `detect_in_video`."""
    classes: Counter[str] = Counter()
    with closing(Video(source, options.every)) as video, ExitStack() as stack:
        frames, interrupted, last = 0, None, 0.0
        draw = stack.enter_context(written_video(target, video.rate, video.size)) if target else None
        lines = _lines_file(target, stack) if target and not options.json else None
        count = stack.enter_context(bar(video.frames, Path(video.name).name))
        if video.is_camera:
            cli.say(f"{video.name}: Ctrl-C ends", sys.stderr)
        try:
            for frame, found, drawing in _detected(video, shown, options, draw is not None, stack):
                line = json.dumps(_entry(video, frame, found))
                if lines:
                    lines(line)
                if options.json:
                    cli.say(line)
                elif target is None or video.is_camera:
                    cli.say(_text(frame, found))
                classes.update(found.names)
                frames, last = frames + 1, frame.seconds
                if draw:
                    draw(drawing, frame.seconds)
                count()
        except (KeyboardInterrupt, SystemError) as error:
            interrupted = cli.interruption_of(error)
        missing = None if interrupted or video.is_camera else video.lacks_frames()
    if not options.json:
        found_in_all = ", ".join(f"{name} {count}" for name, count in classes.most_common()) or "nothing found"
        files = f" -> {target}, {target.with_suffix('.jsonl')}" if target else ""
        ended = ", interrupted" if interrupted and not video.is_camera else ""
        cli.say(f"{video.name}: {counted(frames, 'frame')} to {last:.1f} s{ended}: {found_in_all}{files}")
    if missing:
        cli.say(f"error: {missing}; the detections up to there are kept", sys.stderr)
        return cli.FAILED
    if interrupted and not video.is_camera:
        raise interrupted
    return cli.OK


def _detected(
    video: Video, shown: Shown, options: argparse.Namespace, draws: bool, stack: ExitStack
) -> Iterator[tuple[Frame, Detections, np.ndarray]]:
    """Yield each frame with its detections and its drawing; those of a file are computed ahead by threads."""

    def detect(frame: Frame) -> tuple[Frame, Detections, np.ndarray]:
        found = shown(frame.image)
        return frame, found, found.draw(frame.image, labels=not options.no_labels) if draws else frame.image

    if video.is_camera:
        return map(detect, video)
    return stack.enter_context(closing(in_threads(detect, video, thread_count())))


def _lines_file(target: Path, stack: ExitStack) -> Callable[[str], None]:
    """Open the file of JSON lines beside a video; return the function that adds a line, which is there at once."""
    path = target.with_suffix(".jsonl")
    try:
        file = stack.enter_context(open(path, "w", encoding="utf-8"))  # noqa: SIM115
    except OSError as error:
        raise SppdetError(f"{path}: cannot be written ({error.strerror}); give another --output") from None

    def add(line: str) -> None:
        file.write(line + "\n")
        file.flush()

    return add


def _entry(video: Video, frame: Frame, found: Detections) -> dict:
    """Return the JSON object of a frame."""
    width, height = video.size
    return {
        "path": video.name, "frame": frame.number, "time": round(frame.seconds, 3), "width": width, "height": height,
        "detections": found.to_list(),
    }  # fmt: skip


def _text(frame: Frame, found: Detections) -> str:
    """Return the line that is printed of a frame."""
    names = ", ".join(f"{name} {count}" for name, count in Counter(found.names).most_common())
    return f"  frame {frame.number}, {frame.seconds:.2f} s: {names or 'nothing'}"
