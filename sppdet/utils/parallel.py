"""Parallel work: over many images in processes or threads, with progress and results in order, and over rows."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from threading import Thread
from typing import TypeVar

import joblib
import torch

from sppdet.utils.progress import bar

Item = TypeVar("Item")
Result = TypeVar("Result")

_FEW = 3  # items for which each is computed with all cores, one after the other


def worker_count(workers: int) -> int:
    """Return the number of workers that the setting ``workers`` asks for: 0 takes every core of this process.

    Examples:
        >>> worker_count(2)
        2
    """
    return workers if workers > 0 else joblib.cpu_count()


def thread_count() -> int:
    """Return the number of threads that the calling thread may use: every core, or one in a worker of this module."""
    return torch.get_num_threads()


def parallel_map(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int, description: str, threads: bool = False
) -> Iterator[Result]:
    """Yield ``function(item)`` for every item, in order, computed by several workers, with a progress bar.

    Threads suit work that releases the interpreter's lock and shares large arrays; processes suit all other work.
    Libraries use one thread in each worker, so that workers do not compete for cores. A function that writes its
    result to a store may be called twice for one item without harm, so that an interrupted run can be repeated.

    Args:
        function: the work; with processes it must be picklable, as must items and results.
        items: arguments of ``function``.
        workers: number of processes or threads; 0 takes every core.
        description: text in front of the progress bar.
        threads: use threads instead of processes.

    Yields:
        Results, in the order of the items.

    Examples:
        >>> list(parallel_map(abs, [-3, 2, -1], 2, "absolute values", threads=True))
        [3, 2, 1]
    """
    workers = min(worker_count(workers), max(1, len(items)))
    with bar(len(items), description) as count:
        for result in _results(function, items, workers, threads):
            count()
            yield result


def few_or_many(function: Callable[[Item], Result], items: Sequence[Item], description: str) -> Iterator[Result]:
    """Yield ``function(item)`` in order: up to three items one by one with all cores, more in parallel threads.

    For commands that take images as arguments. A worker holds one image and returns a small result, so memory does not
    grow with the number of images.

    Args:
        function: the work.
        items: arguments of ``function``.
        description: text in front of the progress bar, which is shown for more than three items.
    """
    return map(function, items) if len(items) <= _FEW else parallel_map(function, items, 0, description, threads=True)


def _results(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int, threads: bool
) -> Iterator[Result]:
    """Yield results in order, from threads, processes or, with one worker and no threads, from the caller."""
    if threads:
        # A single worker is a thread too: the number of threads of a library changes the last bits of its products.
        return in_threads(function, items, workers)
    return _in_processes(function, items, workers) if workers > 1 else map(function, items)


def _in_processes(function: Callable[[Item], Result], items: Sequence[Item], workers: int) -> Iterator[Result]:
    """Yield results in order, computed by processes."""
    work = partial(_with_one_opencv_thread, function)
    with joblib.parallel_config(backend="loky", inner_max_num_threads=1):
        pool = joblib.Parallel(n_jobs=workers, return_as="generator")
        yield from pool(joblib.delayed(work)(item) for item in items)


def _with_one_opencv_thread(function: Callable[[Item], Result], item: Item) -> Result:
    """Return ``function(item)``, computed with one thread of OpenCV, which ignores the limit that joblib sets."""
    import cv2

    cv2.setNumThreads(1)
    return function(item)


def in_threads(function: Callable[[Item], Result], items: Sequence[Item], workers: int) -> Iterator[Result]:
    """Yield ``function(item)`` for every item, in order, computed ahead by threads.

    At most ``2 * workers`` results wait for the consumer, so memory does not grow when the consumer is slow. Each
    worker has one thread of torch and of OpenCV; the caller's numbers of threads are restored at the end.

    Args:
        function: the work.
        items: arguments of ``function``.
        workers: number of threads, 1 or more.
    """
    import cv2

    torch_threads, opencv_threads = torch.get_num_threads(), cv2.getNumThreads()
    cv2.setNumThreads(1)  # holds for every thread of the process
    # OpenMP's number of threads belongs to the thread that sets it, so every worker sets it for itself.
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            if len(waiting) == 2 * workers:
                yield waiting.popleft().result()
            waiting.append(pool.submit(function, item))
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(torch_threads)
        cv2.setNumThreads(opencv_threads)


def share(function: Callable[[Item], object], items: Sequence[Item]) -> None:
    """Call ``function`` on every item, shared among as many threads as `thread_count` says.

    For compiled code that releases the interpreter's lock. Order and thread of an item are not fixed.

    Raises:
        Exception: the first one that ``function`` raised, once all threads have stopped; remaining items are skipped.
    """
    remaining = iter(items)  # its next() holds the interpreter's lock, so no item is taken twice
    errors: list[Exception] = []

    def take() -> None:
        try:
            for item in remaining:
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


def side_by_side(function: Callable[[Item], object], items: Sequence[Item]) -> None:
    """Call ``function`` on every item as `share` does, with one thread of torch for each item.

    For functions that call torch too. Several threads of torch that work on one item wait for each other actively,
    which takes cores from compiled code.

    Raises:
        Exception: the first one that ``function`` raised, once all threads have stopped.
    """
    caller_threads = thread_count()

    def with_one_thread(item: Item) -> None:
        torch.set_num_threads(1)  # of the calling thread
        function(item)

    try:
        share(with_one_thread, items)
    finally:
        torch.set_num_threads(caller_threads)
