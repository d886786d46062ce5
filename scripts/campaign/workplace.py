"""What all parts of the campaign share: the works, commands in processes of their own, and what a work has left.

A work is what is disturbed: the training of a system, or another command that writes files, such as ``add``.

A command runs in a process that is forked from one that has loaded the libraries, so that a thousand of them take
minutes. A signal, a full disk or a limit strikes it as it would one that a user has started.
"""

from __future__ import annotations

import faulthandler
import hashlib
import io
import json
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import psutil
import torch
import torch._dynamo  # which optimizers import
import yaml
from PIL import Image
from tqdm import tqdm

from sppdet.cli import add, classify, combine, convert, detect, evaluate, label, report, train
from sppdet.data import read_voc
from sppdet.data.shapes import make_shapes
from sppdet.data.voc import write_voc_annotation
from sppdet.training import pipeline  # noqa: F401  # loaded once, for all processes
from sppdet.utils import write_lines
from sppdet.utils.files import _remove_leftovers

_RESULTS = ("model.*", "classifier.*", "bank.safetensors", "detections/*")
_UNFINISHED = (".sppdet-????????-*", "model-update", "*.checkpoint", "checkpoint.safetensors")
_PHOTOGRAPHS = {"trainval": 6, "test": 3}  # images of each split
_SMALLER = 3  # times
_SETTINGS = {
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
# Other works: the command, and what it says where it has been done already.
WORKS: dict[str, tuple[list[str], str | None]] = {
    "folds": (
        ["train", "{folder}/settings.yaml", "--folds", "2", "run.dir={place}/run", "run.cache={place}/cache"], None
    ),
    "photographs": (
        ["train", "{folder}/settings.yaml", "data.root={folder}/photographs", "run.dir={place}/run",
         "run.cache={place}/cache"], None,
    ),
    "add": (["add", "{place}/run", "{folder}/new", "--cache", "{place}/cache"], "which the model has"),
    "label": (["label", "{model}", "{folder}/shapes/JPEGImages", "--as", "yolo", "--output", "{place}/run"], None),
    "convert": (["convert", "{folder}/shapes", "{place}/run", "--as", "coco"], "exists already"),
    "combine": (["combine", "{model}", "{model}", "--output", "{place}/run"], "exists already"),
}  # fmt: skip
COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": train.main, "evaluate": evaluate.main, "detect": detect.main, "report": report.main,
    "classify": classify.main, "add": add.main, "label": label.main, "convert": convert.main, "combine": combine.main,
}  # fmt: skip


@dataclass
class Outcome:
    """What was tried.

    Attributes:
        tried: how often.
        details: more of what was tried, and figures.
        failures: a line per failure.
    """

    tried: int = 0
    details: str = ""
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
            tqdm.set_lock(threading.RLock())  # the usual one is shared: a process that is killed with it stops all
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

    def strike(self, number: int, processor: float) -> bool:
        """Send a signal after so many seconds of the processor; return whether the process still ran."""
        process = psutil.Process(self.pid)
        while not self.ended() and sum(process.cpu_times()[:2]) < processor:
            time.sleep(0.005)
        if self.ended():
            return False
        os.kill(self.pid, number)
        return True

    def wait(self, seconds: float = 600.0) -> Ended:
        """Wait until the process has ended; it is killed after so many seconds."""
        end = time.monotonic() + seconds
        try:
            while not self.ended() and time.monotonic() < end:
                time.sleep(0.01)
        finally:
            if not self.ended():  # too slow, or the campaign was interrupted
                os.kill(self.pid, signal.SIGKILL)
        _, status, usage = os.wait4(self.pid, 0)
        log = self.log.read_text(errors="replace")
        code = os.waitstatus_to_exitcode(status)
        processor = usage.ru_utime + usage.ru_stime
        return Ended(code, log, time.monotonic() - self.start, processor, usage.ru_maxrss / 1024)


