"""``python -m sppdet.add RUN IMAGES``: teach a trained detector new classes, or what is none of its classes."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path

from sppdet.cli import common as cli


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's arguments."""
    parser = argparse.ArgumentParser(
        prog="sppdet add",
        description="Teach a trained detector new classes, from labelled images of these alone: the images and the "
        "cache of its training are not needed. Its other classes stay as they are, to the last bit.",
    )
    parser.add_argument("run", metavar="RUN", help="folder of a trained model with its bank (bank.safetensors)")
    parser.add_argument("images", metavar="IMAGES", help="folder of labelled images; with --background, of any images")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--class",
        dest="classes",
        action="append",
        metavar="NAME",
        help="a class to learn, once per class (default: all that the model does not have)",
    )
    what.add_argument(
        "--background",
        action="store_true",
        help="the images hold none of the model's classes: refit the classes that find something in them",
    )
    parser.add_argument("--output", metavar="FOLDER", help="folder of the new model (default: the model is replaced)")
    parser.add_argument("--cache", metavar="FOLDER", help="where proposals and maps go (default: the run's cache)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--workers", type=cli.positive, default=0, metavar="N", help="cores to use (default: all)")
    return parser


def add(options: argparse.Namespace) -> None:
    """Run the command."""
    from sppdet import training  # imported late: --help does not wait for torch

    settings = {"cache": options.cache, "device": options.device, "workers": options.workers}
    settings["output"] = options.output
    if options.background:
        detector = training.add_background(options.run, options.images, **settings)
    else:
        detector = training.add_classes(options.run, options.images, options.classes, **settings)
    spent = os.times()
    seconds = spent.user + spent.system + spent.children_user + spent.children_system
    folder = Path(options.output or options.run)
    cli.say(f"{folder}: {len(detector.classes)} classes, {seconds:.1f} s of processor time")
    cli.say(f"  sppdet detect PHOTO.jpg --model {shlex.quote(str(folder))}")


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return the exit status."""
    return cli.run(add, parser().parse_args(arguments), "interrupted; the model is as it was")


if __name__ == "__main__":
    sys.exit(main())
