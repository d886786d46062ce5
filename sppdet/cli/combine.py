"""``python -m sppdet.combine RUN OTHER --output FOLDER``: several trained detectors as one."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sppdet.cli import common as cli


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="sppdet combine",
        description="Make one detector of several that were trained for the same classes: each looks at every window, "
        "and margins and boxes are their means. It is a run's folder like any other, for sppdet.detect --model and "
        "sppdet.evaluate, and holds copies of the models.",
    )
    made.add_argument("runs", nargs="+", metavar="RUN", help="folders of runs; the first one's settings hold for all")
    made.add_argument("--output", required=True, metavar="FOLDER", help="the new run's folder")
    made.add_argument("--weights", type=float, nargs="+", metavar="W", help="what each run counts; default: all alike")
    return made


def combine(options: argparse.Namespace) -> None:
    from sppdet.detection import ensemble as combination  # imported late: --help does not wait for torch

    folders, output = [Path(run) for run in options.runs], Path(options.output)
    combination.combine(folders, options.weights or [1.0] * len(folders), output)
    print(f"{output}: {len(folders)} models; python -m sppdet.evaluate {output} measures it")


def main(arguments: list[str] | None = None) -> int:
    return cli.run(combine, parser().parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
