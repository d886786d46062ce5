"""Try what may go wrong on purpose: ``python scripts/reliability.py --write docs/reliability.md``.

Commands are killed, interrupted and run out of disk, files are damaged, and inputs are changed at random. The parts are
in scripts/campaign. Everything is seeded, but moments are those of the machine's clock.

With ``--json`` the outcome of each step is kept in that file. The same command goes on where it was interrupted: it
repeats no step that had no failure. Commands with other ``--parts`` may run at the same time with the same file.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import math
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
# For each part: what it is, and about how many minutes it takes at the default sizes.
PARTS = {
    "kills": ("SIGKILL at random moments, then finished", 25),
    "sigint": ("SIGINT at random moments: one line; then finished", 5),
    "sigterm": ("SIGTERM at random moments: one line; then finished", 5),
    "disk": ("Disk full (a tmpfs of a limited size), then room: goes on", 10),
    "two": ("Two commands at once, one folder and one cache", 5),
    "readonly": ("A read-only place (tmpfs, remounted): one line, no temporary's name", 3),
    "damage": ("Each file of cache and run damaged, in three ways: never used in silence", 20),
    "mutants": ("Mutants: read, or refused in one line", 15),
    "bombs": ("Bombs and headers that claim 2^60 bytes: refused in 20 s and 500 MB", 1),
    "memory": ("Images through one loaded detector: memory stays flat", 3),
    "waiting": ("A training step beside one busy process (measured, no target)", 2),
}
_SIGNALS = {"kills": "SIGKILL", "sigint": "SIGINT", "sigterm": "SIGTERM"}
_TRAINING_STEPS = 200  # whose time is measured
HEAD = """\
# Reliability

Written by `{command}`; every figure is from its runs, {dates}{load}. It tries what may go wrong on purpose. Runs are
trained on small images, drawn ones{photographs}. "Finished" and "goes on" mean: in the end the same metrics, detections
and bytes of the model as undisturbed, nothing finished done again, and nothing left over.

{machine}
{missing}
| what was tried | how often | failures |
|---|---|---|
"""

DETAIL = """\
## In detail

`folds` is a training with `--folds`, `photographs` one on some photographs of VOC, made smaller; `add`, `label`,
`convert` and `combine` are the commands. All other names are trained systems, or families of input files.
"""

if TYPE_CHECKING:
    from campaign.workplace import Outcome, Workplace


class Step(NamedTuple):
    """A part of the campaign with one work, system or kind of input.

    Attributes:
        part: its name.
        of: the work, system or kind of input; empty where the part has only one.
        size: how much is tried.
    """

    part: str
    of: str
    size: int

    @property
    def name(self) -> str:
        """The name in messages and in the JSON file."""
        return f"{self.part}: {self.of}" if self.of else self.part


def parser() -> argparse.ArgumentParser:
    """Make the parser of the script's arguments."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--parts", nargs="+", choices=PARTS, default=[*PARTS], help="default: all")
    arguments.add_argument("--works", nargs="+", help="default: all; 'spp-net', 'r-cnn', 'classify', 'add', ...")
    arguments.add_argument("--voc-root", help="VOC's folder, of which some photographs are taken; default: none")
    arguments.add_argument("--kills", type=int, default=200, help="SIGKILLs; default: %(default)s")
    arguments.add_argument("--signals", type=int, default=30, help="each of SIGINT and SIGTERM; default: %(default)s")
    arguments.add_argument("--disks", type=int, default=9, help="sizes of full disks per work; default: %(default)s")
    arguments.add_argument("--pairs", type=int, default=2, help="two at once, per work; default: %(default)s")
    arguments.add_argument("--every", type=int, default=1, help="damage one file in so many; default: %(default)s")
    arguments.add_argument("--mutants", type=int, default=10_000, help="default: %(default)s")
    arguments.add_argument("--images", type=int, default=1500, help="through one detector; default: %(default)s")
    arguments.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    arguments.add_argument("--minutes", type=float, default=math.inf, help="begin no step later; default: no limit")
    arguments.add_argument("--json", help="the JSON file to write; steps that it has are not repeated")
    arguments.add_argument("--write", help="the Markdown file to write")
    return arguments


