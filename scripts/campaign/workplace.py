"""What all parts of the campaign share: the systems, commands in processes of their own, and what a run has left.

A command runs in a process that is forked from one that has loaded the libraries, so that a thousand of them take
minutes. A signal, a full disk or a limit strikes it as it would one that a user has started.
"""

from __future__ import annotations

import faulthandler
import hashlib
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image

from sppdet.cli import classify, detect, evaluate, report, train
from sppdet.data.shapes import make_shapes
from sppdet.training import pipeline  # noqa: F401  # loaded once, for all processes

_UNFINISHED = (".sppdet-*", "*.checkpoint", "checkpoint.safetensors")
_SHAPES = {
    "data": {"root": "shapes"},
    "backbone": {"name": "small", "weights": "random", "precision": "float32"},
    "proposals": {"max_windows": 60},
    "regions": {"scales": [160], "target": 64},
    "pooling": {"levels": [3, 1]},
    "svm": {"random_negatives": 60, "max_negatives": 60, "C": 0.01},
    "bbox": {"max_windows": 100},
    "device": "cpu",
    "workers": 1,
}
_PRETRAINED = ["backbone.weights=pretrain", "pretrain.sizes=[48]", "pretrain.epochs=1", "pretrain.batch_size=16"]
_END_TO_END = [
    "end_to_end.enabled=true", "end_to_end.frozen_stride=0", "end_to_end.epochs=1", "end_to_end.scales=[96]",
    "end_to_end.units=16", "features=fc7",
]  # fmt: skip
SYSTEMS = {
    "spp-net": [],
    "spp-net, fine-tuned": [
        *_PRETRAINED, "features=fc7", "finetune.units=16", "finetune.steps=6", "finetune.batch_size=32",
        "detection.context=0.2",
    ],
    "r-cnn": ["regions.crop=warp", "regions.crop_size=64", "regions.context=4", "proposals.max_windows=30"],
    "fast r-cnn": [*_END_TO_END, "pooling.levels=[3]", "classifier=softmax", "bbox.kind=joint"],
    "end to end": _END_TO_END,
    "classify": [
        "backbone.name=small", "backbone.weights=random", "backbone.precision=float32", "device=cpu", "workers=1",
        "sizes=[48,40]", "epochs=3", "batch_size=4", "levels=[2,1]",
    ],
}  # fmt: skip
COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": train.main, "evaluate": evaluate.main, "detect": detect.main, "report": report.main,
    "classify": classify.main,
}  # fmt: skip


@dataclass
class Outcome:
    """What a part of the campaign has tried.

    Attributes:
        what: the part.
        tried: how often, and of what.
        failures: a line per failure.
    """

    what: str
    tried: str = ""
    failures: list[str] = field(default_factory=list)


@dataclass
class Ended:
    """A command that has ended.

    Attributes:
        status: its exit status; negative for a signal.
        log: what it printed.
        seconds: how long it ran.
        processor: how many seconds of the processor it took, which do not depend on the load of the machine.
        memory_mb: how much memory it took at most.
    """

    status: int
    log: str
    seconds: float
    processor: float
    memory_mb: float

    @property
    def errors(self) -> list[str]:
        """The lines that tell an error."""
        return [line for line in self.log.splitlines() if line.startswith("error: ")]


