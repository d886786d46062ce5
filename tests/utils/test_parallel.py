"""Parallel work: results in order, errors raised, numbers of threads restored."""

from __future__ import annotations

import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import cv2
import joblib
import pytest
import torch

from sppdet.utils.parallel import (
    few_or_many,
    in_threads,
    parallel_map,
    set_thread_count,
    share,
    side_by_side,
    thread_count,
    worker_count,
)


def test_zero_workers_are_every_core():
    assert worker_count(3) == 3
    assert worker_count(0) == joblib.cpu_count()


@pytest.mark.parametrize("workers", [1, 2, 0])
def test_threads_keep_the_order(workers):
    later_item_runs = threading.Event()

    def square(i: int) -> int:
        if i == 0 and workers == 2:
            later_item_runs.wait(5)  # the later items overtake the first one
        else:
            later_item_runs.set()
        return i * i

    assert list(parallel_map(square, range(20), workers, "squares", threads=True)) == [i * i for i in range(20)]


def test_processes_keep_the_order():
    assert list(parallel_map(abs, [-3, 2, -1], 2, "absolute values")) == [3, 2, 1]


@pytest.mark.parametrize("threads", [True, False])
def test_no_items_have_no_results(threads):
    assert list(parallel_map(abs, [], 4, "nothing", threads=threads)) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_reaches_the_caller(workers):
    with pytest.raises(ZeroDivisionError):
        list(parallel_map(lambda i: 1 / i, [2, 1, 0], workers, "inverses", threads=True))


@pytest.mark.parametrize(("count", "threads"), [(3, 2), (4, 1)])
def test_a_few_items_have_all_threads_each_and_many_have_one(two_threads, count, threads):
    results = few_or_many(lambda item: (item, torch.get_num_threads()), range(count), "items")
    assert list(results) == [(i, threads) for i in range(count)]


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def opencv_threads(_) -> int:
    return cv2.getNumThreads()


@pytest.mark.parametrize("threads", [True, False])
def test_opencv_has_one_thread_in_a_worker(threads):
    before = cv2.getNumThreads()
    assert list(parallel_map(opencv_threads, range(4), 2, "threads", threads)) == [1, 1, 1, 1]
    assert cv2.getNumThreads() == before


def test_torch_has_one_thread_in_a_worker_and_the_callers_number_is_restored(two_threads):
    counts = list(parallel_map(lambda i: thread_count(), range(4), 2, "threads", threads=True))
    assert counts == [1, 1, 1, 1]
    assert thread_count() == 2


def test_threads_that_begin_later_have_all_threads_though_others_have_one(two_threads):
    """torch gives them what was set last, in whatever thread."""
    with ThreadPoolExecutor(1) as other:
        other.submit(set_thread_count, 1).result()
        with ThreadPoolExecutor(1) as later:
            assert later.submit(torch.get_num_threads).result() == 2
        assert other.submit(torch.get_num_threads).result() == 1
    assert thread_count() == 2


def test_at_most_twice_as_many_results_as_workers_wait_for_the_consumer():
    started = []
    results = in_threads(started.append, range(20), 2)
    for consumed in range(1, 4):
        next(results)
        deadline = time.monotonic() + 5
        while len(started) < consumed + 3 and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.01)  # a thread that ran further ahead would start now
        assert sorted(started) == list(range(consumed + 3))
    results.close()
    assert len(started) == 6  # the rest was never begun


@pytest.mark.parametrize("threads", [1, 2])
def test_side_by_side_uses_all_threads_with_one_of_torch_for_each_item(two_threads, threads):
    torch.set_num_threads(threads)
    all_at_work, calls = threading.Barrier(threads), []

    def work(i: int) -> None:
        all_at_work.wait(5)  # returns once as many threads are here
        calls.append((i, torch.get_num_threads()))

    side_by_side(work, range(6))
    assert sorted(calls) == [(i, 1) for i in range(6)]
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("threads", [1, 2])
def test_share_calls_the_function_once_for_every_item(two_threads, threads):
    torch.set_num_threads(threads)
    items = []
    share(items.append, range(100))
    assert sorted(items) == list(range(100))


@pytest.mark.parametrize("call", [share, side_by_side])
@pytest.mark.parametrize("threads", [1, 2])
def test_an_error_of_any_thread_reaches_the_caller(two_threads, call, threads):
    torch.set_num_threads(threads)
    with pytest.raises(ZeroDivisionError):
        call(lambda i: 1 / i, [2, 1, 0])
    assert torch.get_num_threads() == threads


def test_numbers_of_threads_without_torch(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    set_thread_count(0)  # as in a thread that has set none
    assert thread_count() == 3
    inside: list[int] = []
    try:
        side_by_side(lambda item: inside.append(thread_count()), range(5))
        assert inside == [1] * 5 and thread_count() == 3
        assert [*in_threads(lambda item: thread_count(), range(4), 2)] == [1] * 4 and thread_count() == 3
        set_thread_count(2)
        assert thread_count() == 2
    finally:
        set_thread_count(0)
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    assert thread_count() >= 1
