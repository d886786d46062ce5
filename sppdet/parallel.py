"""Work over many pictures: one helper on joblib, with progress and results in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import joblib
import torch
from tqdm import tqdm


def worker_count(workers: int) -> int:
    """The config's ``workers``: 0 means every core this process may use."""
    return workers if workers > 0 else joblib.cpu_count()


def run(function: Callable, items: Sequence, workers: int, description: str, threads: bool = False) -> Iterator:
    """Yield ``function(item)`` for every item, in order, computed by ``workers`` processes or threads.

    Threads suit work that releases the interpreter's lock and shares large arrays, processes the rest. Each worker
    is held to one thread of the libraries below it, so that the cores are not fought over. A unit of work that
    writes its result to a store may be done twice without harm, and an interrupted run goes on where it stopped.
    """
    workers = min(worker_count(workers), max(1, len(items)))
    progress = tqdm(total=len(items), desc=description, disable=not items, mininterval=0.5, unit="")
    with progress:
        for result in _results(function, items, workers, threads):
            progress.update()
            yield result


def _results(function: Callable, items: Sequence, workers: int, threads: bool) -> Iterator:
    if workers == 1:
        yield from map(function, items)
        return
    backend = {"backend": "threading"} if threads else {"backend": "loky", "inner_max_num_threads": 1}
    own_threads = torch.get_num_threads()
    try:
        with joblib.parallel_config(**backend):
            pool = joblib.Parallel(n_jobs=workers, return_as="generator")
            yield from pool(joblib.delayed(_single_threaded)(function, item) for item in items)
    finally:
        torch.set_num_threads(own_threads)


def _single_threaded(function: Callable, item):
    # OpenMP's setting belongs to the calling thread, so every worker has to make it for itself.
    if torch.get_num_threads() != 1:
        torch.set_num_threads(1)
    return function(item)
