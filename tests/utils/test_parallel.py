"""One helper for work over many images: results in order, errors raised, thread counts restored."""

from __future__ import annotations

import os
import threading

import cv2
import pytest
import torch

from sppdet.utils.parallel import parallel_map, share, side_by_side, worker_count


def test_worker_count():
    assert worker_count(3) == 3
    assert 1 <= worker_count(0) <= os.cpu_count()


@pytest.mark.parametrize("workers", [1, 2, 0])
def test_threads_keep_the_order(workers):
    first_waits = threading.Event()

    def work(i: int) -> int:
        if i == 0 and workers == 2:
            first_waits.wait(5)  # the later items overtake the first one
        else:
            first_waits.set()
        return i * i

    assert list(parallel_map(work, range(20), workers, "squares", threads=True)) == [i * i for i in range(20)]


def test_processes_see_plain_data_and_keep_the_order():
    assert list(parallel_map(abs, [-3, 2, -1], 2, "absolute values")) == [3, 2, 1]


@pytest.mark.parametrize("threads", [True, False])
def test_no_items(threads):
    assert list(parallel_map(abs, [], 4, "nothing", threads=threads)) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_reaches_the_caller(workers):
    with pytest.raises(ZeroDivisionError):
        list(parallel_map(lambda i: 1 / i, [2, 1, 0], workers, "inverses", threads=True))


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


def test_workers_have_one_thread_each_and_the_callers_count_comes_back(two_threads):
    counts = list(parallel_map(lambda i: torch.get_num_threads(), range(4), 2, "threads", threads=True))
    assert counts == [1, 1, 1, 1]
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("threads", [1, 2])
def test_side_by_side_takes_the_threads_at_hand_one_for_each_item(two_threads, threads):
    torch.set_num_threads(threads)
    meet, seen = threading.Barrier(threads), []

    def work(i: int) -> None:
        meet.wait(5)  # returns only once as many are at work
        seen.append((i, torch.get_num_threads()))

    side_by_side(work, range(6))
    assert sorted(seen) == [(i, 1) for i in range(6)]
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("call", [share, side_by_side])
@pytest.mark.parametrize("threads", [1, 2])
def test_an_error_of_any_thread_reaches_the_caller(two_threads, call, threads):
    torch.set_num_threads(threads)
    with pytest.raises(ZeroDivisionError):
        call(lambda i: 1 / i, [2, 1, 0])
    assert torch.get_num_threads() == threads
