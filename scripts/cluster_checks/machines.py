"""Clusters on one machine: schedulers, workers and nodes as processes, where possible in network namespaces."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

import psutil

_BRIDGE, _NETWORK = "sppdet-br", "10.77.0"
# Where workers import this folder and the package from.
_PATH = os.pathsep.join(str(Path(__file__).resolve().parents[level]) for level in (1, 2))
_RAY = ("-m", "ray.scripts.scripts", "start", "--block", "--num-cpus", "1")
# Looking at the stacks of hundreds of threads a hundred times a second would take a simulated worker's time.
_NO_PROFILE = {"DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False"}

Kind = TypeVar("Kind", "DaskCluster", "RayCluster")


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
        self.folder = folder
        self.workers: list[subprocess.Popen] = []
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
        name = f"sppdet-w{number}"
        prefix: list[str] = []
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


def wait_for_workers(address: str, count: int) -> None:
    """Wait until the scheduler has ``count`` workers."""
    from distributed import Client

    with Client(address, timeout=60, set_as_default=False) as client:
        client.wait_for_workers(count, timeout=180)