class Workplace:
    """A folder with images, in which works are done.

    Args:
        folder: an empty folder.
        voc: a folder of VOC's, of which some photographs are taken, made smaller; None for drawn images alone.
    """

    def __init__(self, folder: Path, voc: str | None = None):
        self.folder = folder
        os.environ["SPPDET_CACHE"] = str(folder / "user_cache")
        torch.set_num_threads(1)
        make_shapes(folder / "shapes", train=10, test=4, size=(160, 120))
        make_shapes(folder / "new", train=5, test=1, size=(160, 120), seed=1)
        for path in (folder / "new/Annotations").iterdir():
            path.write_text(path.read_text().replace("circle", "disc"))
        if voc:
            _small_photographs(voc, folder / "photographs")
        settings = _SETTINGS | {"data": {"root": str(folder / "shapes")}}
        (folder / "settings.yaml").write_text(yaml.safe_dump(settings))
        rng = np.random.default_rng(0)
        for split, count in (("train", 6), ("val", 2)):
            for name, colour in {"blue": (40, 60, 200), "green": (40, 180, 60), "red": (200, 50, 40)}.items():
                (folder / "colours" / split / name).mkdir(parents=True)
                for i in range(count):
                    pixels = np.clip(rng.normal(colour, 40, (56, 70, 3)), 0, 255).astype(np.uint8)
                    Image.fromarray(pixels).save(folder / "colours" / split / name / f"{i}.png")
        self._load()

    def _load(self) -> None:
        """Train once in this process: what is imported and compiled by then, the forked processes have."""
        tqdm.monitor_interval = 0  # no thread, which a fork would lose
        run, cache = (f"run.{name}={self.folder / 'loaded' / name}" for name in ("dir", "cache"))
        shown = io.StringIO()
        with redirect_stdout(shown), redirect_stderr(shown):
            status = train.main([str(self.folder / "settings.yaml"), run, cache])
        if status:
            raise RuntimeError(f"training: status {status}\n{shown.getvalue()}")
        _remove_leftovers.cache_clear()  # of the folders that were looked through

    def start(self, work: str, place: Path, *more: str) -> Command:
        """Start a work, whose results and cache are in ``place``: the folders run and cache."""
        self.prepare(work, place)
        if work == "classify":
            overrides = [*SYSTEMS[work], f"run.dir={place / 'run'}", *more]
            return self.command("classify", ["train", str(self.folder / "colours"), *overrides])
        if work in SYSTEMS:
            overrides = [*SYSTEMS[work], f"run.dir={place / 'run'}", f"run.cache={place / 'cache'}", *more]
            return self.command("train", [str(self.folder / "settings.yaml"), *overrides])
        arguments, _ = WORKS[work]
        model = self.reference("spp-net")[0] / "run" if "{model}" in arguments else None
        name, *rest = (text.format(folder=self.folder, place=place, model=model) for text in arguments)
        return self.command(name, [*rest, *more])

    def prepare(self, work: str, place: Path) -> None:
        """Put what a work changes into ``place``, unless it is there."""
        place.mkdir(parents=True, exist_ok=True)
        if work == "add" and not (place / "run").exists():
            self.copy_model(place / "run")

    def copy_model(self, folder: Path) -> None:
        """Copy the files of a trained model into a new folder."""
        place, _, _ = self.reference("spp-net")
        unfinished = folder.with_name("unfinished")
        unfinished.mkdir(parents=True)
        for name in ("model.json", "model.safetensors", "bank.safetensors"):
            shutil.copyfile(place / "run" / name, unfinished / name)
        unfinished.rename(folder)

    def command(self, name: str, arguments: list[str]) -> Command:
        """Start a command of the program."""
        return Command(lambda: COMMANDS[name](arguments), self.folder / f"log{time.monotonic_ns()}", self.folder)

    @cache  # noqa: B019  # there is one workplace
    def reference(self, work: str) -> tuple[Path, float, dict[str, object]]:
        """Return where a work was done undisturbed, its seconds of the processor, and its result.

        Raises:
            RuntimeError: it fails, so that nothing can be compared with it.
        """
        place, first = self.folder / "undisturbed" / work, None
        for repeat in range(2):  # the first compiles kernels
            shutil.rmtree(place, ignore_errors=True)
            ended = self.start(work, place).wait(3600)
            if ended.status:
                raise RuntimeError(f"{work}, undisturbed: status {ended.status}\n{ended.log}")
            if repeat and first != result(place):
                raise RuntimeError(f"{work}: undisturbed, it ended twice in different results")
            first = result(place)
        assert first is not None
        return place, ended.processor, first

    def finish(self, work: str, place: Path) -> list[str]:
        """Do a work to its end; tell what fails, what was done again, and in what the end differs."""
        before = finished(place)
        ended = self.start(work, place).wait()
        return self.not_done(work, ended) + written_again(before) + self.differences(work, place)

    def not_done(self, work: str, ended: Ended) -> list[str]:
        """Tell how a command failed; it did not where it refuses, in a line, to do again what is done."""
        _, done_already = WORKS.get(work, ([], None))
        if ended.status == 0 or (ended.status == 2 and done_already is not None and done_already in ended.log):
            return []
        return [f"status {ended.status}: {ended.log[-400:]}"]

    def differences(self, work: str, place: Path) -> list[str]:
        """Tell in what a finished work differs from the undisturbed one, and what it has left over."""
        _, _, expected = self.reference(work)
        try:
            actual = result(place)
        except (OSError, ValueError, KeyError) as error:
            return [f"no result ({error})"]
        names = sorted(expected.keys() | actual.keys())
        return [f"another {name}" for name in names if actual.get(name) != expected.get(name)] + [
            f"{path.relative_to(place)} is left over" for pattern in _UNFINISHED for path in place.rglob(pattern)
        ]


