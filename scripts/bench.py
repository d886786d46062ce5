"""Measure how fast each stage is, beside what it replaces and beside what the machine can do.

``python scripts/bench.py NAME`` runs one benchmark alone and prints a table and a line of JSON;
``python scripts/bench.py all --write docs/performance.md`` runs every one, each in a process of its own.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("pooling", "cache", "mining", "svm", "detect", "proposals", "systems")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("name", choices=(*NAMES, "all"))
    made.add_argument("--voc-root", default="data/VOCdevkit", help="default: %(default)s; `shapes` where it is absent")
    made.add_argument("--weights", default="", help="SqueezeNet 1.0's ImageNet weights; default: random ones")
    made.add_argument("--work", default="cache/bench", help="folder of the benchmarks' own cache; default: %(default)s")
    made.add_argument("--images", type=int, default=64, help="test images for proposals; default: %(default)s")
    made.add_argument("--cache", help="a filled cache of VOC at 688, not written to: for the memory of mining")
    made.add_argument("--model", help="a trained run: for the mAP of stored maps")
    made.add_argument("--write", help="with `all`: the Markdown file to write")
    return made


def one(options: argparse.Namespace) -> None:
    """Run one benchmark in this process; its table, then its JSON."""
    sys.path.insert(0, str(ROOT))
    from benchmarks.common import Bench, table

    bench = Bench(options.voc_root, options.weights, options.work, options.cache, options.model, options.images)
    rows = importlib.import_module(f"benchmarks.{options.name}").run(bench)
    print(table(rows))
    rows = [asdict(row) | {"value": float(f"{row.value:.4g}")} for row in rows]
    limits = f"{bench.limits()}; one core {bench.limits(1)}"
    print(json.dumps({"name": options.name, "data": bench.data(), "limits": limits, "rows": rows}, default=bool))


def every(options: argparse.Namespace) -> str:
    """Run all, each in a process of its own; the Markdown of what they found."""
    from sppdet.utils.environment import machine

    given = sys.argv[2:]
    parts = [HEAD.format(command=command(options), machine=machine())]
    for name in NAMES:
        print(f"{name} ...", file=sys.stderr)
        done = subprocess.run([sys.executable, __file__, name, *given], stdout=subprocess.PIPE, text=True, check=True)
        *table, last = done.stdout.strip().splitlines()
        found = json.loads(last)
        first = (importlib.import_module(f"benchmarks.{name}").__doc__ or "").strip()
        parts += [
            f"## {name}",
            first,
            f"{found['data']}. In the same run, all cores: {found['limits']}.",
            "\n".join(table),
        ]
    return "\n\n".join(parts) + "\n"


HEAD = """\
# Performance

Written by `{command}`; every figure is from that run. Times are the shortest of several, what is compared was run in
turns. "Above its floor" is the time measured, divided by that of the least work that could do the job.

{machine}"""


def command(options: argparse.Namespace) -> str:
    """How to repeat it, without the folders of this machine."""
    flags = [f"--images {options.images}"]
    flags += [f"--{name} {name.upper()}" for name in ("cache", "model") if getattr(options, name)]
    return " ".join(["python scripts/bench.py all --voc-root VOCDEVKIT --weights FILE", *flags])


def main() -> int:
    options = parser().parse_args()
    if options.name != "all":
        one(options)
        return 0
    sys.path.insert(0, str(ROOT))
    text = every(options)
    if options.write:
        from sppdet.utils.files import write_document

        write_document(options.write, text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
