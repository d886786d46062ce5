"""Check work on clusters: real schedulers and workers on this machine, which are killed, join late, and see no folder.

    python scripts/check_cluster.py FOLDER            # all parts, a table at the end
    python scripts/check_cluster.py FOLDER dask ray   # some of the parts, see PARTS

As root on Linux each worker of Dask and each node of Ray has a network namespace, linked by a bridge, and a working
folder of its own; all that it shares with the others is FOLDER. Elsewhere they are plain processes, and the table says
so. Both engines must be installed: pip install 'sppdet[dask,ray]'.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from threading import Thread
from typing import TypeVar
from uuid import uuid4

import numpy as np
import psutil
from safetensors import SafetensorError, safe_open

from sppdet.config import Config, override
from sppdet.data import make_shapes, read_dataset
from sppdet.features import entry_names
from sppdet.features.store import Store, fill
from sppdet.proposals import SelectiveSearch
from sppdet.training import run_training
from sppdet.training.locations import LOCATION
from sppdet.training.sample_cache import SampleCache
from sppdet.utils import SppdetError, cluster, parallel_map

_BRIDGE, _NETWORK = "sppdet-br", "10.77.0"
# Where workers import this file and the package from.
_PATH = os.pathsep.join([str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])])
_RAY = ("-m", "ray.scripts.scripts", "start", "--block", "--num-cpus", "1")
# Looking at the stacks of hundreds of threads a hundred times a second would take a simulated worker's time.
_NO_PROFILE = {"DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False"}
_SLOTS, _SECONDS = 1000, 1.0  # simulated workers, and what a unit takes them

Kind = TypeVar("Kind", "DaskCluster", "RayCluster")


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
        files |= {"run.engine": engine, "run.cluster": address or "null", "workers": workers}
        run_training(override(Config(), [*self.SETTINGS, *(f"{key}={value}" for key, value in files.items())]))

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


class Machines:
    """Processes that stand for machines; as root on Linux each in a network namespace of its own, but for the first.

    Args:
        folder: where each process has a working folder.

    Attributes:
        separate: whether they have namespaces.
        host: address of the first machine.
        workers: the processes that were added.
    """

    def __init__(self, folder: Path):
        self.folder, self.workers = folder, []
        self.separate = sys.platform == "linux" and os.geteuid() == 0 and shutil.which("ip") is not None
        self.host = f"{_NETWORK}.1" if self.separate else "127.0.0.1"
        if self.separate:
            _ip(f"link add {_BRIDGE} type bridge", f"addr add {self.host}/24 dev {_BRIDGE}", f"link set {_BRIDGE} up")
        with socket.socket() as free:
            free.bind((self.host, 0))
            self.port = free.getsockname()[1]

    @property
    def where(self) -> str:
        """Where the processes are, for the table."""
        return "in network namespaces" if self.separate else "as plain processes"

    def next_address(self) -> str:
        """Return the address of the machine that is added next."""
        return f"{_NETWORK}.{len(self.workers) + 2}" if self.separate else "127.0.0.1"

    def start_worker(self, *command: str, hide: Path | None = None) -> subprocess.Popen:
        """Start a process on a new machine, from which the content of the folder ``hide`` is hidden."""
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
        worker = self.start(name, *prefix, sys.executable, *command)
        self.workers.append(worker)
        return worker

    def start(self, name: str, *command: str) -> subprocess.Popen:
        """Start a process in a working folder of its own."""
        private = self.folder / "private" / name
        private.mkdir(parents=True, exist_ok=True)
        with open(private / "log", "w") as log:
            return subprocess.Popen(
                command, cwd=private, stdout=log, stderr=log,
                env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": _PATH} | _NO_PROFILE,
            )  # fmt: skip

    def close(self) -> None:
        """End all processes and namespaces."""
        for process in self.workers:
            kill(process)
        if self.separate:
            for number in range(len(self.workers)):  # a link would outlive its namespace by a moment
                _ip(f"link del sppdet-w{number + 2}", f"netns del sppdet-w{number + 2}")
            _ip(f"link del {_BRIDGE}")


def kill(process: subprocess.Popen) -> None:
    """Kill a process and all that it has started, as when a machine is switched off."""
    family: list[psutil.Process] = []
    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(process.pid)
        family += [parent, *parent.children(recursive=True)]
    for member in family:
        with suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()
    psutil.wait_procs(family, 10)


class DaskCluster(Machines):
    """A scheduler and workers of Dask."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.address = f"tcp://{self.host}:{self.port}"
        address = "--host", self.host, "--port", str(self.port), "--no-dashboard"
        self.scheduler = self.start("scheduler", sys.executable, "-m", "dask", "scheduler", *address)

    def add(self, *options: str, hide: Path | None = None) -> subprocess.Popen:
        """Start a worker; from one with ``hide``, the content of this folder is hidden."""
        number = f"w{len(self.workers) + 1}"
        options = ("--nthreads", "1", "--no-nanny", "--no-dashboard", "--name", number, *options)
        return self.start_worker("-m", "dask", "worker", self.address, *options, hide=hide)

    def tasks(self) -> dict[str, int]:
        """Return how many tasks each living worker has done; a task is one unit or several small ones."""
        from distributed import Client

        with Client(self.address, timeout=60, set_as_default=False) as client:
            names = {address: worker["name"] for address, worker in client.scheduler_info(-1)["workers"].items()}
            done = client.run(lambda dask_worker: dask_worker.state.executed_count)
        return {names[address]: count for address, count in sorted(done.items(), key=lambda item: names[item[0]])}

    def close(self) -> None:
        """End all processes and namespaces."""
        kill(self.scheduler)
        super().close()


