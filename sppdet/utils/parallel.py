"""Parallel work: over many images in processes or threads, with progress and results in order, and over rows."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from threading import Lock, Thread, local
from typing import Any, TypeVar

from sppdet.utils.engines import active_cluster
from sppdet.utils.progress import bar

Item = TypeVar("Item")
Result = TypeVar("Result")

_threads = local()  # `count`: the number of threads of a thread that has set it, where torch is not loaded
_setting_threads = Lock()
_FEW = 3  # items for which each is computed with all cores, one after the other


def worker_count(workers: int) -> int:
    """Return the number of workers that the setting ``workers`` asks for: 0 takes every core of this process.

    Examples:
        >>> worker_count(2)
        2
    """
    if workers > 0:
        return workers
    from joblib import cpu_count  # joblib takes long to load

    return cpu_count()


def thread_count() -> int:
    """Return the number of threads that the calling thread may use: every core, or one in a worker of this module.

    It is torch's number where the program has loaded torch, which detection by itself does not.
    """
    torch = _loaded_torch()
    if torch is not None:
        return torch.get_num_threads()
    return getattr(_threads, "count", 0) or _default_count()


def set_thread_count(count: int) -> None:
    """Set the number of threads that the calling thread may use: what `thread_count` returns, and torch's number.

    torch would begin all later threads with this number, too, so another thread sets back what they begin with.
    """
    _threads.count = count
    torch = _loaded_torch()
    if torch is None or torch.get_num_threads() == count:
        return
    with _setting_threads, ThreadPoolExecutor(1) as other:
        of_later_threads = other.submit(torch.get_num_threads).result()
        torch.set_num_threads(count)
        other.submit(torch.set_num_threads, of_later_threads).result()


def _loaded_torch() -> Any:
    """Return torch if the program has loaded it, else None."""
    return sys.modules.get("torch")


def _default_count() -> int:
    """Return the number of threads that torch would begin with: ``OMP_NUM_THREADS``, or every core."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdecimal() and int(asked):
        return int(asked)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _one_blas_thread() -> AbstractContextManager[object]:
    """Hold numpy's products to one thread each, where torch, whose threads have their number, does not multiply."""
    if _loaded_torch() is not None or thread_count() == 1:
        return nullcontext()
    from threadpoolctl import threadpool_limits

    return threadpool_limits(1, "blas")


def parallel_map(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    workers: int,
    description: str,
    threads: bool = False,
    portable: bool = False,
) -> Iterator[Result]:
    """Yield ``function(item)`` for every item, in order, computed by several workers, with a progress bar.

    Threads suit work that releases the interpreter's lock and shares large arrays; processes suit all other work.
    Portable work goes to a cluster instead, within `sppdet.utils.cluster`.
    Libraries use one thread in each worker, so that workers do not compete for cores. A function that writes its
    result to a store may be called twice for one item without harm, so that an interrupted run can be repeated.

    Args:
        function: the work; with processes it must be picklable, as must items and results.
        items: arguments of ``function``.
        workers: number of processes or threads; 0 takes every core.
        description: text in front of the progress bar.
        threads: use threads instead of processes.
        portable: whether function, items and results can be pickled and are small enough to be sent to other machines.

    Yields:
        Results, in the order of the items.

    Examples:
        >>> list(parallel_map(abs, [-3, 2, -1], 2, "absolute values", threads=True))
        [3, 2, 1]
    """
    workers = min(worker_count(workers), max(1, len(items)))
    elsewhere = active_cluster() if portable and len(items) else None
    with bar(len(items), description) as count:
        for result in elsewhere.run(function, items) if elsewhere else _results(function, items, workers, threads):
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
    import joblib

    work = partial(_with_one_opencv_thread, function)
    with joblib.parallel_config(backend="loky", inner_max_num_threads=1):
        pool = joblib.Parallel(n_jobs=workers, return_as="generator")
        yield from pool(joblib.delayed(work)(item) for item in items)


def _with_one_opencv_thread(function: Callable[[Item], Result], item: Item) -> Result:
    """Return ``function(item)``, computed with one thread of OpenCV, which ignores the limit that joblib sets."""
    import cv2

    cv2.setNumThreads(1)
    return function(item)


def in_threads(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Generator[Result, None, None]:
    """Yield ``function(item)`` for every item, in order, computed ahead by threads.

    At most ``2 * workers`` results wait for the consumer, so memory does not grow when the consumer is slow. Each
    worker has one thread of torch, of numpy's products and of OpenCV; the caller's numbers of threads are restored at
    the end.

    Args:
        function: the work.
        items: arguments of ``function``, taken as they are needed.
        workers: number of threads, 1 or more.
    """
    import cv2

    caller_threads, opencv_threads = thread_count(), cv2.getNumThreads()
    cv2.setNumThreads(1)  # holds for every thread of the process
    # OpenMP's number of threads belongs to the thread that sets it, so every worker sets it for itself.
    pool = ThreadPoolExecutor(workers, initializer=set_thread_count, initargs=(1,))
    waiting: deque[Future[Result]] = deque()
    try:
        with _one_blas_thread():
            for item in items:
                if len(waiting) == 2 * workers:
                    yield waiting.popleft().result()
                waiting.append(pool.submit(function, item))
            while waiting:
                yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        set_thread_count(caller_threads)
        cv2.setNumThreads(opencv_threads)


def share(function: Callable[[Item], object], items: Sequence[Item]) -> None:
    """Call ``function`` on every item, shared among as many threads as `thread_count` says.

    For compiled code that releases the interpreter's lock. Order and thread of an item are not fixed.

    Raises:
        Exception: the first one that ``function`` raised, once all threads have stopped; remaining items are skipped.
    """
    _share(function, items, thread_count())


def _share(function: Callable[[Item], object], items: Sequence[Item], threads: int) -> None:
    """Call ``function`` on every item, see `share`."""
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

    helpers = [Thread(target=take) for _ in range(min(threads, len(items)) - 1)]
    for helper in helpers:
        helper.start()
    take()
    for helper in helpers:
        helper.join()
    if errors:
        raise errors[0]


def side_by_side(function: Callable[[Item], object], items: Sequence[Item]) -> None:
    """Call ``function`` on every item as `share` does, with one thread of torch, or of numpy's products, for each item.

    For functions that call these too. Several threads that work on one product wait for each other actively, which
    takes cores from compiled code.

    Raises:
        Exception: the first one that ``function`` raised, once all threads have stopped.
    """
    caller_threads = thread_count()

    def with_one_thread(item: Item) -> None:
        set_thread_count(1)
        function(item)

    try:
        with _one_blas_thread():
            _share(with_one_thread, items, caller_threads)
    finally:
        set_thread_count(caller_threads)
