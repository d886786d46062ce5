"""``python -m sppdet.rename RUN OLD NEW``: give a class of a trained detector another name."""

from __future__ import annotations

import argparse
import sys

from sppdet.cli import common as cli


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's arguments."""
    parser = argparse.ArgumentParser(
        prog="sppdet rename", description="Give a class of a trained detector another name; nothing is learned."
    )
    parser.add_argument("run", metavar="RUN", help="folder of a trained model")
    parser.add_argument("old", metavar="OLD", help="the name that the class has")
    parser.add_argument("new", metavar="NEW", help="the name that it gets")
    parser.add_argument("--output", metavar="FOLDER", help="folder of the new model (default: the model is replaced)")
    return parser


def rename(options: argparse.Namespace) -> None:
    """Run the command."""
    from sppdet import training  # imported late: --help does not wait for torch

    training.rename_class(options.run, options.old, options.new, output=options.output)
    cli.say(f"{options.output or options.run}: {options.old} is {options.new} now")


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return the exit status."""
    return cli.run(rename, parser().parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
