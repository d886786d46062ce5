"""Work for a cluster, and how to tell that it was done once, and as one process does it."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from uuid import uuid4

import numpy as np
from safetensors import SafetensorError, safe_open

from sppdet.config import Config, override
from sppdet.data import make_shapes, read_dataset
from sppdet.features import entry_names
from sppdet.features.store import Store, fill
from sppdet.proposals import SelectiveSearch
from sppdet.training import run_training
from sppdet.utils import SppdetError, cluster


class Counted:
    """Selective search that leaves a file per image in a folder, so that the calls of all workers are counted.

    Args:
        folder: for the files.
        pause: seconds that an image takes longer, so that there is work left for a worker that joins late.
    """

    def __init__(self, folder: Path, pause: float):
        self.folder, self.pause, self.search = folder, pause, SelectiveSearch(engine="native")

    def __call__(self, image: np.ndarray) -> np.ndarray:
        time.sleep(self.pause)
        boxes = self.search(image)
        name = f"{hashlib.blake2b(image.tobytes(), digest_size=8).hexdigest()}-{os.getpid()}-{uuid4().hex}"
        (self.folder / name).touch()
        return boxes


class Work:
    """Proposals of the drawn images, into a store of their own.

    Args:
        folder: the shared one.
        name: of the store.
        images: how many.
        pause: of `Counted`.
    """

    def __init__(self, folder: Path, name: str, images: int, pause: float = 0.0):
        self.shared, self.images = folder, images
        dataset = read_dataset(make_shapes(folder / f"images-{images}", images, 1), "trainval")
        self.readers = {entry: sample.read for entry, sample in zip(entry_names(dataset), dataset)}
        self.folder = folder / name
        shutil.rmtree(self.folder, ignore_errors=True)
        (self.folder / "calls").mkdir(parents=True)
        self.store = Store(self.folder / "cache", "proposals", {}, ".npy")
        self.compute = Counted(self.folder / "calls", pause)

    def run(self, engine: str, address: str | None = None, workers: int = 2) -> None:
        """Compute what is missing."""
        with cluster(engine, address, workers, self.folder / "cache"):
            fill(self.store, self.readers, self.compute, workers, f"{engine}, {len(self.readers)} images")

    @property
    def done(self) -> int:
        """The number of stored entries."""
        return len(self.readers) - len(self.store.missing([*self.readers]))

    def content(self) -> dict[str, str]:
        """Return the digest of every stored file."""
        paths = {name: self.store.path(name) for name in self.readers}
        return {name: _digest(path) for name, path in paths.items() if path.exists()}

    def calls(self) -> str:
        """Return how many images were computed, how many of them more than once, and in how many processes."""
        names = [path.name.split("-") for path in self.compute.folder.iterdir()]
        per_image = Counter(name[0] for name in names)
        twice, processes = sum(count > 1 for count in per_image.values()), len({name[1] for name in names})
        return (
            f"{self.done} of {len(self.readers)} stored, {len(names)} computed, {twice} of them twice, "
            f"{processes} processes"
        )

    def compared(self) -> str:
        """Say whether the stored files are, bit for bit, those of processes."""
        alone = Work(self.shared, "processes", self.images)
        alone.run("processes", workers=1)
        return "same bits as processes" if self.content() == alone.content() else "NOT THE BITS OF PROCESSES"


class Training:
    """A training on the drawn images, with all stages whose images a cluster computes.

    Args:
        folder: the shared one.
        name: of the training's folder.
        images: how many are learned from.
    """

    SETTINGS = (
        "backbone.name=small", "backbone.weights=random", "backbone.precision=float32", "regions.scales=[240]",
        "regions.target=96", "pooling.levels=[6,3,1]", "svm.random_negatives=1000", "svm.max_negatives=2000",
        "svm.C=0.01", "svm.passes=24", "detection.context=1", "device=cpu",
    )  # fmt: skip

    def __init__(self, folder: Path, name: str, images: int):
        self.folder, self.images = folder / name, images
        self.root = make_shapes(folder / f"training-{images}", images, 16)
        shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, engine: str, address: str | None = None, workers: int = 2) -> None:
        """Run all stages."""
        files = {"data.root": self.root, "run.dir": self.folder / "run", "run.cache": self.folder / "cache"}
        where = {"run.engine": engine, "run.cluster": address or "null", "workers": workers}
        changes = [f"{key}={value}" for key, value in [*files.items(), *where.items()]]
        run_training(override(Config(), [*self.SETTINGS, *changes]))

    @property
    def done(self) -> int:
        """The rounds of mining that are done."""
        path = self.folder / "run" / "stages" / "svm.checkpoint"
        try:
            with safe_open(path, "numpy") as checkpoint:
                return int(checkpoint.metadata()["done"])
        except (OSError, SafetensorError):
            return 0

    def content(self) -> dict[str, str]:
        """Return the digest of every file that was computed or learned: cache, stages, bank, model and detections."""
        files = [*self.folder.glob("cache/**/*"), *self.folder.glob("run/**/*.safetensors")]
        files += self.folder.glob("run/detections/*")
        relative = {path.relative_to(self.folder).as_posix(): path for path in files if path.is_file()}
        return {name: _digest(path) for name, path in relative.items()}

    def compared(self) -> str:
        """Say whether the files are, bit for bit, those of one process."""
        alone = Training(self.folder.parent, "training-alone", self.images)
        alone.run("processes", workers=1)
        here, there = alone.content(), self.content()
        assert "run/model.safetensors" in here and "run/bank.safetensors" in here
        differing = [name for name in here.keys() | there.keys() if here.get(name) != there.get(name)]
        return f"{len(here)} files: " + (
            f"{len(differing)} NOT THOSE OF PROCESSES: {sorted(differing)[:5]}"
            if differing
            else "the bits of processes"
        )


@contextmanager
def at_entry(work: Work | Training, count: int, act: Callable[[], object]) -> Iterator[None]:
    """Call ``act`` once ``count`` entries are stored, or rounds are done, while the block runs."""

    def watch() -> None:
        while work.done < count:
            time.sleep(0.1)
        act()

    watcher = Thread(target=watch, daemon=True)
    watcher.start()
    yield
    watcher.join(5)


def refused(action: Callable[[], object]) -> str:
    """Return the message of the error that ``action`` must raise."""
    try:
        action()
    except SppdetError as error:
        return str(error)
    raise AssertionError("no error was raised")


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
