"""Try what may go wrong on purpose: ``python scripts/reliability.py --write docs/reliability.md``.

Commands are killed, interrupted and run out of disk, files are damaged, and inputs are changed at random. The parts are
in scripts/campaign. Everything is seeded, but moments are those of the machine's clock.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import sys
import time
from dataclasses import asdict
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("kills", "signals", "disk", "two", "readonly", "damage", "mutants", "bombs", "memory", "waiting")
HEAD = """\
# Reliability

Written by `{command}` on {date}; every figure is from that run{load}. It tries what may go wrong on purpose. Runs are
trained on small drawn images; "as undisturbed" means the same metrics, detections and model bytes, nothing finished
done again, and nothing left over.

{machine}

| what was tried | how often | failures |
|---|---|---|
"""

if TYPE_CHECKING:
    from campaign.workplace import Outcome


def parser() -> argparse.ArgumentParser:
    """Make the parser of the script's arguments."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="default: all")
    arguments.add_argument("--systems", nargs="+", help="default: all; 'spp-net', 'r-cnn', 'classify', ...")
    arguments.add_argument("--kills", type=int, default=200, help="SIGKILLs; default: %(default)s")
    arguments.add_argument("--signals", type=int, default=30, help="each of SIGINT and SIGTERM; default: %(default)s")
    arguments.add_argument("--disks", type=int, default=9, help="sizes of full disks per system; default: %(default)s")
    arguments.add_argument("--pairs", type=int, default=2, help="trainings at once, per system; default: %(default)s")
    arguments.add_argument("--every", type=int, default=1, help="damage one file in so many; default: %(default)s")
    arguments.add_argument("--mutants", type=int, default=10_000, help="default: %(default)s")
    arguments.add_argument("--images", type=int, default=1500, help="through one detector; default: %(default)s")
    arguments.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    arguments.add_argument("--json", help="the JSON file to write")
    arguments.add_argument("--write", help="the Markdown file to write")
    return arguments


def campaign(options: argparse.Namespace, folder: Path) -> list[Outcome]:
    """Run the parts of the campaign in an empty folder."""
    from campaign import damage, hostile, interruptions, waiting
    from campaign.workplace import SYSTEMS, Outcome, Workplace

    workplace, rng = Workplace(folder), random.Random(options.seed)
    systems, outcomes = options.systems or list(SYSTEMS), []
    for name in options.parts:
        start = time.monotonic()
        if name in ("disk", "readonly") and not interruptions.can_mount(folder):
            done = [Outcome(name, "not tried: this user may not mount file systems")]
        elif name == "kills":
            done = [interruptions.kills(workplace, options.kills, rng, systems)]
        elif name == "signals":
            done = interruptions.interruptions(workplace, options.signals, rng, systems)
        elif name == "disk":
            done = [interruptions.full_disk(workplace, options.disks, systems)]
        elif name == "two":
            done = [interruptions.two_at_once(workplace, options.pairs, systems)]
        elif name == "readonly":
            done = [interruptions.read_only(workplace, systems)]
        elif name == "damage":
            done = [damage.damage(workplace, systems, options.every)]
        elif name == "mutants":
            done = [hostile.mutants(workplace, options.mutants, options.seed)]
        elif name == "bombs":
            done = [hostile.bombs(workplace)]
        elif name == "memory":
            done = [hostile.flat_memory(workplace, options.images)]
        else:
            done = [waiting.waiting(steps=200)]
        for outcome in done:
            print(f"{outcome.what}: {outcome.tried}; {len(outcome.failures)} failures", *outcome.failures, sep="\n  ")
        print(f"({name}: {time.monotonic() - start:.0f} s)", flush=True)
        outcomes += done
    return outcomes


def page(outcomes: list[Outcome], command: str, load: float) -> str:
    """Return the document."""
    from sppdet.utils.environment import machine

    busy = f", at a load of {load:.0f} on {os.cpu_count()} cores when it ended"
    text = HEAD.format(command=command, date=date.today().isoformat(), machine=machine(), load=busy)
    text += "".join(f"| {o.what} | {o.tried} | {len(o.failures)} |\n" for o in outcomes)
    failures = [f"{o.what}: {failure}" for o in outcomes for failure in o.failures]
    if failures:
        text += "\n## Failures\n\n" + "".join(f"- {' '.join(failure.split())[:400]}\n" for failure in failures[:50])
    return text


def main(arguments: list[str] | None = None) -> int:
    """Run the script and return its exit status."""
    options = parser().parse_args(arguments)
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # so that it may fork
    sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]
    with TemporaryDirectory(prefix="reliability") as folder:
        (Path(folder) / "work").mkdir()
        outcomes = campaign(options, Path(folder) / "work")
    load = os.getloadavg()[0]
    if options.json:
        content = {"date": date.today().isoformat(), "load": load, "parts": [asdict(outcome) for outcome in outcomes]}
        Path(options.json).write_text(json.dumps(content, indent=2) + "\n")
    if options.write:
        from sppdet.utils.files import write_document

        given = sys.argv[1:] if arguments is None else arguments
        write_document(options.write, page(outcomes, shlex.join(["python", "scripts/reliability.py", *given]), load))
    return int(any(outcome.failures for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
