"""Clusters for work over many images: Dask's, through its backend in joblib, and Ray's.

Within `cluster`, `sppdet.utils.parallel_map` sends portable work there. A unit of such work is a function of an image,
or of a class, and plain data. It reads what it needs from a folder that all machines share, and returns a small result
or writes a large one atomically into that folder. So a unit that is done twice does no harm, and an interrupted run
goes on from what is stored.
"""

from __future__ import annotations

import logging
import os
import pickle
import platform
import sys
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache, lru_cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, TypeVar
from uuid import uuid4

from sppdet.utils.errors import SppdetError
from sppdet.utils.files import atomic_write

Item = TypeVar("Item")
Result = TypeVar("Result")

_ANSWER = 20.0  # seconds in which a cluster must answer, and have a worker
_QUEUE = 32  # units that are sent ahead per core: work for machines that join later
# The scheduler's limit is tasks, of which each core should have a few for cores to end at the same time: so where there
# are more units, a task has several. (By itself joblib puts only units together that take less than 0.2 s.)
_TASKS, _MOST_TOGETHER = 8, 16
_RETRIES = 5  # of a unit of Ray whose worker has died

_active: Cluster | None = None


def active_cluster() -> Cluster | None:
    """Return the cluster of the `cluster` block that is being executed, None outside of any."""
    return _active


@contextmanager
def cluster(engine: str, address: str | None, workers: int, folder: Path) -> Iterator[None]:
    """Let `sppdet.utils.parallel_map` send its portable work to a cluster until the block ends.

    Args:
        engine: ``dask``, ``ray``, or ``processes``, with which the block changes nothing.
        address: where the cluster answers, such as ``tcp://host:8786``; None starts one on this machine for the block.
        workers: processes of a cluster that is started here; 0 is one per core.
        folder: the cache, in which all machines must see the same files.

    Raises:
        SppdetError: the engine is not installed, the cluster does not answer, or a worker does not see ``folder``,
            all before the block is entered.
    """
    global _active
    if engine == "processes" or _active is not None:  # in a block already
        yield
        return
    from sppdet.utils.parallel import worker_count

    opened = _ENGINES[engine](address, worker_count(workers))
    # Of this run alone: a folder that only looks alike does not have it.
    token = folder.absolute() / f"shared-{uuid4().hex}"
    try:
        atomic_write(token, lambda temporary: temporary.write_text(token.name))
        opened.token = token
        opened.check()
        _active = opened
        yield
    finally:
        _active = None
        token.unlink(missing_ok=True)
        opened.close()


def require_engine(engine: str) -> None:
    """Check that the package of an engine is installed.

    Raises:
        SppdetError: it is not.
    """
    if engine in _ENGINES and not find_spec(_ENGINES[engine].package):
        raise _not_installed(engine)


def _not_installed(engine: str) -> SppdetError:
    return SppdetError(f"run.engine: {engine} is not installed; pip install 'sppdet[{engine}]'")


