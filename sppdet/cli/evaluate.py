"""``python -m sppdet.evaluate RUN [key=value ...]``: detection on a test split, what it is worth and where it errs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sppdet.cli import common as cli

_MOVED = ("data.", "run.cache=")  # what may be elsewhere since the last measurement, which has the rest
_CHANGEABLE = (*_MOVED, "detection.", "device=", "workers=")  # the rest is the trained model's
_INTERRUPTED = "interrupted; the same command goes on from here"


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="sppdet evaluate",
        description="Measure a trained run on a test split, its own or another: writes RUN/metrics.json, "
        "RUN/detections/ and prints the table.",
    )
    made.add_argument("run", metavar="RUN", help="a run's folder, such as runs/demo")
    how = made.add_mutually_exclusive_group()
    how.add_argument("--force", action="store_true", help="measure again although nothing has changed")
    how.add_argument(
        "--diagnose",
        action="store_true",
        help="say where the errors of the last measurement come from: RUN/diagnosis.md, .json and .png",
    )
    how.add_argument(
        "--against",
        metavar="OTHER",
        help="say how much better or worse than OTHER's last measurement this run's is, and whether that may be chance",
    )
    cli.add_overrides(made, "detection.nms=0.4; of data, detection, run.cache, device and workers")
    return made


def _check(overrides: list[str], last: bool) -> None:
    """Refuse settings that the model has, or, where it is about the ``last`` measurement, that this was made with."""
    from sppdet import config  # imported late: --help does not wait for torch
    from sppdet.utils import SppdetError

    known = set(config.keys())
    for text in overrides:
        key, equals, _ = text.partition("=")
        if not equals or key not in known or text.startswith(_MOVED if last else _CHANGEABLE):
            continue
        if text.startswith(_CHANGEABLE):
            raise SppdetError(f"{text}: the last measurement has its own {key}; measure again, with it, first")
        raise SppdetError(f"{text}: the trained model has its own {key}; train again to change it")


def evaluate(options: argparse.Namespace) -> None:
    _check(options.overrides, options.diagnose or options.against)
    if options.diagnose:
        from sppdet.evaluation import diagnose_run

        print(diagnose_run(options.run, options.overrides))
        return
    if options.against:
        from sppdet.evaluation import compare_runs

        print(compare_runs(options.run, options.against, options.overrides))
        return
    from sppdet import config
    from sppdet.evaluation import evaluate_run, summary
    from sppdet.utils import SppdetError

    folder = Path(options.run)
    if not (folder / "config.json").exists():
        raise SppdetError(f"{folder}: no run here; python -m sppdet.train CONFIG run.dir={folder} makes one")
    settings = config.load(folder / "config.json", options.overrides)
    settings = config.in_folder(settings, folder)  # as key=value the path would be read as YAML
    print(summary(evaluate_run(settings, force=options.force)))


def main(arguments: list[str] | None = None) -> int:
    return cli.run(evaluate, parser().parse_intermixed_args(arguments), _INTERRUPTED)


if __name__ == "__main__":
    sys.exit(main())