def steps(options: argparse.Namespace) -> list[Step]:
    """Return the steps of the campaign that the options ask for."""
    import fuzzing
    from campaign.workplace import SYSTEMS, WORKS

    works = options.works or [*SYSTEMS, *(work for work in WORKS if work != "photographs" or options.voc_root)]
    every = {
        "kills": _divided("kills", works, options.kills),
        "sigint": _divided("sigint", works, options.signals),
        "sigterm": _divided("sigterm", works, options.signals),
        "disk": [Step("disk", work, options.disks) for work in works],
        "two": [Step("two", work, options.pairs) for work in works],
        "readonly": [Step("readonly", work, 1) for work in works],
        "damage": [Step("damage", work, options.every) for work in works if work in SYSTEMS],
        "mutants": _divided("mutants", [*fuzzing.FAMILIES], options.mutants),
        "bombs": [Step("bombs", "", 1)],
        "memory": [Step("memory", "", options.images)],
        "waiting": [Step("waiting", "", _TRAINING_STEPS)],
    }
    return [step for part in options.parts for step in every[part]]


def _divided(part: str, names: list[str], count: int) -> list[Step]:
    """Divide a number among works or kinds of input."""
    sizes = [count // len(names) + (number < count % len(names)) for number in range(len(names))]
    return [Step(part, name, size) for name, size in zip(names, sizes) if size]


def run(step: Step, workplace: Workplace, seed: int) -> Outcome:
    """Do a step in a workplace."""
    from campaign import damage, hostile, interruptions, waiting

    if step.part in _SIGNALS:
        return interruptions.strikes(workplace, step.of, step.size, _SIGNALS[step.part], seed)
    if step.part == "mutants":
        return hostile.mutants(workplace, step.of, step.size, seed)
    functions: dict[str, Callable[..., Outcome]] = {
        "disk": interruptions.full_disk, "two": interruptions.two_at_once, "readonly": interruptions.read_only,
        "damage": damage.damage, "bombs": hostile.bombs, "memory": hostile.flat_memory, "waiting": waiting.waiting,
    }  # fmt: skip
    return functions[step.part](workplace, step.of, step.size)


def campaign(options: argparse.Namespace, waiting: list[Step], done: dict[str, dict]) -> None:
    """Do the steps in a new folder; note the outcome of each in ``done`` and in the JSON file."""
    from campaign.interruptions import can_mount
    from campaign.workplace import Outcome, Workplace

    expected = {part: sum(step.part == part for step in waiting) for part in PARTS}
    minutes = [PARTS[step.part][1] / expected[step.part] for step in waiting]
    with TemporaryDirectory(prefix="reliability") as folder:
        (Path(folder) / "work").mkdir()
        workplace, began = Workplace(Path(folder) / "work", options.voc_root), time.monotonic()
        mounts = can_mount(Path(folder) / "work")
        for number, step in enumerate(waiting):
            start = time.monotonic()
            if start - began > 60 * options.minutes:
                return
            pace = (start - began) / 60 / sum(minutes[:number]) if number else 1.0
            left = f"about {pace * sum(minutes[number:]):.0f} minutes left"
            print(f"[{number + 1}/{len(waiting)}] {step.name} ({left})", flush=True)
            if step.part in ("disk", "readonly") and not mounts:
                outcome = Outcome(0, "not tried: this user may not mount file systems")
            else:
                outcome = run(step, workplace, options.seed)
            seconds = round(time.monotonic() - start)
            print(f"  {outcome.tried} {outcome.details}; {len(outcome.failures)} failures, {seconds} s", flush=True)
            print(*outcome.failures, sep="\n  ", end="\n" * bool(outcome.failures), flush=True)
            done[step.name] = {
                "size": step.size, "seed": options.seed, "date": date.today().isoformat(), "seconds": seconds,
                "load": round(os.getloadavg()[0], 1), **asdict(outcome),
            }  # fmt: skip
            if options.json:
                _note(Path(options.json), step.name, done[step.name])


def _note(path: Path, name: str, entry: dict) -> None:
    """Add an entry to the JSON file, to which another command may write."""
    with _alone(path):
        path.with_suffix(".new").write_text(json.dumps(_read(path) | {name: entry}, indent=2) + "\n")
        os.replace(path.with_suffix(".new"), path)


def _read(path: Path) -> dict[str, dict]:
    return json.loads(path.read_text()) if path.exists() else {}


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Wait until no other command is in this block with a file of the same folder."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def is_tried(step: Step, seed: int, done: dict[str, dict]) -> bool:
    """Whether the outcome of a step of this size and seed is known."""
    entry = done.get(step.name, {})
    return (entry.get("size"), entry.get("seed")) == (step.size, seed)


def page(all_steps: list[Step], seed: int, done: dict[str, dict], command: str, voc: bool) -> str:
    """Return the document: a table of all parts, and one of their steps."""
    from sppdet.utils.environment import machine

    entries = [(step, done[step.name]) for step in all_steps if is_tried(step, seed, done)]
    missing: dict[str, list[str]] = {}
    for step in all_steps:
        if not is_tried(step, seed, done):
            missing.setdefault(step.part, []).append(step.of)
    not_yet = "; ".join(f"{part} ({', '.join(names)})" if any(names) else part for part, names in missing.items())
    dates = sorted({entry["date"] for _, entry in entries})
    loads = [entry["load"] for _, entry in entries]
    text = HEAD.format(
        command=command,
        dates=" to ".join(dict.fromkeys([dates[0], dates[-1]])),
        load=f", at a load of {min(loads):.0f} to {max(loads):.0f} on {os.cpu_count()} cores",
        photographs=" and photographs of VOC" if voc else "",
        machine=machine(),
        missing=f"\nNot run yet: {not_yet}.\n" if missing else "",
    )
    parts = {step.part: [entry for other, entry in entries if other.part == step.part] for step, _ in entries}
    for part, of_part in parts.items():
        what, tried, failures = PARTS[part][0], sum(entry["tried"] for entry in of_part), _failures(of_part)
        text += f"| {what} | {tried} | {failures} |\n"
    text += f"\n{DETAIL}\n| part | of | how often | failures |\n|---|---|---|---|\n"
    for step, entry in entries:
        often = f"{entry['tried']} {entry['details']}".strip()
        text += f"| {step.part} | {step.of} | {often} | {len(entry['failures'])} |\n"
    lines = [f"{step.name}: {failure}" for step, entry in entries for failure in entry["failures"]]
    if lines:
        text += "\n## Failures\n\n" + "".join(f"- {' '.join(line.split())[:400]}\n" for line in lines[:50])
    return text


def _failures(entries: list[dict]) -> int:
    return sum(len(entry["failures"]) for entry in entries)


def main(arguments: list[str] | None = None) -> int:
    """Run the script and return its exit status."""
    options = parser().parse_args(arguments)
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # so that it may fork
    sys.path[:0] = [str(ROOT), str(ROOT / "scripts"), str(ROOT / "tests")]
    done = _read(Path(options.json)) if options.json else {}
    every = steps(options)

    waiting = [step for step in every if not is_tried(step, options.seed, done) or done[step.name]["failures"]]
    if waiting and options.minutes > 0:
        campaign(options, waiting, done)
    if options.write and done:  # else there is nothing to tell yet
        from sppdet.utils.files import write_document

        given = sys.argv[1:] if arguments is None else arguments
        given = ["VOCDEVKIT" if text == options.voc_root else text for text in given]
        command = shlex.join(["python", "scripts/reliability.py", *given])
        write_document(options.write, page(every, options.seed, done, command, bool(options.voc_root)))
    return int(any(done[step.name]["failures"] for step in every if step.name in done))


if __name__ == "__main__":
    sys.exit(main())
