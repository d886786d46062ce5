"""The arguments of ``sppdet detect``."""

from __future__ import annotations

import argparse
import math

from sppdet.cli import common as cli
from sppdet.config import DEFAULT_THRESHOLD, MIN_TILE

OUTPUT = "detections"  # the folder of drawings, unless another is given

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
