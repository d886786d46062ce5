"""Train presets on a folder of labelled images, from an empty cache, and print accuracy and time.

    python scripts/study_front_door.py BCCD --work runs/front_door
    python scripts/study_front_door.py boards data.test_share=0.334 --work runs/front_door --first 0 20

Prints a row of a Markdown table per training. Processor time is that of all processes of the command, reading, choosing
settings, evaluation and report included; unlike the time by the clock it hardly depends on what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from sppdet.cli import common as cli
from sppdet.config import PRESETS
from sppdet.utils import SppdetError


def command(folder: Path, preset: str, first: int, run: Path, cache: str, overrides: list[str]) -> list[str]:
    """Return the command line of a training; ``first`` limits the training images, 0 takes all."""
    limit = [f"data.limit_train={first}"] if first else []
    settings = [f"run.cache={cache}", *limit, *overrides]
    return [sys.executable, "-m", "sppdet.train", str(folder), "--preset", preset, "--output", str(run), *settings]


def row(name: str, preset: str, first: int, metrics: dict, seconds: tuple[float, float]) -> str:
    """Return the row of a training in a Markdown table; ``seconds`` are the processor's and those by the clock."""
    images = f"first {first}" if first else "all"
    figures = (metrics["mAP"], metrics["coco"]["AP75"], seconds[0] / 60, seconds[1] / 60)
    return f"| {name} | `{preset}` | {images} | " + " | ".join(f"{figure:.1f}" for figure in figures) + " |"


def processor_seconds() -> float:
    """Return the processor time of the child processes that have ended, and of their children."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def study(options: argparse.Namespace) -> None:
    """Run the study and print its result."""
    print("| images | preset | training images | mAP | AP75 | processor minutes | minutes by the clock |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for first in options.first:
        for preset in options.presets:
            run = options.work / f"{options.folder.name}-{preset}-{first or 'all'}"
            with tempfile.TemporaryDirectory(dir=options.work.parent) as cache:
                before, began = processor_seconds(), time.perf_counter()
                work = command(options.folder, preset, first, run, cache, options.overrides)
                if subprocess.run(work, check=False, stdout=sys.stderr).returncode:
                    raise SppdetError(f"{options.folder}: the training above has failed")
                seconds = (processor_seconds() - before, time.perf_counter() - began)
            metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
            print(row(options.folder.name, preset, first, metrics, seconds), flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Run the script and return its exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, metavar="IMAGES", help="a folder of labelled images")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of all trainings")
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=["quick", "default"])
    parser.add_argument("--first", nargs="+", type=int, default=[0], help="numbers of training images; 0 takes all")
    parser.add_argument("--work", type=Path, default=Path("runs"), help="folder of the runs")
    return cli.run(study, parser.parse_intermixed_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
