"""``python -m sppdet.detect IMAGE|FOLDER|GLOB|VIDEO ...``: find objects in images and videos."""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sppdet.cli import common as cli
from sppdet.cli.detect_images import detect_in_image, shown_in_frame
from sppdet.cli.detect_options import OUTPUT, parser
from sppdet.cli.detect_text import document_of, lines_of
from sppdet.cli.drawings import output_paths
from sppdet.data import find_images, is_video_name, passed_over
from sppdet.detection import model_folder, shipped_model
from sppdet.utils import SppdetError

if TYPE_CHECKING:  # imported late: --help does not wait for torch
    from sppdet.detection import Detector, Ensemble


def detect(options: argparse.Namespace) -> int:
    """Detect objects in every image and video, print and draw them, and return the exit status."""
    options.json = options.json or options.form is not None
    images, videos = _inputs(options)
    model, remark = (model_folder(options.model), None) if options.model else default_model()
    output = options.output or (None if options.json or options.no_pictures else OUTPUT)
    targets: Sequence[Path | None] = [None] * len(images)
    video_targets: Sequence[Path | None] = [None] * len(videos)
    if output:
        targets = output_paths(images, Path(output))
        names = [f"camera-{video}" if isinstance(video, int) else video for video in videos]
        video_targets = output_paths(names, Path(output), ".mp4")
    if remark:
        print(f"model: {remark}", file=sys.stderr)
    with _quick_imports():
        from sppdet.detection import load  # imported late: errors in the arguments come before the wait

        detector = load(model, options.device)
        check_threshold(detector, options.threshold, model)
        detector.search.warm_up()
    entries = _detect_in_images(detector, options, [*zip(images, targets)])
    failed = any("error" in entry for entry in entries)
    if videos:
        from sppdet.cli.detect_video import detect_in_video

        shown = partial(shown_in_frame, detector, options)
        statuses = [detect_in_video(video, shown, options, target) for video, target in zip(videos, video_targets)]
        failed |= any(statuses)
    elif options.json:
        cli.say(json.dumps(document_of(entries, str(model), detector, options), indent=2))
    return cli.FAILED if failed else cli.OK


def _inputs(options: argparse.Namespace) -> tuple[list[str], list[str | int]]:
    """Return the images, and the videos and numbers of cameras, that the arguments name; say what is passed over."""
    files = find_images(options.images)
    videos: list[str | int] = [*filter(is_video_name, files)]
    images = [path for path in files if path not in videos]
    videos += [] if options.camera is None else [options.camera]
    if not images and not videos:
        raise SppdetError("no image: give images, folders or videos, or --camera 0")
    if images and videos and options.json:
        raise SppdetError("--json: is one document for images and lines for videos; give either images or videos")
    if videos and options.form:
        raise SppdetError(f"--as {options.form}: is for images; for a video give --json")
    for line in passed_over(options.images):
        print(f"warning: {line}", file=sys.stderr)
    return images, videos


def _detect_in_images(
    detector: Detector | Ensemble, options: argparse.Namespace, items: Sequence[tuple[str, Path | None]]
) -> list[dict]:
    """Detect in images, each with the file to draw it into; report each when it is done, and return their entries."""
    from sppdet.utils import few_or_many

    detect_one = partial(detect_in_image, detector, options)
    # Tiles of an image are read by all cores already.
    in_turn = detector.tile_side(options.tiles) != 0
    results = map(detect_one, items) if in_turn else few_or_many(detect_one, items, "detecting")
    entries = []
    for entry, (_, target) in zip(results, items):
        if "error" in entry:
            cli.say(f"error: {entry['error']}", sys.stderr)
        if "detections" in entry and not options.json:
            cli.say(lines_of(entry, None if "error" in entry else target))
        entries.append(entry)
    return entries


def check_threshold(detector: Detector | Ensemble, threshold: float | str, model: str | Path) -> None:
    """Refuse a threshold that is no probability; say where it is taken for a margin."""
    if isinstance(threshold, str):
        return
    if detector.calibrated is None:
        cli.say(f"{model} has no probabilities: --threshold {threshold:g} is a margin", sys.stderr)
    elif not 0 <= threshold <= 1:
        raise SppdetError(f"--threshold: {threshold:g} is no probability; give 0 to 1, or auto")


@contextmanager
def _quick_imports() -> Iterator[None]:
    """Hide scipy, which Numba would load for products that no kernel here has, and do not look for garbage meanwhile.

    Together they save a fifth of the time that the command takes for one image.
    """
    hidden = "scipy" not in sys.modules
    if hidden:
        sys.modules["scipy"] = None  # type: ignore[assignment]  # an import of it then fails
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # what was loaded stays
        gc.enable()
        if hidden:
            del sys.modules["scipy"]


def default_model(folder: str | Path = "runs") -> tuple[Path, str]:
    """Return the model that is used without ``--model``, and a line that names it.

    It is the finished run (``model.json`` and ``metrics.json``) in ``folder`` that was evaluated last; without any, the
    detector that is part of the package.
    """
    finished = [path.parent for path in Path(folder).glob("*/metrics.json") if (path.parent / "model.json").exists()]
    if not finished:
        return shipped_model(), "the detector of VOC's 20 classes that comes with sppdet (no finished run in runs/)"
    newest = max(finished, key=lambda run: ((run / "metrics.json").stat().st_mtime_ns, run.name))
    return newest, f"{newest}, the newest in {newest.parent}"


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return the exit status."""
    return cli.run(detect, cli.parse(parser(), arguments))


if __name__ == "__main__":
    sys.exit(main())
