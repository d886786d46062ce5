"""Measure the speed of each stage beside what it replaces and beside what the machine can do.

``python scripts/bench.py NAME`` runs one benchmark and prints a table and a line of JSON;
``python scripts/bench.py all --write docs/experiments/performance.md`` runs all, each in a process of its own. With
names in place of ``all`` the others keep their part of the document.
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
from sppdet.utils.files import BY_HAND, write_document

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("pooling", "cache", "mining", "svm", "adding", "detect", "photo", "engine", "proposals", "systems")
VOC = "data/VOCdevkit"
HEAD = """\
# Performance

Written by `python scripts/bench.py all --write FILE`, or part by part with names in place of `all`: every figure is
from the command and the machine that stand above its table. Times are the shortest of several; what is compared was
run in turns. "Above its floor" is the measured time divided by that of the least work that could do the job."""


def parser() -> argparse.ArgumentParser:
    """Make the parser of the script's arguments."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument(
        "names", nargs="+", choices=(*NAMES, "all"), metavar="name", help=f"all, or of {', '.join(NAMES)}"
    )
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
    arguments.add_argument("--write", help="the Markdown file to write; of names that are not run it keeps the part")
    return arguments


def run_here(name: str, options: argparse.Namespace) -> None:
    """Run one benchmark in this process and print its table, then its JSON."""
    from benchmarks.common import Bench, table

    bench = Bench(options.voc_root, options.weights, options.work, options.cache, options.model, options.images)
    rows = importlib.import_module(f"benchmarks.{name}").run(bench)
    print(table(rows))
    rounded = [asdict(row) | {"value": float(f"{row.value:.4g}")} for row in rows]
    limits = f"{bench.limits()}; one core {bench.limits(1)}"
    print(json.dumps({"name": name, "data": bench.data(), "limits": limits, "rows": rounded}, default=bool))


def run_apart(name: str, options: argparse.Namespace) -> str:
    """Run one benchmark in a process of its own and return its part of the document, without the heading."""
    from benchmarks.common import Row, table
    from sppdet.utils.environment import machine

    print(f"{name} ...", file=sys.stderr)
    child = subprocess.run([sys.executable, __file__, name, *flags(options)], stdout=subprocess.PIPE, text=True)
    if child.returncode:
        raise SppdetError(f"{name}: the benchmark has failed, see above")
    result = json.loads(child.stdout.strip().splitlines()[-1])  # what comes before may be more than the table
    return "\n\n".join(
        [
            (importlib.import_module(f"benchmarks.{name}").__doc__ or "").strip(),
            f"`{command(name, options)}`. {machine()}",
            f"{result['data']}. In the same run, all cores: {result['limits']}.",
            table([Row(**row) for row in result["rows"]]),
        ]
    )


def flags(options: argparse.Namespace) -> list[str]:
    """Return the arguments of a benchmark's own process."""
    values = {name: getattr(options, name) for name in ("voc_root", "weights", "work", "images", "cache", "model")}
    return [f"--{name.replace('_', '-')}={value}" for name, value in values.items() if value is not None]


def command(name: str, options: argparse.Namespace) -> str:
    """Return the command that repeats a benchmark, without the folders of this machine."""
    more = [f"--images {options.images}"] * (name == "proposals")
    more += [f"--{flag} {flag.upper()}" for flag in ("cache", "model") if getattr(options, flag)]
    return " ".join([f"python scripts/bench.py {name} --voc-root VOCDEVKIT --weights FILE", *more])


def read_parts(path: str) -> dict[str, str]:
    """Return the part of each benchmark in a document that `document` has made; none if there is no file yet."""
    written = Path(path).read_text(encoding="utf-8").partition(BY_HAND)[0] if Path(path).exists() else ""
    return {name: part.strip() for name, _, part in (text.partition("\n") for text in written.split("\n## ")[1:])}


def document(parts: dict[str, str]) -> str:
    """Return the document with the part of each benchmark, in the order of `NAMES`."""
    return "\n\n".join([HEAD, *(f"## {name}\n\n{parts[name]}" for name in NAMES if name in parts)]) + "\n"


def bench(options: argparse.Namespace) -> None:
    """Run the benchmarks that were asked for, and print and write their tables."""
    for flag, path in (("--voc-root", options.voc_root), ("--weights", options.weights)):
        if path not in ("", VOC) and not Path(path).exists():
            raise SppdetError(f"{flag}: {path}: does not exist; leave it out, or give a path that does")
    sys.path.insert(0, str(ROOT))  # the folder of the package `benchmarks`
    if len(options.names) == 1 and options.names != ["all"] and not options.write:
        run_here(options.names[0], options)
        return
    parts = read_parts(options.write) if options.write else {}
    for name in NAMES if "all" in options.names else options.names:
        parts[name] = run_apart(name, options)
        if options.write:  # after each: what has been measured is kept if a later one fails
            write_document(options.write, document(parts))
    print(document(parts))


def main(arguments: list[str] | None = None) -> int:
    """Run the script and return its exit status."""
    return run(bench, parser().parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
