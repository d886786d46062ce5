"""``python -m sppdet.report RUN [key=value ...]``: write the report of a run's last evaluation."""

from __future__ import annotations

import argparse
import sys

from sppdet.cli import common as cli
from sppdet.cli.evaluate import check_overrides


def parser() -> argparse.ArgumentParser:
    """Make the parser of the command's arguments."""
    arguments = argparse.ArgumentParser(
        prog="sppdet report",
        description="Write RUN/report.html about the last evaluation of a run: figures with their ranges, curves with "
        "a threshold to move, kinds of errors, labels to check, false alarms and missed objects. Training and "
        "evaluation write it too. The file needs no network.",
    )
    arguments.add_argument("run", metavar="RUN", help="the folder of a run, such as runs/demo")
    arguments.add_argument(
        "--learning-curve",
        action="store_true",
        help="first train with a quarter and a half of the images, to see what more of them would bring",
    )
    cli.add_overrides(arguments, "data.root=photos where files have moved since; of data and run.cache")
    return arguments


def report(options: argparse.Namespace) -> None:
    """Run the command with parsed arguments."""
    check_overrides(options.overrides, of_last_evaluation=True)
    from sppdet import evaluation  # imported late: --help does not wait for torch

    if options.learning_curve:
        from sppdet import training

        training.measure_learning_curve(options.run, options.overrides)
    print(evaluation.write_report(options.run, options.overrides))


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return cli.run(report, cli.parse(parser(), arguments), "interrupted; run the same command to resume")


if __name__ == "__main__":
    sys.exit(main())
