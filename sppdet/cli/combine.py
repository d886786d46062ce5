"""``python -m sppdet.combine RUN OTHER --output FOLDER``: make an ensemble of several trained detectors."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from sppdet.cli import common as cli


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's arguments."""
    parser = argparse.ArgumentParser(
        prog="sppdet combine",
        description="Make an ensemble of detectors that were trained for the same classes: each one scores every "
        "window, and margins and boxes are their means. It is a run's folder like any other, for sppdet.detect --model "
        "and sppdet.evaluate, and holds copies of the models.",
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="folders of runs; the settings of the first one hold for the ensemble. Any other may be voc07, the "
        "detector that comes with sppdet",
    )
    parser.add_argument("--output", required=True, metavar="FOLDER", help="the ensemble's folder")
    parser.add_argument(
        "--weights", type=float, nargs="+", metavar="W", help="weight of each run; default: the same for all"
    )
    return parser


def combine(options: argparse.Namespace) -> None:
    """Write the ensemble and print how to measure it."""
    from sppdet.detection import combine_runs  # imported late: --help does not wait for torch

    folders, output = [Path(run) for run in options.runs], Path(options.output)
    combine_runs(folders, options.weights or [1.0] * len(folders), output)
    cli.say(f"{output}: {len(folders)} models; python -m sppdet.evaluate {shlex.quote(str(output))} measures it")


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return the exit status."""
    return cli.run(combine, parser().parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
