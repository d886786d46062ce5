"""``python -m sppdet.detect IMAGE|FOLDER|GLOB|VIDEO ...``: find objects in images and videos."""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sppdet.cli import common as cli
from sppdet.config import DEFAULT_THRESHOLD, MIN_TILE
from sppdet.data import find_images, is_video_name, passed_over
from sppdet.detection import model_folder, shipped_model
from sppdet.utils import SppdetError, atomic_write, remove_leftovers, short_name

if TYPE_CHECKING:  # imported late: --help does not wait for torch
    import numpy as np

    from sppdet.detection import Detections, Detector, Ensemble

OUTPUT = "detections"
_JPEG_SIDE = 65_500  # pixels per side that JPEG libraries write

_EPILOG = """\
The number beside a class is the probability that the detection is right: that its box overlaps an object of the class
by an IoU of 0.5 or more. It was learned on training images that the SVMs had not seen. "score" in JSON is the SVM
margin: 0 is the decision boundary, and it is not bounded. With a softmax it is the log odds.
Ensembles and models of earlier versions have no probabilities: the margin is shown, --threshold is a margin, and its
default is %(margin)s. The training command, given again, adds the probabilities to a model of an earlier version.
Boxes are x1 y1 x2 y2, pixel edges counted from 0, of the image as displayed (EXIF orientation applied):
the top left pixel is 0 0 1 1, and a width is x2 - x1.
Where no detection reaches the threshold, the best one below it is named ("nearest" in JSON).

--json prints one document, best detections first; an image that could not be read has "error" instead, one that could
not be drawn has it too:
  {"model": "runs/demo", "classes": ["cat", "dog"], "threshold": "auto", "margins": {"cat": -0.21, "dog": -0.34},
   "images": [{"path": "a.jpg", "width": 640, "height": 480,
               "detections": [{"label": "dog", "probability": 0.93, "score": 0.71,
                               "box": [48.0, 120.0, 195.5, 371.0]}]}]}
"margins" are those of --threshold auto and of --margin: the lowest ones shown of each class.

A video is written with boxes, and beside it a file of JSON lines, one per frame; with --json these are printed:
  {"path": "a.mp4", "frame": 30, "time": 1.0, "width": 640, "height": 480, "detections": [...]}
"time" is in seconds, "frame" counts from 0. Ctrl-C ends it; what was written is whole.

--as transformers prints a list per image of {"score", "label", "box": {"xmin", "ymin", "xmax", "ymax"}}; --as
megadetector prints the JSON of MegaDetector's batch output, format 1.6, whose boxes are shares of the image.

--tiles reads an image that is larger than a tile in overlapping tiles, and joins what is found in them; "auto" takes
tiles as large as the training images, and leaves images alone that are hardly larger. Files of any size can be read
with pip install 'sppdet[large]'.

Exit status: 0, or 2 after any error. If an image cannot be read the others are processed all the same; if an IMAGE
argument names no image, none is.
"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's arguments."""
    parser = argparse.ArgumentParser(
        prog="sppdet detect",
        description="Find objects in images and videos: prints them and draws them into copies of these.",
        epilog=_EPILOG % {"margin": DEFAULT_THRESHOLD},
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "images", nargs="*", metavar="IMAGE", help="an image, a folder of images, a quoted pattern, or a video"
    )
    parser.add_argument("--camera", type=_from_zero, metavar="N", help="look through camera N, from 0, until Ctrl-C")
    parser.add_argument("--every", type=cli.positive, default=1, metavar="N", help="read every N-th frame of videos")
    parser.add_argument(
        "--model",
        metavar="RUN",
        help="a run's folder, or voc07, the detector of VOC's 20 classes that comes with sppdet; default: the newest "
        "finished run in runs/, or else voc07",
    )
    drawing = parser.add_mutually_exclusive_group()
    drawing.add_argument(
        "--output",
        metavar="DIR",
        help=f"where images with boxes go, as JPEG, and videos, as MP4; default: {OUTPUT}, with --json none are drawn",
    )
    drawing.add_argument("--no-pictures", action="store_true", help="only print")
    lowest = parser.add_mutually_exclusive_group()
    lowest.add_argument(
        "--threshold",
        type=threshold,
        default="auto",
        metavar="P",
        help="lowest probability shown, 0 to 1; default: auto, where F1 of each class was best in images set aside",
    )
    lowest.add_argument("--margin", type=_finite, metavar="M", help="lowest SVM margin shown, in place of --threshold")
    parser.add_argument("--max-detections", type=cli.positive, metavar="N", help="show only the N best per image")
    parser.add_argument(
        "--tiles",
        type=tile_side,
        metavar="SIDE",
        help="read larger images in overlapping tiles of this many pixels per side, or of auto; none: never (default: "
        "auto for models that were trained on tiles, else none)",
    )
    parser.add_argument("--no-labels", action="store_true", help="draw boxes in the colours of their classes, no text")
    parser.add_argument(
        "--all-classes",
        action="store_true",
        help="where boxes of two classes lie in one place (IoU above 0.7), show both, not only the one of higher score",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    parser.add_argument(
        "--as",
        dest="form",
        choices=("transformers", "megadetector"),
        help="--json in the form of transformers' object-detection pipeline, or of MegaDetector's batch output",
    )
    parser.add_argument("--device", default="auto", metavar="D", help="auto, cpu or cuda; default: %(default)s")
    return parser


def threshold(text: str) -> float | str:
    """Convert the value of ``--threshold``, as ``type=`` of argparse."""
    return "auto" if text == "auto" else _finite(text)


def tile_side(text: str) -> int | str:
    """Convert the value of ``--tiles``, as ``type=`` of argparse."""
    if text in ("auto", "none"):
        return "auto" if text == "auto" else 0
    if not text.isdecimal() or int(text) < MIN_TILE:
        raise argparse.ArgumentTypeError(f"'{text}' is no tile size: give auto, none, or {MIN_TILE} pixels or more")
    return int(text)


def _from_zero(text: str) -> int:
    """Convert the number of a camera, as ``type=`` of argparse."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"'{text}' is no number of a camera; give 0 for the first one")
    return int(text)


def _finite(text: str) -> float:
    """Convert the value of an option that is a finite number, as ``type=`` of argparse."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"'{text}' is not a finite number")
    return value


def detect(options: argparse.Namespace) -> int:
    """Detect objects in every image and video, print and draw them, and return the exit status."""
    options.json = options.json or options.form is not None
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

    from sppdet.utils import few_or_many

    with _quick_imports():
        from sppdet.detection import load  # imported late: errors in the arguments come before the wait

        detector = load(model, options.device)
        check_threshold(detector, options.threshold, model)
        detector.search.warm_up()
    detect_one = partial(_detect_one, detector, options)
    entries = []
    items = list(zip(images, targets))
    # Tiles of an image are read by all cores already.
    found = map(detect_one, items) if detector.tile_side(options.tiles) else few_or_many(detect_one, items, "detecting")
    for entry, target in zip(found, targets):
        if "error" in entry:
            cli.say(f"error: {entry['error']}", sys.stderr)
        if "detections" in entry and not options.json:
            cli.say(_report(entry, None if "error" in entry else target))
        entries.append(entry)
    failed = any("error" in entry for entry in entries)
    if videos:
        from sppdet.cli.detect_video import detect_in_video

        shown = partial(_shown_in_frame, detector, options)
        statuses = [detect_in_video(video, shown, options, target) for video, target in zip(videos, video_targets)]
        failed |= any(statuses)
    elif options.json:
        cli.say(json.dumps(_document(entries, str(model), detector, options), indent=2))
    return cli.FAILED if failed else cli.OK


def _document(
    entries: list[dict], model: str, detector: Detector | Ensemble, options: argparse.Namespace
) -> dict | list:
    """Return what is printed with ``--json``, from the entries of `_detect_one`."""
    if options.form == "transformers":
        return [entry.get("detections", []) for entry in entries]
    if options.form == "megadetector":
        from sppdet.detection import megadetector_document

        unreadable = {"detections": None, "failure": "image access failure"}
        images = [
            {"file": entry["path"]} | ({"detections": entry["detections"]} if "detections" in entry else unreadable)
            for entry in entries
        ]
        return megadetector_document(images, detector.classes, model)
    document = {"model": model, "classes": list(detector.classes), **_limits(detector, options)}
    return document | {"images": entries}


def check_threshold(detector: Detector | Ensemble, threshold: float | str, model: str | Path) -> None:
    """Refuse a threshold that is no probability; say where it is taken for a margin."""
    if isinstance(threshold, str):
        return
    if detector.calibrated is None:
        cli.say(f"{model} has no probabilities: --threshold {threshold:g} is a margin", sys.stderr)
    elif not 0 <= threshold <= 1:
        raise SppdetError(f"--threshold: {threshold:g} is no probability; give 0 to 1, or auto")


def _limits(detector: Detector | Ensemble, options: argparse.Namespace) -> dict:
    """Return the entries of the JSON document that tell from where on detections are shown."""
    if options.margin is None and not (options.threshold == "auto" and detector.calibrated is not None):
        return {"threshold": DEFAULT_THRESHOLD if options.threshold == "auto" else options.threshold}
    margins = detector.lowest_margins(options.threshold, options.margin).tolist()
    by_class = {name: round(margin, 5) for name, margin in zip(detector.classes, margins)}
    return {"threshold": "auto" if options.margin is None else None, "margins": by_class}


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


def output_paths(images: Sequence[str], folder: Path, suffix: str = ".jpg") -> list[Path]:
    """Choose a file in ``folder`` for the drawing of each image or video, and make the folder.

    A file is named by the stem of its image; equal stems are numbered: ``a``, ``a-2``, ``a-3``.

    Raises:
        SppdetError: if the folder cannot be made, or a file in a folder of images would be overwritten.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SppdetError(f"{folder}: cannot be made ({error.strerror}); give another --output") from None
    remove_leftovers(folder, below=False)
    paths = [folder / f"{name}{suffix}" for name in _unique([short_name(Path(image).stem) for image in images])]
    existing = [Path(image) for image in images if Path(image).exists()]
    originals = {_identity(image) for image in existing}
    folders_of_images = {_identity(image.parent) for image in existing}
    lines = [path.with_suffix(".jsonl") for path in paths if suffix == ".mp4"]  # written beside a video
    for path in filter(Path.exists, [*paths, *lines]):
        if _identity(path) in originals:
            raise SppdetError(f"{path}: would be overwritten, and is one of the images; give another --output")
        if _identity(folder) in folders_of_images:
            raise SppdetError(f"{path}: would be overwritten, and may be an image of yours; give another --output")
    return paths


def _unique(stems: Sequence[str]) -> list[str]:
    """Number equal stems. Upper and lower case are equal, because they are on some file systems."""
    taken = {stem.casefold() for stem in stems}
    numbers: dict[str, Iterator[int]] = {}
    names = []
    for stem in stems:
        key, name = stem.casefold(), stem
        if key in numbers:
            numbered = (f"{stem}-{number}" for number in numbers[key])
            name = next(name for name in numbered if name.casefold() not in taken)
        numbers.setdefault(key, itertools.count(2))
        taken.add(name.casefold())
        names.append(name)
    return names


def _identity(path: str | Path) -> tuple[int, int]:
    """Return a value that all names of a file, and all links to it, share."""
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _detect_one(detector: Detector | Ensemble, options: argparse.Namespace, item: tuple[str, Path | None]) -> dict:
    """Return the entry of one image in the JSON document, and draw the detections if ``item`` has a path for that.

    ``nearest`` is the best detection below the threshold, if none reaches it.
    """
    import numpy as np

    from sppdet.data import PixelsInMemory, open_pixels, read_image

    path, target = item
    try:
        in_parts = detector.tile_side(options.tiles) != 0
        pixels = open_pixels(path) if in_parts else PixelsInMemory(read_image(path))
        size = pixels.width, pixels.height
        if detector.plan_tiles(size, options.tiles):
            every = detector.predict_pixels(pixels, options.threshold, options.margin, options.tiles)
        else:
            # Detections below the threshold, too: the nearest may have to be named.
            lowest = float(detector.lowest_margins(options.threshold, options.margin).min())
            every = detector.predict(
                pixels.read((0, 0, *size)), margin=min(lowest, detector.detection.min_margin), tiles=0
            )
    except SppdetError as error:
        text = str(error)
        return {"path": path, "error": text if text.startswith(path) else f"{path}: {text}"}
    shown = _to_show(detector, options, every)
    if options.form == "transformers":
        detections = shown.to_transformers()
    else:
        detections = shown.to_list() if options.form is None else shown.to_megadetector(size)
    entry = {"path": path, "width": size[0], "height": size[1], "detections": detections}
    if not len(shown) and len(every):
        entry["nearest"] = every[:1].to_list()[0]
    if target is not None:
        try:
            image, factor = pixels.overview()
            drawn = replace(shown, xyxy=shown.xyxy * np.float32(factor))
            _write(target, drawn.draw(image, labels=not options.no_labels))
        except SppdetError as error:
            entry["error"] = f"{path}: {error}"  # the detections stay
    return entry


def _shown_in_frame(detector: Detector | Ensemble, options: argparse.Namespace, image: np.ndarray) -> Detections:
    """Return the detections of a frame of a video that are shown."""
    return _to_show(detector, options, detector.predict(image, options.threshold, False, options.margin, options.tiles))


def _to_show(detector: Detector | Ensemble, options: argparse.Namespace, every: Detections) -> Detections:
    """Return those of an image's detections that the options let through."""
    shown = detector.select(every, options.threshold, options.margin)
    if not (options.all_classes or options.json):  # a program that reads JSON gets what `predict` returns
        shown = shown.one_per_place()
    return shown[: options.max_detections]


def _write(target: Path, drawing: np.ndarray) -> None:
    """Write an RGB array as a JPEG file."""
    from PIL import Image

    if max(drawing.shape) > _JPEG_SIDE:
        raise SppdetError(f"not drawn, as JPEG ends at {_JPEG_SIDE} pixels per side and the image has more")
    image = Image.fromarray(drawing)
    try:
        atomic_write(target, lambda temporary: image.save(temporary, quality=92))
    except OSError as error:
        raise SppdetError(f"{target} cannot be written ({error.strerror or error}); give another --output") from None


def _report(entry: dict, target: Path | None) -> str:
    """Return the lines for one image: where it was drawn, and each detection."""
    detections = entry["detections"]
    result = f"{len(detections)} found" if detections else "nothing above the threshold"
    if "nearest" in entry:
        nearest = entry["nearest"]
        value = nearest.get("probability", nearest["score"])
        result += f" (nearest: {nearest['label']} {value:.2f}; --threshold lowers it)"
    lines = [f"{entry['path']}: {result}" + (f" -> {target}" if target else "")]
    for detection in detections:
        corners = " ".join(f"{edge:.0f}" for edge in detection["box"])
        score = f"{detection['score']:.2f}"
        if "probability" in detection:
            lines.append(f"  {detection['label']} {detection['probability']:.2f} {corners} (margin {score})")
        else:
            lines.append(f"  {detection['label']} {score} {corners}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return the exit status."""
    return cli.run(detect, parser().parse_intermixed_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
