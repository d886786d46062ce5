"""``python -m sppdet.convert IN OUT --as yolo``: write labelled images in another format."""

from __future__ import annotations

import argparse
import sys

from sppdet.cli import common as cli
from sppdet.cli.check import add_format
from sppdet.utils import counted


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's arguments."""
    arguments = argparse.ArgumentParser(
        prog="sppdet convert",
        description="Copy labelled images into a new folder, with annotations in another format. Splits of the folder "
        "are kept.",
    )
    arguments.add_argument("input", metavar="IN", help="a folder of images and annotations, in any format that is read")
    arguments.add_argument("output", metavar="OUT", help="the new folder")
    arguments.add_argument("--as", required=True, dest="form", choices=("voc", "yolo", "coco"), help="format of OUT")
    add_format(arguments)
    arguments.add_argument("--skip-bad", action="store_true", help="leave out images that cannot be used")
    return arguments


def convert(options: argparse.Namespace) -> None:
    """Write the new folder and print what it holds."""
    from sppdet.data import convert_folder, read_folder, remarks

    folder = read_folder(options.input, options.format, options.skip_bad)
    convert_folder(folder, options.output, options.form)
    for remark in remarks(folder.problems):
        cli.say(f"warning: {remark}", sys.stderr)
    left_out = f", {counted(folder.left_out, 'file')} left out" if folder.left_out else ""
    images, objects = counted(len(folder.images), "image"), counted(folder.objects().total(), "object")
    cli.say(f"{options.output}: {options.form}, {images}, {objects}{left_out}")


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return the exit status."""
    return cli.run(convert, parser().parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