class Cluster(ABC):
    """A cluster to which work can be sent.

    Args:
        address: where it answers; None starts one on this machine.
        workers: processes of a cluster that is started here.

    Attributes:
        name: of the engine.
        package: that holds it.
        token: the file that workers must see.

    Raises:
        SppdetError: the engine is not installed, or the cluster does not answer.
    """

    name: ClassVar[str]
    package: ClassVar[str]
    token: Path

    def __init__(self, address: str | None, workers: int):
        self.address = address
        try:
            self._connect(workers)
        except ImportError:
            raise _not_installed(self.name) from None
        except Exception as error:  # Ray raises errors of any kind
            raise SppdetError(
                f"run.cluster: {address or self.name} does not answer ({_first_line(error)}); start it, correct the "
                "address, or set run.engine=processes"
            ) from None

    @abstractmethod
    def _connect(self, workers: int) -> None:
        """Connect to the cluster, or start one, and wait for a worker."""

    @abstractmethod
    def check(self) -> None:
        """Check that the workers have the packages and see the shared folder.

        Raises:
            SppdetError: one of them has or does not.
        """

    @abstractmethod
    def run(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        """Yield ``function(item)`` for every item, in order, computed by the cluster."""

    @abstractmethod
    def close(self) -> None:
        """End the connection, and the cluster if it was started here."""

    @contextmanager
    def _lost(self, *errors: type[BaseException]) -> Iterator[None]:
        """Turn the errors of a cluster that has died into one line."""
        try:
            yield
        except errors as error:
            raise SppdetError(
                f"run.cluster: {self.address or self.name} was lost ({_first_line(error)}); what is stored stays: "
                "start the cluster and run the same command to resume"
            ) from None


class _Dask(Cluster):
    name, package = "dask", "distributed"

    def _connect(self, workers: int) -> None:
        from distributed import Client

        for name in ("distributed", "distributed.client"):  # whose errors reach the caller, too
            logging.getLogger(name).setLevel(logging.CRITICAL)
        if self.address is None:
            self._client = Client(n_workers=workers, threads_per_worker=1, dashboard_address=None)
        else:
            self._client = Client(self.address, timeout=_ANSWER, set_as_default=False)
        self._client.wait_for_workers(1, timeout=_ANSWER)

    def check(self) -> None:
        # What a function refers to is imported when it arrives. Dask gives up transfers that take as long as torch.
        modules = sorted(name for name in sys.modules if name.startswith("sppdet."))
        with self._lost(OSError, TimeoutError):
            for worker, error in self._client.run(_import, modules, on_error="return").items():
                if error:
                    raise SppdetError(
                        f"run.cluster: the worker {worker} cannot import what is needed ({_first_line(error)}); "
                        "install the same packages on all machines"
                    )
            for worker, problem in self._client.run(_problem, self.token, on_error="return").items():
                if problem:
                    raise SppdetError(f"run.cluster: the worker {worker} {problem}")

    def run(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        import joblib
        from cloudpickle import dumps
        from distributed.client import CancelledError
        from distributed.scheduler import KilledWorker

        # As a task of its own, the function is sent to each worker once, and made again where its only holder has died.
        work = self._client.submit(_Work, dumps(function), self.token, pure=False)
        with self._lost(OSError, TimeoutError, KilledWorker):
            try:
                with joblib.parallel_config("dask", client=self._client):
                    batch = min(_MOST_TOGETHER, len(items) // (_TASKS * sum(self._client.nthreads().values()) or 1))
                    pool = joblib.Parallel(
                        return_as="generator",
                        pre_dispatch=f"{_QUEUE} * n_jobs",
                        batch_size=batch if batch > 1 else "auto",
                    )
                    yield from pool(joblib.delayed(_call)(work, item) for item in items)
            except CancelledError:
                raise OSError("its scheduler does not answer any more") from None

    def close(self) -> None:
        with suppress(Exception):  # of a cluster that is lost already
            self._client.close(timeout=_ANSWER)


class _Ray(Cluster):
    name = package = "ray"

    def _connect(self, workers: int) -> None:
        import ray

        local = {"num_cpus": workers, "include_dashboard": False} if self.address is None else {}
        ray.init(self.address, log_to_driver=False, logging_level="error", **local)

    def check(self) -> None:
        for problem in self._run(_problem, [self.token] * self._cores()):
            if problem:
                raise SppdetError(f"run.cluster: a worker {problem}")

    def run(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        import ray
        from ray.cloudpickle import dumps

        yield from self._run(_FetchedWork(ray.put(_Work(dumps(function), self.token))), items)

    def _run(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        """Yield results in order, as `run` does, of tasks that Ray gives to another worker where theirs has died.

        Not through joblib, whose backend for Ray ends when a worker dies, and returns no result before the last one.
        """
        import ray
        from ray.exceptions import RayError, RayTaskError

        task = ray.remote(num_cpus=1, max_retries=_RETRIES)(_call)
        waiting: deque[Any] = deque()
        with self._lost(OSError, TimeoutError, RayError):
            try:
                for number, item in enumerate(items):
                    if number % _QUEUE == 0:
                        cores = self._cores()  # more where machines have joined
                    while len(waiting) >= _QUEUE * cores:
                        yield ray.get(waiting.popleft())
                    waiting.append(task.remote(function, item))
                while waiting:
                    yield ray.get(waiting.popleft())
            except RayTaskError as error:
                raise error.cause from None

    def _cores(self) -> int:
        import ray

        return max(1, int(ray.cluster_resources().get("CPU", 1)))

    def close(self) -> None:
        import ray

        ray.shutdown()


_ENGINES: dict[str, type[Cluster]] = {"dask": _Dask, "ray": _Ray}


class _Work:
    """A function that a worker calls once it has seen the shared folder.

    A worker that joins late, after `Cluster.check`, is checked so, too. The function travels as bytes: workers hand it
    on to others while they call it, and it may keep what it has computed, so that it changes under the pickler.
    """

    def __init__(self, function: bytes, token: Path):
        self.function, self.token = function, token

    def __call__(self, item: Any) -> Any:
        from sppdet.utils.parallel import in_threads

        if problem := _problem(self.token):
            raise SppdetError(f"run.cluster: a worker {problem}")
        # As a thread of this machine does it: the number of threads changes the last bits of products.
        try:
            (result,) = in_threads(_unpacked(self.function), [item], 1)
        except OSError as error:  # an error of the unit, which is not to look like one of the connection
            raise SppdetError(f"{error.filename or self.token.parent}: {error.strerror or error}") from None
        return result


@lru_cache(1)
def _unpacked(function: bytes) -> Callable[[Any], Any]:
    """Return a function that was pickled, the same one for the same bytes."""
    return pickle.loads(function)


def _call(work: _Work, item: Any) -> Any:
    """Return ``work(item)``."""
    return work(item)


class _FetchedWork:
    """Work that Ray's workers fetch once from the store of objects."""

    def __init__(self, reference: Any):
        self.reference = reference

    def __call__(self, item: Any) -> Any:
        return _fetch(self.reference)(item)


@lru_cache(1)
def _fetch(reference: Any) -> _Work:
    import ray

    return ray.get(reference)


@cache
def _problem(token: Path) -> str | None:
    """Return what is wrong with the worker that calls this, None if it sees the file ``token``."""
    with suppress(OSError):
        if token.read_text() == token.name:
            return None
    return (
        f"on {platform.node()} (process {os.getpid()}) does not see the files of {token.parent}; give run.cache a "
        "folder that all machines share under one path"
    )


def _import(modules: list[str]) -> None:
    """Import modules."""
    for name in modules:
        import_module(name)


def _first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its kind."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
