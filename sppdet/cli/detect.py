"""``python -m sppdet.detect IMAGE|FOLDER|GLOB ...``: find objects in images with a trained detector."""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sppdet.cli import common as cli
from sppdet.data import find_images
from sppdet.utils import SppdetError, atomic_write

if TYPE_CHECKING:  # imported late: --help does not wait for torch
    import numpy as np

    from sppdet.detection import Detections, Predictor

OUTPUT = "detections"

_EPILOG = """\
Scores are SVM margins, not probabilities: 0 is the decision boundary, and they are not bounded. With a softmax they are
log odds, where 0 is a probability of one half.
Boxes are x1 y1 x2 y2, pixel edges counted from 0, of the image as displayed (EXIF orientation applied):
the top left pixel is 0 0 1 1, and a width is x2 - x1.
Where nothing reaches the threshold the nearest that did not is named ("nearest" in JSON).

--json prints one document, best detections first; an image that could not be done has "error" instead:
  {"model": "runs/demo", "classes": ["cat", "dog"], "threshold": -0.5,
   "images": [{"path": "a.jpg", "width": 640, "height": 480,
               "detections": [{"label": "dog", "score": 0.71, "box": [48.0, 120.0, 195.5, 371.0]}]}]}

Exit status: 0, or 2 if anything could not be done. An image that cannot be read does not keep the others from being
done; a name that leads to no image does.
"""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="sppdet detect",
        description="Find objects in images: prints them and draws them into copies of the images.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("images", nargs="+", metavar="IMAGE", help="an image, a folder of them, or a quoted pattern")
    made.add_argument("--model", metavar="RUN", help="a run's folder; default: the newest finished one in runs/")
    images = made.add_mutually_exclusive_group()
    images.add_argument(
        "--output",
        metavar="DIR",
        help=f"where the images with boxes go, as JPEG; default: {OUTPUT}, with --json none are drawn",
    )
    images.add_argument("--no-pictures", action="store_true", help="only print")
    made.add_argument(
        "--threshold",
        type=_finite,
        default=-0.5,
        metavar="M",
        help="lowest score shown, not a probability; default: %(default)s; 0 is the decision boundary",
    )
    made.add_argument("--max-detections", type=cli.positive, metavar="N", help="show only the N best of an image")
    made.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    made.add_argument("--device", default="auto", metavar="D", help="auto, cpu or cuda; default: %(default)s")
    return made


def _finite(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"'{text}' is not a finite number")
    return value


def detect(options: argparse.Namespace) -> int:
    """Do every image; the exit status."""
    images = find_images(options.images)
    model = Path(options.model) if options.model else newest_run()
    output = options.output or (None if options.json or options.no_pictures else OUTPUT)
    targets = output_paths(images, Path(output)) if output else [None] * len(images)
    if not options.model:
        print(f"model: {model}, the newest in {model.parent}", file=sys.stderr)

    from sppdet.detection import load  # after all that can go wrong without it
    from sppdet.utils import few_or_many

    detector = load(model, options.device)
    detector.search.warm_up()
    # The detector's own floor must not hide what is asked for.
    floor = min(detector.detection.min_margin, options.threshold)
    detector.detection = replace(detector.detection, min_margin=floor)
    one = partial(_detect_one, detector, options.threshold, options.max_detections)
    entries = []
    for entry, target in zip(few_or_many(one, list(zip(images, targets)), "detecting"), targets):
        if "error" in entry:
            cli.say(f"error: {entry['error']}", sys.stderr)
        elif not options.json:
            cli.say(_report(entry, target))
        entries.append(entry)
    if options.json:
        document = {"model": str(model), "classes": list(detector.classes), "threshold": options.threshold}
        cli.say(json.dumps(document | {"images": entries}, indent=2))
    return 2 if any("error" in entry for entry in entries) else 0


def newest_run(folder: str | Path = "runs") -> Path:
    """The finished run (``model.json`` and ``metrics.json``) in ``folder`` that was measured last."""
    finished = [path.parent for path in Path(folder).glob("*/metrics.json") if (path.parent / "model.json").exists()]
    if not finished:
        raise SppdetError(
            f"{folder}/: no finished run here; make one with `make demo` (minutes) or `make train-voc`, "
            "or give --model RUN"
        )
    return max(finished, key=lambda run: ((run / "metrics.json").stat().st_mtime_ns, run.name))


def output_paths(images: Sequence[str], folder: Path) -> list[Path]:
    """A JPEG in ``folder`` for each image, by its stem; equal stems are numbered: ``a``, ``a-2``, ``a-3``.

    Makes the folder. Raises :class:`SppdetError` if that fails, or if an image would be overwritten.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SppdetError(f"{folder}: cannot be made ({error.strerror}); give another --output") from None
    paths = [folder / f"{name}.jpg" for name in _unique([Path(image).stem for image in images])]
    there = [Path(image) for image in images if Path(image).exists()]
    originals = {_identity(image) for image in there}
    concat_pooled = {_identity(image.parent) for image in there}
    for path in filter(Path.exists, paths):
        if _identity(path) in originals:
            raise SppdetError(f"{path}: would be overwritten, and is one of the images; give another --output")
        if _identity(folder) in concat_pooled:
            raise SppdetError(f"{path}: would be overwritten, and may be an image of yours; give another --output")
    return paths


def _unique(stems: Sequence[str]) -> list[str]:
    # Without regard to case, because some file systems have none.
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
    """Of the file itself, whatever names or links lead to it."""
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _detect_one(detector: Predictor, threshold: float, limit: int | None, item: tuple[str, Path | None]) -> dict:
    """What --json tells of one image, which is drawn to ``item``'s path if it has one.

    Where nothing reaches the threshold, ``nearest`` is the best detection that did not.
    """
    from sppdet.data import read_image

    path, target = item
    try:
        image = read_image(path)
        every = detector.predict(image)
        found = every.above(threshold)
        found = replace(found, boxes=found.boxes[:limit], labels=found.labels[:limit], scores=found.scores[:limit])
        if target is not None:
            _write(target, image, found)
    except SppdetError as error:
        text = str(error)
        return {"path": path, "error": text if text.startswith(path) else f"{path}: {text}"}
    height, width = image.shape[:2]
    entry = {"path": path, "width": width, "height": height, "detections": found.to_list()}
    return entry if len(found) or not len(every) else entry | {"nearest": every.to_list()[0]}


def _write(target: Path, image: np.ndarray, found: Detections) -> None:
    from PIL import Image

    from sppdet.detection import draw_detections

    drawn = Image.fromarray(draw_detections(image, found))
    try:
        atomic_write(target, lambda temporary: drawn.save(temporary, quality=92))
    except OSError as error:
        raise SppdetError(f"{target} cannot be written ({error.strerror or error})") from None


def _report(entry: dict, target: Path | None) -> str:
    """The lines for one image: where it was written, and below each detection."""
    found = entry["detections"]
    what = f"{len(found)} found" if found else "nothing above the threshold"
    if "nearest" in entry:
        what += " (nearest: {label} {score:.2f}; --threshold lowers it)".format(**entry["nearest"])
    lines = [f"{entry['path']}: {what}" + (f" -> {target}" if target else "")]
    for one in found:
        corners = " ".join(f"{edge:.0f}" for edge in one["box"])
        lines.append(f"  {one['label']} {one['score']:.2f} {corners}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    return cli.run(detect, parser().parse_intermixed_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