class RayCluster(Machines):
    """A head and nodes of Ray, of one core each."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        # Ray's nodes and callers of one cluster share a token; read when ray is imported.
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid4().hex, "RAY_USAGE_STATS_ENABLED": "0"}
        self.address, self.files = f"{self.host}:{self.port}", tempfile.mkdtemp(prefix="ray-")
        self.head = self.start(
            "head", sys.executable, *_RAY, "--head", "--port", str(self.port), "--node-ip-address", self.host,
            "--include-dashboard", "false", "--temp-dir", self.files,
        )  # fmt: skip

    def add(self) -> subprocess.Popen:
        """Start a node."""
        return self.start_worker(*_RAY, "--address", self.address, "--node-ip-address", self.next_address())

    def wait(self, cores: int) -> None:
        """Wait until the cluster has as many cores."""
        import ray

        deadline = time.monotonic() + 180
        while True:
            try:
                ray.init(self.address, log_to_driver=False, logging_level="error")
                while ray.cluster_resources().get("CPU", 0) < cores:
                    if time.monotonic() > deadline:
                        raise TimeoutError(f"Ray has not {cores} cores")
                    time.sleep(0.5)
                return
            except ConnectionError:  # the head is starting
                if time.monotonic() > deadline:
                    raise
                time.sleep(1)
            finally:
                ray.shutdown()

    def close(self) -> None:
        """End all processes and namespaces."""
        kill(self.head)
        super().close()
        shutil.rmtree(self.files, ignore_errors=True)


def _ip(*commands: str) -> None:
    for command in commands:
        subprocess.run(["ip", *command.split()], check=True)


@contextmanager
def cluster_of(kind: type[Kind], folder: Path, workers: int) -> Iterator[Kind]:
    """Start a cluster for the block."""
    machines = kind(folder)
    try:
        for _ in range(workers):
            machines.add()
        yield machines
    finally:
        machines.close()


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


def wait_for_workers(address: str, count: int) -> None:
    """Wait until the scheduler has ``count`` workers."""
    from distributed import Client

    with Client(address, timeout=60, set_as_default=False) as client:
        client.wait_for_workers(count, timeout=180)


def check_dask(folder: Path, images: int, pause: float) -> str:
    """Four workers, one killed in mid-run, one joining late."""
    work = Work(folder, "dask", images, pause)
    with cluster_of(DaskCluster, folder, 4) as dask:
        wait_for_workers(dask.address, 4)

        def disturb() -> None:
            dask.workers[0].kill()
            dask.add()

        with at_entry(work, images // 8, disturb):
            work.run("dask", dask.address)
    return f"4 workers {dask.where}, 1 killed, 1 late: {work.calls()}; {_compared(work, folder, images)}"


def check_training(folder: Path, images: int, pause: float) -> str:
    """All stages of a training on four workers, one killed in the middle of mining, one joining late."""
    training = Training(folder, "training-dask", images)
    with cluster_of(DaskCluster, folder, 4) as dask:
        wait_for_workers(dask.address, 4)

        def disturb() -> None:
            kill(dask.workers[0])
            dask.add()

        with at_entry(training, 3, disturb):
            training.run("dask", dask.address)
        tasks = ", ".join(f"{name} {count}" for name, count in dask.tasks().items())
    return f"4 workers {dask.where}, w1 killed while mining, w5 late; tasks: {tasks}; {training.compared()}"


def check_scheduler(folder: Path, images: int, pause: float) -> str:
    """The scheduler dies in mid-run: one line; then another cluster goes on."""
    work = Work(folder, "scheduler", images, pause / 4)
    with cluster_of(DaskCluster, folder, 2) as dask, at_entry(work, images // 4, dask.scheduler.kill):
        begun = time.monotonic()
        line = _refused(lambda: work.run("dask", dask.address))
        seconds, before = time.monotonic() - begun, work.done
    work.run("dask")
    return f"after {seconds:.0f} s '{line}'; resumed from {before}: {work.calls()}; {_compared(work, folder, images)}"


def check_unshared(folder: Path, images: int, pause: float) -> str:
    """A worker that does not see the shared folder is found before work begins."""
    work = Work(folder, "unshared", images)
    with cluster_of(DaskCluster, folder, 1) as dask:
        if not dask.separate:
            return "skipped: needs root on Linux"
        dask.add(hide=work.folder)
        wait_for_workers(dask.address, 2)
        return f"'{_refused(lambda: work.run('dask', dask.address))}'; {work.calls()}"


def check_ray(folder: Path, images: int, pause: float) -> str:
    """Two nodes of Ray; a worker process and a node are killed in mid-run, and a node joins late."""
    work = Work(folder, "ray", images, pause)
    with cluster_of(RayCluster, folder, 1) as nodes:
        nodes.wait(2)

        def disturb() -> None:
            pid = int(next(work.compute.folder.iterdir()).name.split("-")[1])  # of a worker that has done some
            os.kill(pid, signal.SIGKILL)
            nodes.add()
            while work.done < images // 2:
                time.sleep(0.05)
            kill(nodes.workers[0])

        with at_entry(work, images // 8, disturb):
            work.run("ray", nodes.address)
    disturbed = f"2 nodes {nodes.where}, 1 worker killed, 1 node late, 1 node killed"
    return f"{disturbed}: {work.calls()}; {_compared(work, folder, images)}"


def check_ray_training(folder: Path, images: int, pause: float) -> str:
    """All stages of a training on Ray's two nodes, one killed in the middle of mining, one joining late."""
    training = Training(folder, "training-ray", images)
    with cluster_of(RayCluster, folder, 1) as nodes:
        nodes.wait(2)

        def disturb() -> None:
            nodes.add()
            kill(nodes.workers[0])

        with at_entry(training, 3, disturb):
            training.run("ray", nodes.address)
    return f"2 nodes {nodes.where}, 1 killed while mining, 1 late; {training.compared()}"


