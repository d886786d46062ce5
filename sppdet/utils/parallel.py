"""Work over many images: one helper on joblib, with progress and results in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from threading import Thread

import joblib
import torch
from tqdm import tqdm

_FEW = 3


def worker_count(workers: int) -> int:
    """The config's ``workers``: 0 means every core this process may use."""
    return workers if workers > 0 else joblib.cpu_count()


def thread_count() -> int:
    """How many threads the work at hand may use: every core, or one in a worker of :func:`run`."""
    return torch.get_num_threads()


def parallel_map(
    function: Callable, items: Sequence, workers: int, description: str, threads: bool = False
) -> Iterator:
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


def few_or_many(function: Callable, items: Sequence, description: str) -> Iterator:
    """Yield ``function(item)`` in order: a few items with all cores each, many side by side with a progress bar.

    For commands that are given images. A worker holds one and hands back a few numbers, so memory does not grow.
    """
    return map(function, items) if len(items) <= _FEW else parallel_map(function, items, 0, description, threads=True)


def _results(function: Callable, items: Sequence, workers: int, threads: bool) -> Iterator:
    # One worker computes in a thread as well: the library's threads change the last bits of a product.
    if threads:
        return in_threads(function, items, workers)
    return _in_processes(function, items, workers) if workers > 1 else map(function, items)


def _in_processes(function: Callable, items: Sequence, workers: int) -> Iterator:
    function = partial(_with_one_thread, function)
    with joblib.parallel_config(backend="loky", inner_max_num_threads=1):
        pool = joblib.Parallel(n_jobs=workers, return_as="generator")
        yield from pool(joblib.delayed(function)(item) for item in items)


def _with_one_thread(function: Callable, item):
    import cv2  # which takes no notice of what joblib sets

    cv2.setNumThreads(1)
    return function(item)


def in_threads(function: Callable, items: Sequence, workers: int) -> Iterator:
    """At most twice ``workers`` results wait for the consumer, so memory stays flat however slow that is."""
    import cv2

    own_threads, of_opencv = torch.get_num_threads(), cv2.getNumThreads()
    cv2.setNumThreads(1)  # of all threads
    # OpenMP's setting belongs to the calling thread, so every worker makes it for itself.
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
    waiting: deque[Future] = deque()
    try:
        for item in items:
            if len(waiting) == 2 * workers:
                yield waiting.popleft().result()
            waiting.append(pool.submit(function, item))
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(own_threads)
        cv2.setNumThreads(of_opencv)


def share(function: Callable, items: Sequence) -> None:
    """Call ``function`` on every item in this thread and, where the work at hand may use more, in others beside it.

    For compiled code. An error ends the work and is raised once all threads have stopped.
    """
    left, errors = iter(items), []  # its next() holds the interpreter's lock: no item is taken twice

    def take() -> None:
        try:
            for item in left:
                if errors:
                    break
                function(item)
        except Exception as error:
            errors.append(error)

    helpers = [Thread(target=take) for _ in range(min(thread_count(), len(items)) - 1)]
    for helper in helpers:
        helper.start()
    take()
    for helper in helpers:
        helper.join()
    if errors:
        raise errors[0]


def side_by_side(function: Callable, items: Sequence) -> None:
    """The same where ``function`` calls torch, too: with one thread of it for each item.

    Threads of torch that would share an item wait for each other's, actively, and so take cores from compiled code.
    """
    own_threads = thread_count()

    def alone(item) -> None:
        torch.set_num_threads(1)  # of the thread that calls
        function(item)

    try:
        share(alone, items)
    finally:
        torch.set_num_threads(own_threads)