class Command:
    """A function in a forked process.

    Args:
        function: returns the exit status.
        log: the file that takes what it prints.
        folder: in which it runs.
    """

    def __init__(self, function: Callable[[], int | None], log: Path, folder: Path):
        self.log, self.start = log, time.monotonic()
        log.write_bytes(b"")
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid:
            return
        status = 1
        try:  # the forked process, which never returns
            os.setpgid(0, 0)
            os.chdir(folder)
            descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            faulthandler.enable()
            status = function() or 0
        except SystemExit as ended:
            status = ended.code if isinstance(ended.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            os._exit(status)

    def ended(self) -> bool:
        """Whether the process has ended; `wait` tells how."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def strike(self, number: int, seconds: float) -> bool:
        """Send a signal after so many seconds; return whether the process still ran."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.ended():
            time.sleep(min(0.005, max(0.0, end - time.monotonic())))
        if self.ended():
            return False
        os.kill(self.pid, number)
        return True

    def wait(self, seconds: float = 600.0) -> Ended:
        """Wait until the process has ended; it is killed after so many seconds."""
        end = time.monotonic() + seconds
        while not self.ended() and time.monotonic() < end:
            time.sleep(0.01)
        if not self.ended():
            os.kill(self.pid, signal.SIGKILL)
        _, status, usage = os.wait4(self.pid, 0)
        log = self.log.read_text(errors="replace")
        code = os.waitstatus_to_exitcode(status)
        processor = usage.ru_utime + usage.ru_stime
        return Ended(code, log, time.monotonic() - self.start, processor, usage.ru_maxrss / 1024)


class Workplace:
    """A folder with drawn images, in which runs are made.

    Args:
        folder: an empty folder.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        os.environ["SPPDET_CACHE"] = str(folder / "user_cache")
        torch.set_num_threads(1)
        make_shapes(folder / "shapes", train=10, test=4, size=(160, 120))
        _SHAPES["data"] = {"root": str(folder / "shapes")}
        (folder / "settings.yaml").write_text(yaml.safe_dump(_SHAPES))
        rng = np.random.default_rng(0)
        for split, count in (("train", 6), ("val", 2)):
            for name, colour in {"blue": (40, 60, 200), "green": (40, 180, 60), "red": (200, 50, 40)}.items():
                (folder / "colours" / split / name).mkdir(parents=True)
                for i in range(count):
                    pixels = np.clip(rng.normal(colour, 40, (56, 70, 3)), 0, 255).astype(np.uint8)
                    Image.fromarray(pixels).save(folder / "colours" / split / name / f"{i}.png")

    def train(self, system: str, place: Path, *more: str) -> Command:
        """Start the training of a system, whose run and cache are in ``place``."""
        place.mkdir(parents=True, exist_ok=True)
        overrides = [*SYSTEMS[system], f"run.dir={place / 'run'}", *more]
        if system == "classify":
            return self.command("classify", ["train", str(self.folder / "colours"), *overrides])
        return self.command("train", [str(self.folder / "settings.yaml"), *overrides, f"run.cache={place / 'cache'}"])

    def command(self, name: str, arguments: list[str]) -> Command:
        """Start a command of the program."""
        return Command(lambda: COMMANDS[name](arguments), self.folder / f"log{time.monotonic_ns()}", self.folder)

    @cache  # noqa: B019  # there is one workplace
    def reference(self, system: str) -> tuple[Path, float, dict[str, object]]:
        """Return where the undisturbed run of a system is, its seconds, and its result.

        Raises:
            RuntimeError: it fails, so that nothing can be compared with it.
        """
        place, first = self.folder / "undisturbed" / system, None
        for repeat in range(2):  # the first compiles kernels
            shutil.rmtree(place, ignore_errors=True)
            ended = self.train(system, place).wait(3600)
            if ended.status:
                raise RuntimeError(f"{system}, undisturbed: status {ended.status}\n{ended.log}")
            if repeat and first != result(place):
                raise RuntimeError(f"{system}: two undisturbed runs differ")
            first = result(place)
        return place, ended.seconds, first

    def differences(self, system: str, place: Path) -> list[str]:
        """Tell in what a finished run differs from the undisturbed one, and what it has left over."""
        _, _, expected = self.reference(system)
        try:
            actual = result(place)
        except (OSError, ValueError, KeyError) as error:
            return [f"no result ({error})"]
        return [f"another {name}" for name in expected if actual[name] != expected[name]] + [
            f"{path.relative_to(place)} is left over" for pattern in _UNFINISHED for path in place.rglob(pattern)
        ]


def result(place: Path) -> dict[str, object]:
    """Return what a run has to have in common with the undisturbed one: metrics and digests of the model."""
    metrics = json.loads((place / "run/metrics.json").read_text())
    figures = {name: value for name, value in metrics.items() if name not in ("config", "stages", "checksum")}
    models = sorted((place / "run").glob("[mc]*.safetensors")) + sorted((place / "run").glob("detections/*"))
    return {"metrics": figures} | {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in models}


def finished(place: Path) -> dict[Path, int]:
    """Return when each file was written that need not be written again: of the cache, and results of stages."""
    files = [path for path in (place / "cache").rglob("[!.]*") if path.is_file() and path.suffix != ".json"]
    files += [path for path in (place / "run/stages").rglob("[!.]*.safetensors") if path.with_suffix(".json").exists()]
    return {path: path.stat().st_mtime_ns for path in files}


def written_again(before: dict[Path, int]) -> list[str]:
    """Tell which of the files of `finished` were written again."""
    changed = [path for path, when in before.items() if not path.exists() or path.stat().st_mtime_ns != when]
    return [f"{path.name} was computed again" for path in changed]


def stage_of(place: Path) -> str:
    """Return the stage that a run is in, by what it has recorded."""
    path = place / "run/stages.json"
    done = [name for name in json.loads(path.read_text()) if name != "checksum"] if path.exists() else []
    return f"after {done[-1]}" if done else "first stage"