def _small_photographs(voc: str, folder: Path) -> None:
    """Write photographs of VOC with people alone as a data set of VOC's form."""
    for split, count in _PHOTOGRAPHS.items():
        dataset = read_voc(voc, split)
        person = dataset.classes.index("person")
        samples = [sample for sample in dataset if {*sample.labels.tolist()} == {person}][:count]
        for sample in samples:
            image = Image.fromarray(sample.read()).reduce(_SMALLER)
            (folder / "JPEGImages").mkdir(parents=True, exist_ok=True)
            image.save(folder / f"JPEGImages/{sample.id}.png")
            names, difficult = ["person"] * len(sample.boxes), sample.difficult.tolist()
            path, boxes = folder / f"Annotations/{sample.id}.xml", sample.boxes / _SMALLER
            write_voc_annotation(path, f"{sample.id}.png", *image.size, boxes, names, difficult)
        write_lines(folder / f"ImageSets/Main/{split}.txt", [sample.id for sample in samples])


def result(place: Path) -> dict[str, object]:
    """Return what a work has to have in common with the undisturbed one: metrics, and digests of files."""
    run, metrics = place / "run", {}
    if (run / "stages").exists() or (run / "metrics.json").exists():
        values = json.loads((run / "metrics.json").read_text())
        metrics = {name: value for name, value in values.items() if name not in ("config", "stages", "checksum")}
        files = [path for pattern in _RESULTS for path in sorted(run.glob(pattern))]
    else:  # all that was written; the settings hold the folder's path
        files = [path for path in run.rglob("*") if path.is_file() and path.name != "config.json"]
    digests = {str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    return {"metrics": metrics, **digests}


def finished(place: Path) -> dict[Path, int]:
    """Return when each file was written that need not be written again: of the cache, and results of stages."""
    files = [path for path in (place / "cache").rglob("[!.]*") if path.is_file() and path.suffix != ".json"]
    for folder in (place / "run").rglob("stages"):
        for path in folder.rglob("[!.]*.safetensors"):
            stage = "svm" if path.parent.name == "windows" else path.parent.name  # these are written before the SVM
            if (path.parent.with_name(stage) / f"{path.stem}.json").exists():
                files.append(path)
    return {path: path.stat().st_mtime_ns for path in files}


class Progress:
    """Lines on stderr that tell how far a step is, twice a minute.

    A bar of tqdm would be drawn again by every forked process that prints.
    """

    def __init__(self, total: int, unit: str):
        self.total, self.unit, self.done = total, unit, 0
        self.start = self.last = time.monotonic()

    def count(self, number: int = 1) -> None:
        """Note that something was done."""
        self.done += number
        now = time.monotonic()
        if now - self.last > 30:
            left = (self.total - self.done) * (now - self.start) / self.done
            print(f"  {self.done} of {self.total} {self.unit}, about {left:.0f} s left", file=sys.stderr, flush=True)
            self.last = now


def of_stages(counts: Counter[str]) -> str:
    """Return how often which stage was struck; nothing for a work without stages."""
    return f": {', '.join(f'{name} {times}' for name, times in sorted(counts.items()))}" if len(counts) > 1 else ""


def written_again(before: dict[Path, int]) -> list[str]:
    """Tell which of the files of `finished` were written again."""
    changed = [path for path, when in before.items() if not path.exists() or path.stat().st_mtime_ns != when]
    return [f"{path.parent.name}/{path.name} was computed again" for path in changed]


def stage_of(place: Path) -> str:
    """Return the stage that a run is in, by what it has recorded."""
    path = place / "run/stages.json"
    done = [name for name in json.loads(path.read_text()) if name != "checksum"] if path.exists() else []
    return f"after {done[-1]}" if done else "first stage"
