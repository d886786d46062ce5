"""Commands that are killed, interrupted, run out of disk, run twice at once, or find a place that is read-only."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from campaign.workplace import Outcome, Progress, Workplace, finished, of_stages, stage_of, written_again

_MOST_STRIKES = 3  # of one run, before it may finish


def strikes(workplace: Workplace, work: str, count: int, name: str, seed: int) -> Outcome:
    """Strike a work at random moments by a signal, up to three times, then let it finish; until it was struck so often.

    Args:
        workplace: where.
        work: what is struck.
        count: how often.
        name: of the signal.
        seed: of the moments.
    """
    number, status = {
        "SIGKILL": (signal.SIGKILL, -signal.SIGKILL), "SIGINT": (signal.SIGINT, 130), "SIGTERM": (signal.SIGTERM, 143)
    }[name]  # fmt: skip
    rng, outcome, stages, runs = random.Random(f"{seed} {name} {work}"), Outcome(), Counter[str](), 0
    _, processor, _ = workplace.reference(work)
    place = workplace.folder / "struck"
    progress = Progress(count, name)
    while outcome.tried < count:
        shutil.rmtree(place, ignore_errors=True)
        runs += 1
        problems: list[str] = []
        for strike in range(rng.randint(1, min(_MOST_STRIKES, count - outcome.tried))):
            before = finished(place)
            command = workplace.start(work, place)
            while name != "SIGKILL" and not command.log.stat().st_size and not command.ended():
                time.sleep(0.005)  # before the command has begun, Python itself answers
            moment = rng.uniform(0, processor / (1 + strike))  # less and less is left to do
            hit, ended = command.strike(number, moment), command.wait()
            if not hit:
                break
            outcome.tried += 1
            progress.count()
            problems += written_again(before)
            stages[stage_of(place)] += 1
            if ended.status != status:  # it came too late
                problems += workplace.not_done(work, ended)
            if name != "SIGKILL" and ("Traceback" in ended.log or ended.log.count("interrupted") > 1):
                problems.append(f"more than a line: {ended.log[-300:]}")
        problems += workplace.finish(work, place)
        outcome.failures += [f"run {runs}: {problem}" for problem in problems]
    outcome.details = f"in {runs} runs{of_stages(stages)}"
    return outcome


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """Mount a file system of so many bytes on a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def _remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def can_mount(folder: Path) -> bool:
    """Whether this process may mount file systems."""
    try:
        with small_disk(folder / "disk", 2**20):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


def _bytes(folder: Path) -> int:
    """Return what the files in a folder take of a disk."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*"))


def full_disk(workplace: Workplace, work: str, count: int) -> Outcome:
    """Run out of disk at ``count`` sizes, make room, and go on."""
    outcome, stages = Outcome(), Counter[str]()
    place, _, _ = workplace.reference(work)
    need = _bytes(place)
    enough = f"size={need * 4 + 2**22}"
    for step in range(count):
        with small_disk(workplace.folder / "disk", 2**22) as disk:
            _remount(disk, enough)
            workplace.prepare(work, disk)
            used = _bytes(disk)
            _remount(disk, f"size={max(65536, used + (need - used) * step // count)}")
            ended = workplace.start(work, disk).wait()
            problems: list[str] = []
            if ended.status != 0:
                outcome.tried += 1
                stages[stage_of(disk)] += 1
                if len(ended.errors) != 1 or "Traceback" in ended.log:
                    problems.append(ended.log[-500:])
            _remount(disk, enough)
            problems += workplace.finish(work, disk)
            outcome.failures += [f"size {step}/{count}: {problem}" for problem in problems]
    outcome.details = f"of {count} sizes{of_stages(stages)}"
    return outcome


def two_at_once(workplace: Workplace, work: str, count: int) -> Outcome:
    """Do a work twice at once in one folder with one cache."""
    outcome = Outcome(count)
    for i in range(count):
        place = workplace.folder / "both"
        shutil.rmtree(place, ignore_errors=True)
        both = [workplace.start(work, place) for _ in range(2)]
        ended = [command.wait() for command in both]
        problems = [problem for end in ended for problem in workplace.not_done(work, end)]
        outcome.failures += [f"{i}: {problem}" for problem in problems + workplace.differences(work, place)]
    return outcome


def read_only(workplace: Workplace, work: str, *_: object) -> Outcome:
    """Do a work, and use what it has made, in a place that is mounted read-only."""
    outcome = Outcome()
    image = str(workplace.folder / "shapes/JPEGImages/test_00000.jpg")
    place = workplace.reference(work)[0]
    run = workplace.folder / "disk/run"
    commands: dict[str, list[str]] = {}
    if work == "classify":
        commands = {"eval": ["classify", "eval", str(run)]}
    elif (place / "run/metrics.json").exists():
        commands = {
            "evaluate": ["evaluate", str(run), "--force"], "report": ["report", str(run)],
            "detect": ["detect", image, "--model", str(run), "--output", str(run / "out")],
        }  # fmt: skip
    if work == "folds":  # whose figures are of its folds, and are not computed again
        del commands["evaluate"]
    with small_disk(workplace.folder / "disk", 2**28) as disk:
        if commands:
            shutil.copytree(place, disk, dirs_exist_ok=True)
        elif work == "add":
            workplace.copy_model(run)
        _remount(disk, "ro")
        starts = [partial(workplace.command, of[0], of[1:]) for of in commands.values()]
        starts.append(partial(workplace.start, work, disk, *["run.seed=9"] * bool(commands)))
        for name, start in zip([*commands, "the work itself"], starts):
            ended = start().wait()
            outcome.tried += 1
            if "Traceback" in ended.log or ".sppdet-" in ended.log or ended.status < 0 or len(ended.errors) != 1:
                outcome.failures.append(f"{name}: status {ended.status}: {ended.log[-400:]}")
    outcome.details = ", ".join([*commands, "the work itself"])
    return outcome
