"""Measure the speed of each stage beside what it replaces and beside what the machine can do.

``python scripts/bench.py NAME`` runs one benchmark and prints a table and a line of JSON;
``python scripts/bench.py all --write docs/experiments/performance.md`` runs all, each in a process of its own.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from sppdet.cli.common import run
from sppdet.utils.errors import SppdetError

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("pooling", "cache", "mining", "svm", "adding", "detect", "photo", "engine", "proposals", "systems")
VOC = "data/VOCdevkit"
HEAD = """\
# Performance

Written by `{command}`; every figure is from that run. Times are the shortest of several; what is compared was run in
turns. "Above its floor" is the measured time divided by that of the least work that could do the job.

{machine}"""


def parser() -> argparse.ArgumentParser:
    """Make the parser of the script's arguments."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("name", choices=(*NAMES, "all"))
    arguments.add_argument(
        "--voc-root", default=VOC, help="default: %(default)s, or where it does not exist the drawn `shapes`"
    )
    arguments.add_argument("--weights", default="", help="SqueezeNet 1.0's ImageNet weights; default: random ones")
    arguments.add_argument(
        "--work", default="cache/bench", help="folder of the benchmarks' own cache; default: %(default)s"
    )
    arguments.add_argument("--images", type=int, default=64, help="test images for proposals; default: %(default)s")
    arguments.add_argument(
        "--cache", help="a filled cache of VOC at 688 pixels, which is only read: for the memory of mining"
    )
    arguments.add_argument("--model", help="a trained run: for the mAP of stored maps")
    arguments.add_argument("--write", help="with `all`: the Markdown file to write")
    return arguments


def run_one(options: argparse.Namespace) -> None:
    """Run one benchmark in this process and print its table, then its JSON."""
    from benchmarks.common import Bench, table

    bench = Bench(options.voc_root, options.weights, options.work, options.cache, options.model, options.images)
    rows = importlib.import_module(f"benchmarks.{options.name}").run(bench)
    print(table(rows))
    rounded = [asdict(row) | {"value": float(f"{row.value:.4g}")} for row in rows]
    limits = f"{bench.limits()}; one core {bench.limits(1)}"
    print(json.dumps({"name": options.name, "data": bench.data(), "limits": limits, "rows": rounded}, default=bool))


def run_all(options: argparse.Namespace) -> str:
    """Run every benchmark in a process of its own and return the document with their results."""
    from sppdet.utils.environment import machine

    sections = [HEAD.format(command=command(options), machine=machine())]
    for name in NAMES:
        print(f"{name} ...", file=sys.stderr)
        arguments = [sys.executable, __file__, name, *sys.argv[2:]]
        child = subprocess.run(arguments, stdout=subprocess.PIPE, text=True, check=False)
        if child.returncode:
            raise SppdetError(f"{name}: the benchmark has failed, see above")
        *table, last = child.stdout.strip().splitlines()
        result = json.loads(last)
        sections += [
            f"## {name}",
            (importlib.import_module(f"benchmarks.{name}").__doc__ or "").strip(),
            f"{result['data']}. In the same run, all cores: {result['limits']}.",
            "\n".join(table),
        ]
    return "\n\n".join(sections) + "\n"


def command(options: argparse.Namespace) -> str:
    """Return the command that repeats the run, without the folders of this machine."""
    flags = [f"--images {options.images}"]
    flags += [f"--{name} {name.upper()}" for name in ("cache", "model") if getattr(options, name)]
    return " ".join(["python scripts/bench.py all --voc-root VOCDEVKIT --weights FILE", *flags])


def bench(options: argparse.Namespace) -> None:
    """Run the benchmarks that were asked for, and print and write their tables."""
    for flag, path in (("--voc-root", options.voc_root), ("--weights", options.weights)):
        if path not in ("", VOC) and not Path(path).exists():
            raise SppdetError(f"{flag}: {path}: does not exist; leave it out, or give a path that does")
    sys.path.insert(0, str(ROOT))  # the folder of the package `benchmarks`
    if options.name != "all":
        run_one(options)
        return
    text = run_all(options)
    if options.write:
        from sppdet.utils.files import write_document

        write_document(options.write, text)
    print(text)


def main(arguments: list[str] | None = None) -> int:
    """Run the script and return its exit status."""
    return run(bench, parser().parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
