"""``python -m sppdet.evaluate RUN [key=value ...]``: evaluate a run, diagnose it, compare it."""

from __future__ import annotations

import argparse
import sys

from sppdet.cli import common as cli

# Files that may have moved since the last evaluation, and what computes, which its figures do not depend on.
_OF_NO_FIGURE = ("data.", "run.cache=", "run.engine=", "run.cluster=", "device=", "workers=")
_CHANGEABLE = (*_OF_NO_FIGURE, "detection.")  # all other settings are the trained model's
_INTERRUPTED = "interrupted; the same command goes on from here"


def parser() -> argparse.ArgumentParser:
    """Make the parser of the command's arguments."""
    arguments = argparse.ArgumentParser(
        prog="sppdet evaluate",
        description="Evaluate a trained run on its test split or on another one: write RUN/metrics.json, "
        "RUN/detections/ and RUN/report.html, and print the table.",
    )
    arguments.add_argument("run", metavar="RUN", help="the folder of a run, such as runs/demo")
    action = arguments.add_mutually_exclusive_group()
    action.add_argument("--force", action="store_true", help="evaluate again although nothing has changed")
    action.add_argument(
        "--diagnose",
        action="store_true",
        help="say where the errors of the last evaluation come from; writes RUN/diagnosis.md, .json and .png",
    )
    action.add_argument(
        "--against",
        metavar="OTHER",
        help="compare the last evaluation with that of the run in folder OTHER: the gain, and whether it may be chance",
    )
    action.add_argument(
        "--export",
        metavar="FOLDER",
        help="write the test images, their objects and the detections of the last evaluation into a new folder, as "
        "COCO data that FiftyOne opens",
    )
    changeable = "data, detection, run.cache, run.engine, run.cluster, device and workers"
    cli.add_overrides(arguments, f"detection.nms=0.4; of {changeable}")
    return arguments


def check_overrides(overrides: list[str], of_last_evaluation: bool) -> None:
    """Refuse to change settings that belong to the trained model or, if asked, to the last evaluation.

    Unknown keys pass: they are an error of the reader of settings, which names the nearest key.
    """
    from sppdet import config  # imported late: --help does not wait for torch
    from sppdet.utils import SppdetError

    known = set(config.keys())
    for text in overrides:
        key, equals, _ = text.partition("=")
        if not equals or key not in known or text.startswith(_OF_NO_FIGURE if of_last_evaluation else _CHANGEABLE):
            continue
        if text.startswith(_CHANGEABLE):
            raise SppdetError(f"{text}: the last evaluation has its own {key}; evaluate again with it first")
        raise SppdetError(f"{text}: the trained model has its own {key}; train again to change it")


def evaluate(options: argparse.Namespace) -> None:
    """Run the command with parsed arguments."""
    check_overrides(options.overrides, of_last_evaluation=options.diagnose or bool(options.against or options.export))
    from sppdet import evaluation

    if options.diagnose:
        print(evaluation.diagnose_run(options.run, options.overrides))
    elif options.export:
        print(evaluation.export_run(options.run, options.export, options.overrides))
    elif options.against:
        print(evaluation.compare_runs(options.run, options.against, options.overrides))
    else:
        print(evaluation.summary(evaluation.evaluate_run(options.run, options.force, options.overrides)))


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return cli.run(evaluate, cli.parse(parser(), arguments), _INTERRUPTED)


if __name__ == "__main__":
    sys.exit(main())
