"""``python -m sppdet.check IMAGES``: say what a folder of labelled images holds, and every problem of it."""

from __future__ import annotations

import argparse
import sys

from sppdet.cli import common as cli


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's arguments."""
    arguments = argparse.ArgumentParser(
        prog="sppdet check",
        description="Say what a folder of labelled images holds: format, images, objects of each class and their "
        "sizes; and list every problem with its file. The folder is not changed.",
        epilog="Exit status: 0; 2 if some images cannot be used, or after an error.",
    )
    arguments.add_argument("images", metavar="IMAGES", help="a folder of images and annotations")
    add_format(arguments)
    return arguments


def add_format(arguments: argparse.ArgumentParser) -> None:
    """Add the option ``--format``."""
    arguments.add_argument(
        "--format",
        metavar="NAME",
        help="the format to read where the folder holds several: voc, cvat, coco, labelstudio, labelme, yolo or csv",
    )


def check(options: argparse.Namespace) -> int:
    """Print the report of a folder and return the exit status."""
    from sppdet.data import read_folder

    folder = read_folder(options.images, options.format, skip_bad=True, decode=True)
    cli.say(folder.report())
    return cli.FAILED if folder.left_out else cli.OK


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return the exit status."""
    return cli.run(check, parser().parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
