"""``python -m sppdet.join RUN OTHER --output FOLDER``: make one detector of two with different classes."""

from __future__ import annotations

import argparse
import sys

from sppdet.cli import common as cli


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's arguments."""
    parser = argparse.ArgumentParser(
        prog="sppdet join",
        description="Make one detector of two that have different classes and the same network and settings. Each "
        "class stays as it is, to the last bit. (Detectors of the same classes: sppdet combine.)",
    )
    parser.add_argument("run", metavar="RUN", help="folder of the model whose classes come first")
    parser.add_argument("other", metavar="OTHER", help="folder of the other model")
    parser.add_argument("--output", required=True, metavar="FOLDER", help="folder of the new model")
    return parser


def join(options: argparse.Namespace) -> None:
    """Run the command."""
    from sppdet import training  # imported late: --help does not wait for torch

    training.join_models(options.run, options.other, options.output)
    cli.say(f"{options.output}: the classes of {options.run} and of {options.other}")


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return the exit status."""
    return cli.run(join, parser().parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
