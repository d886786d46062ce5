"""``python -m sppdet.remove RUN CLASS ...``: take classes out of a trained detector."""

from __future__ import annotations

import argparse
import sys

from sppdet.cli import common as cli


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's arguments."""
    parser = argparse.ArgumentParser(
        prog="sppdet remove",
        description="Take classes out of a trained detector. All others stay as they are, to the last bit.",
    )
    parser.add_argument("run", metavar="RUN", help="folder of a trained model")
    parser.add_argument("classes", nargs="+", metavar="CLASS", help="names of classes")
    parser.add_argument("--output", metavar="FOLDER", help="folder of the new model (default: the model is replaced)")
    return parser


def remove(options: argparse.Namespace) -> None:
    """Run the command."""
    from sppdet import training  # imported late: --help does not wait for torch

    training.remove_classes(options.run, options.classes, output=options.output)
    cli.say(f"{options.output or options.run}: without {', '.join(options.classes)}")


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return the exit status."""
    return cli.run(remove, parser().parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