def check_limits(folder: Path, images: int, pause: float) -> str:
    """1000 workers' worth of units without work inside; the store, and the calling machine's list, by themselves."""
    shared = folder / "limits"
    shutil.rmtree(shared, ignore_errors=True)
    with cluster_of(DaskCluster, folder, 0) as dask:
        for _ in range(4):
            dask.add("--nthreads", str(_SLOTS // 4))
        wait_for_workers(dask.address, 4)
        scheduler, lines = psutil.Process(dask.scheduler.pid), []
        with cluster("dask", dask.address, 1, shared):
            list(parallel_map(partial(_unit, 0, 0), range(_SLOTS), 1, "workers start", portable=True))
            for count, seconds, size in ((5, 0, 0), (5, 0, 10_000), (3, _SECONDS, 0), (40, 0, 0)):
                units = range(count * _SLOTS)
                begun, of_scheduler, of_caller = time.monotonic(), sum(scheduler.cpu_times()[:2]), time.process_time()
                for _ in parallel_map(partial(_unit, seconds, size), units, 1, f"units of {seconds} s", portable=True):
                    pass
                passed = time.monotonic() - begun
                of_scheduler = (sum(scheduler.cpu_times()[:2]) - of_scheduler) / len(units) * 1e3
                of_caller = (time.process_time() - of_caller) / len(units) * 1e3
                lines.append(
                    f"{len(units)} units of {seconds:g} s and {size} bytes: {len(units) / passed:.0f} per s, processor "
                    f"time per unit {of_scheduler:.2f} ms of the scheduler and {of_caller:.2f} ms of the caller"
                )
    return f"{'; '.join(lines)}; store: {_store_rates(shared)}; list of windows: {_list_rate():.0f} images/s"


def _unit(seconds: float, size: int, _: int) -> bytes:
    """Wait, and return ``size`` bytes."""
    time.sleep(seconds)
    return bytes(size)


def _store_rates(folder: Path) -> str:
    """Say how fast one process writes, lists and reads entries of proposals, and writes entries of maps."""
    proposals, maps = Store(folder, "proposals", {}, ".npy"), Store(folder, "crops", {}, ".rows")
    boxes, rows = np.zeros((2000, 4), np.float32), np.random.default_rng(0).normal(size=(250, 1000)).astype(np.float16)
    names = [f"image-{i}" for i in range(4000)]

    def rate(function: Callable[[str], object], names: list[str]) -> float:
        begun = time.monotonic()
        for name in names:
            function(name)
        return len(names) / (time.monotonic() - begun)

    written, read = rate(lambda name: proposals.write(name, boxes), names), rate(proposals.read, names)
    large = rate(lambda name: maps.write(name, rows), names[:200])
    begun = time.monotonic()
    proposals.missing(names)
    listed, size = len(names) / (time.monotonic() - begun), maps.size(names[:200]) / 200e6
    return (
        f"one process writes {written:.0f}, reads {read:.0f} and lists {listed:.0f} entries/s of 32 kB, writes "
        f"{large:.0f} entries/s of {size:.1f} MB"
    )


def _list_rate() -> float:
    """Return how many images per second of processor time are added to the list of windows: 50 windows each."""
    classes, windows, images = 20, 50, 2000
    cache = SampleCache(np.zeros(0, LOCATION), np.zeros(0, np.int64), classes)
    rng, rows, locations = np.random.default_rng(0), np.arange(windows), np.zeros(windows, LOCATION)
    hard, score = rng.random((windows, classes)) < 1.2 / classes, rng.random((windows, classes), np.float32)
    begun = time.process_time()
    for i in range(images):
        locations["image"] = i
        cache.add(rows, locations, hard, score)
        for k in range(classes):
            cache.trim(k, 3000)
        cache.collect()
    return images / (time.process_time() - begun)


def _refused(action: Callable[[], object]) -> str:
    """Return the message of the error that ``action`` must raise."""
    try:
        action()
    except SppdetError as error:
        return str(error)
    raise AssertionError("no error was raised")


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _compared(work: Work, folder: Path, images: int) -> str:
    """Say whether the stored files are, bit for bit, those of processes."""
    alone = Work(folder, "processes", images)
    alone.run("processes", workers=1)
    return "same bits as processes" if work.content() == alone.content() else "NOT THE BITS OF PROCESSES"


PARTS = {
    "dask": check_dask,
    "training": check_training,
    "scheduler": check_scheduler,
    "unshared": check_unshared,
    "ray": check_ray,
    "ray-training": check_ray_training,
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
