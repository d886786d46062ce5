"""Check work on clusters: real schedulers and workers on this machine, which are killed, join late, and see no folder.

    python scripts/check_cluster.py FOLDER            # all parts, a table at the end
    python scripts/check_cluster.py FOLDER dask ray   # some of: dask, scheduler, unshared, ray, limits

As root on Linux each Dask worker has a network namespace, linked by a bridge, and a working folder of its own; all that
it shares with the others is FOLDER. Elsewhere the workers are plain processes, and the table says so. Both engines
must be installed: pip install 'sppdet[dask,ray]'.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Thread
from uuid import uuid4

import numpy as np

from sppdet.data import make_shapes, read_dataset
from sppdet.features import entry_names
from sppdet.features.store import Store, fill
from sppdet.proposals import SelectiveSearch
from sppdet.utils import SppdetError, cluster, parallel_map

_BRIDGE, _NETWORK = "sppdet-br", "10.77.0"
# Where workers import this file and the package from.
_PATH = os.pathsep.join([str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])])
_SLOTS, _SECONDS = 1000, 1.0  # simulated workers, and what a unit takes them


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
        return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in paths.items() if path.exists()}

    def calls(self) -> str:
        """Return how many images were computed, how many of them more than once, and in how many processes."""
        names = [path.name.split("-") for path in self.compute.folder.iterdir()]
        per_image = Counter(name[0] for name in names)
        twice, processes = sum(count > 1 for count in per_image.values()), len({name[1] for name in names})
        return (
            f"{self.done} of {len(self.readers)} stored, {len(names)} computed, {twice} of them twice, "
            f"{processes} processes"
        )


class DaskCluster:
    """A scheduler and workers, each a process; as root on Linux each worker in a network namespace of its own."""

    def __init__(self, folder: Path):
        self.folder, self.workers = folder, []
        self.separate = sys.platform == "linux" and os.geteuid() == 0 and shutil.which("ip") is not None
        host = f"{_NETWORK}.1" if self.separate else "127.0.0.1"
        if self.separate:
            _ip(f"link add {_BRIDGE} type bridge", f"addr add {host}/24 dev {_BRIDGE}", f"link set {_BRIDGE} up")
        with socket.socket() as free:
            free.bind((host, 0))
            port = free.getsockname()[1]
        self.address = f"tcp://{host}:{port}"
        self.scheduler = self._start(
            "scheduler", [], "scheduler", "--host", host, "--port", str(port), "--no-dashboard"
        )

    def add(self, *options: str, hide: Path | None = None) -> subprocess.Popen:
        """Start a worker; from one with ``hide``, the content of this folder is hidden."""
        number = len(self.workers) + 2
        name, prefix = f"sppdet-w{number}", []
        if self.separate:
            _ip(
                f"netns add {name}",
                f"link add {name} type veth peer name eth0 netns {name}",
                f"link set {name} master {_BRIDGE} up",
                f"-n {name} addr add {_NETWORK}.{number}/24 dev eth0",
                f"-n {name} link set eth0 up",
                f"-n {name} link set lo up",
            )
            prefix = ["ip", "netns", "exec", name]
        if hide:
            prefix += ["unshare", "-m", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', str(hide)]
        command = ["worker", self.address, "--nthreads", "1", "--no-nanny", "--no-dashboard", "--name", name, *options]
        worker = self._start(name, prefix, *command)
        self.workers.append(worker)
        return worker

    def _start(self, name: str, prefix: list[str], *command: str) -> subprocess.Popen:
        private = self.folder / "private" / name
        private.mkdir(parents=True, exist_ok=True)
        with open(private / "log", "w") as log:
            return subprocess.Popen(
                [*prefix, sys.executable, "-m", "dask", *command],
                cwd=private, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": _PATH},
            )  # fmt: skip

    def close(self) -> None:
        """End all processes and namespaces."""
        for process in [*self.workers, self.scheduler]:
            process.kill()
            process.wait()
        if self.separate:
            _ip(*(f"netns del sppdet-w{number + 2}" for number in range(len(self.workers))), f"link del {_BRIDGE}")


def _ip(*commands: str) -> None:
    for command in commands:
        subprocess.run(["ip", *command.split()], check=True)


@contextmanager
def dask_cluster(folder: Path, workers: int) -> Iterator[DaskCluster]:
    """Start a cluster for the block."""
    dask = DaskCluster(folder)
    try:
        for _ in range(workers):
            dask.add()
        yield dask
    finally:
        dask.close()


@contextmanager
def at_entry(work: Work, count: int, act: Callable[[], object]) -> Iterator[None]:
    """Call ``act`` once ``count`` entries are stored, while the block runs."""

    def watch() -> None:
        while work.done < count:
            time.sleep(0.05)
        act()

    watcher = Thread(target=watch, daemon=True)
    watcher.start()
    yield
    watcher.join(5)


def wait_for_workers(address: str, count: int) -> None:
    """Wait until the scheduler has ``count`` workers."""
    from distributed import Client

    with Client(address, timeout=60, set_as_default=False) as client:
        client.wait_for_workers(count, timeout=180)


def check_dask(folder: Path, images: int, pause: float) -> str:
    """Four workers, one killed in mid-run, one joining late."""
    work = Work(folder, "dask", images, pause)
    with dask_cluster(folder, 4) as dask:
        wait_for_workers(dask.address, 4)

        def disturb() -> None:
            dask.workers[0].kill()
            dask.add()

        with at_entry(work, images // 8, disturb):
            work.run("dask", dask.address)
        where = "in network namespaces" if dask.separate else "as plain processes"
    return f"4 workers {where}, 1 killed, 1 late: {work.calls()}; {_compared(work, folder, images)}"


def check_scheduler(folder: Path, images: int, pause: float) -> str:
    """The scheduler dies in mid-run: one line; then another cluster goes on."""
    work = Work(folder, "scheduler", images, pause / 4)
    with dask_cluster(folder, 2) as dask, at_entry(work, images // 4, dask.scheduler.kill):
        begun = time.monotonic()
        line = _refused(lambda: work.run("dask", dask.address))
        seconds, before = time.monotonic() - begun, work.done
    work.run("dask")
    return f"after {seconds:.0f} s '{line}'; resumed from {before}: {work.calls()}; {_compared(work, folder, images)}"


def check_unshared(folder: Path, images: int, pause: float) -> str:
    """A worker that does not see the shared folder is found before work begins."""
    work = Work(folder, "unshared", images)
    with dask_cluster(folder, 1) as dask:
        if not dask.separate:
            return "skipped: needs root on Linux"
        dask.add(hide=work.folder)
        wait_for_workers(dask.address, 2)
        return f"'{_refused(lambda: work.run('dask', dask.address))}'; {work.calls()}"


def check_ray(folder: Path, images: int, pause: float) -> str:
    """Ray on this machine."""
    work = Work(folder, "ray", images)
    work.run("ray")
    return f"{work.calls()}; {_compared(work, folder, images)}"


def check_limits(folder: Path, images: int, pause: float) -> str:
    """1000 workers' worth of units without work inside, and the store by itself."""
    count = 5 * _SLOTS
    with dask_cluster(folder, 0) as dask:
        for _ in range(4):
            dask.add("--nthreads", str(_SLOTS // 4))
        wait_for_workers(dask.address, 4)
        seconds = {}
        with cluster("dask", dask.address, 1, folder / "limits"):
            for pause in (0.0, _SECONDS):
                begun = time.monotonic()
                list(parallel_map(partial(_pause, pause), range(count), 1, f"units of {pause} s", portable=True))
                seconds[pause] = time.monotonic() - begun
    store = Store(folder / "limits", "proposals", {}, ".npy")
    boxes = np.zeros((2000, 4), np.float32)
    begun = time.monotonic()
    names = [f"image-{i}" for i in range(20_000)]
    for name in names:
        store.write(name, boxes)
    writing, begun = time.monotonic() - begun, time.monotonic()
    store.missing(names)
    listing = time.monotonic() - begun
    at_work = count * _SECONDS / _SLOTS / seconds[_SECONDS]
    return (
        f"{count / seconds[0.0]:.0f} units/s of nothing; {count} units of {_SECONDS:g} s on {_SLOTS} simulated workers "
        f"in {seconds[_SECONDS]:.0f} s, {at_work:.0%} of it at work; store: {len(names) / writing:.0f} entries/s "
        f"written by one process, {len(names) / listing:.0f} entries/s listed"
    )


def _pause(seconds: float, _: int) -> None:
    time.sleep(seconds)


def _refused(action: Callable[[], object]) -> str:
    """Return the message of the error that ``action`` must raise."""
    try:
        action()
    except SppdetError as error:
        return str(error)
    raise AssertionError("no error was raised")


def _compared(work: Work, folder: Path, images: int) -> str:
    """Say whether the stored files are, bit for bit, those of processes."""
    alone = Work(folder, "processes", images)
    alone.run("processes", workers=1)
    return "same bits as processes" if work.content() == alone.content() else "NOT THE BITS OF PROCESSES"


PARTS = {
    "dask": check_dask,
    "scheduler": check_scheduler,
    "unshared": check_unshared,
    "ray": check_ray,
    "limits": check_limits,
}


def main() -> None:
    """Run the parts that were asked for and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a folder for images and results; its content may be replaced")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"some of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--images", type=int, default=80)
    parser.add_argument("--pause", type=float, default=1.0, help="seconds that each image takes longer")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    lines = []
    for part in options.parts or PARTS:
        lines.append(f"| {part} | {PARTS[part](options.folder.absolute(), options.images, options.pause)} |")
        print(lines[-1], flush=True)
    print("\n| part | result |", "|---|---|", *lines, sep="\n")


if __name__ == "__main__":
    import check_cluster  # as workers import it

    check_cluster.main()
