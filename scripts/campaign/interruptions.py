"""Commands that are killed, interrupted, run out of disk, run twice at once, or find a place that is read-only."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from campaign.workplace import SYSTEMS, Outcome, Workplace, finished, stage_of, written_again

_MOST_KILLS = 3  # of one run, before it may finish


def kills(workplace: Workplace, count: int, rng: random.Random, systems: list[str]) -> Outcome:
    """Kill trainings at random moments, up to three times each, then let them finish."""
    return _strikes(workplace, count, rng, systems, signal.SIGKILL, "SIGKILL", -signal.SIGKILL)


def interruptions(workplace: Workplace, count: int, rng: random.Random, systems: list[str]) -> list[Outcome]:
    """Interrupt trainings from the keyboard and by SIGTERM."""
    return [
        _strikes(workplace, count, rng, systems, signal.SIGINT, "SIGINT", 130),
        _strikes(workplace, count, rng, systems, signal.SIGTERM, "SIGTERM", 143),
    ]


def _strikes(
    workplace: Workplace, count: int, rng: random.Random, systems: list[str], number: int, name: str, status: int
) -> Outcome:
    outcome, stages, runs = Outcome(f"{name} at random moments, then finished"), Counter[str](), 0
    struck = 0
    while struck < count:
        system, place = systems[runs % len(systems)], workplace.folder / "struck"
        _, seconds, _ = workplace.reference(system)
        shutil.rmtree(place, ignore_errors=True)
        runs += 1
        problems: list[str] = []
        for _ in range(rng.randint(1, min(_MOST_KILLS, count - struck))):
            before = finished(place)
            command = workplace.train(system, place)
            if number != signal.SIGKILL:  # before the command has begun, Python itself answers
                while not (command.log.stat().st_size or command.ended()):
                    pass
            hit = command.strike(number, rng.uniform(0, seconds))
            ended = command.wait()
            struck += hit
            problems += written_again(before)
            if not hit:
                break
            stages[f"{system}, {stage_of(place)}"] += 1
            if ended.status not in (status, 0):
                problems.append(f"status {ended.status}: {ended.log[-300:]}")
            if number != signal.SIGKILL and ("Traceback" in ended.log or ended.log.count("interrupted") > 1):
                problems.append(f"more than a line: {ended.log[-300:]}")
        before = finished(place)
        ended = workplace.train(system, place).wait()
        problems += [f"status {ended.status}: {ended.log[-300:]}"] if ended.status else []
        problems += written_again(before) + workplace.differences(system, place)
        outcome.failures += [f"{system}, run {runs}: {problem}" for problem in problems]
    where = ", ".join(f"{place} {times}" for place, times in sorted(stages.items()))
    outcome.tried = f"{struck} in {runs} runs: {where}"
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


def full_disk(workplace: Workplace, count: int, systems: list[str]) -> Outcome:
    """Run out of disk at ``count`` sizes per system, make room, and go on."""
    outcome = Outcome("Disk full (a tmpfs of a limited size), then room: goes on")
    stages, full = Counter[str](), 0
    for system in systems:
        place, _, _ = workplace.reference(system)
        need = sum(path.stat().st_blocks * 512 for path in place.rglob("*"))
        for step in range(count):
            with small_disk(workplace.folder / "disk", max(65536, need * step // count)) as disk:
                ended = workplace.train(system, disk).wait()
                if ended.status != 0:
                    full += 1
                    stages[f"{system}, {stage_of(disk)}"] += 1
                    if len(ended.errors) != 1 or "Traceback" in ended.log:
                        outcome.failures.append(f"{system}, size {step}/{count}: {ended.log[-500:]}")
                before = finished(disk)
                _remount(disk, f"size={need * 4 + 2**22}")
                again = workplace.train(system, disk).wait()
                problems = written_again(before) + workplace.differences(system, disk)
                problems += [f"then status {again.status}: {again.log[-300:]}"] if again.status else []
                outcome.failures += [f"{system}, size {step}/{count}: {problem}" for problem in problems]
    where = ", ".join(f"{place} {times}" for place, times in sorted(stages.items()))
    outcome.tried = f"{full} of {count * len(systems)} disks were full: {where}"
    return outcome


def two_at_once(workplace: Workplace, count: int, systems: list[str]) -> Outcome:
    """Train twice at once in one folder with one cache."""
    outcome = Outcome("Two trainings at once, one folder and one cache")
    for i in range(count):
        for system in systems:
            place = workplace.folder / "both"
            shutil.rmtree(place, ignore_errors=True)
            both = [workplace.train(system, place) for _ in range(2)]
            ended = [command.wait() for command in both]
            problems = [f"status {end.status}: {end.log[-400:]}" for end in ended if end.status]
            outcome.failures += [f"{system}, {i}: {p}" for p in problems + workplace.differences(system, place)]
    outcome.tried = f"{count * len(systems)} pairs"
    return outcome


def read_only(workplace: Workplace, systems: list[str]) -> Outcome:
    """Run commands on a place that is mounted read-only."""
    outcome, tried = Outcome("A read-only place (tmpfs, remounted): one line, no temporary's name"), 0
    image = str(workplace.folder / "shapes/JPEGImages/test_00000.jpg")
    for system in systems:
        place, _, _ = workplace.reference(system)
        run = workplace.folder / "disk/run"
        with small_disk(workplace.folder / "disk", 2**28) as disk:
            shutil.copytree(place, disk, dirs_exist_ok=True)
            _remount(disk, "ro")
            if system == "classify":
                commands = {"eval": ["classify", "eval", str(run)], "new": None}
            else:
                commands = {
                    "evaluate": ["evaluate", str(run), "--force"], "report": ["report", str(run)],
                    "detect": ["detect", image, "--model", str(run), "--output", str(disk / "out")], "new": None,
                }  # fmt: skip
            for name, arguments in commands.items():
                if arguments is None:
                    command = workplace.train(system, disk, "run.seed=9")
                else:
                    command = workplace.command(arguments[0], arguments[1:])
                ended, tried = command.wait(), tried + 1
                if "Traceback" in ended.log or ".sppdet-" in ended.log or ended.status < 0 or len(ended.errors) != 1:
                    outcome.failures.append(f"{system}, {name}: status {ended.status}: {ended.log[-400:]}")
    outcome.tried = f"{tried} commands"
    return outcome


ALL = list(SYSTEMS)
