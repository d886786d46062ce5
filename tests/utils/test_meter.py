"""Seconds and peak memory of a block, measured with a clock and processes whose values are known."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import psutil
import pytest

from sppdet.utils import meter as module
from sppdet.utils.meter import Meter

MB = 2**20


class Processes:
    """This process, one child, and one child that has ended; ``sizes`` are the totals of successive samples, in MB."""

    def __init__(self, sizes: list[int]):
        self.sizes = sizes
        self.samples = 0
        self.all_sampled = threading.Event()

    def __call__(self) -> Processes:
        return self

    def children(self, recursive: bool) -> list:
        assert recursive
        return [SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=10 * MB)), SimpleNamespace(memory_info=ended)]

    def memory_info(self) -> SimpleNamespace:
        size = self.sizes[min(self.samples, len(self.sizes) - 1)]
        self.samples += 1
        if self.samples > len(self.sizes):
            self.all_sampled.set()
        return SimpleNamespace(rss=(size - 10) * MB)


def ended():
    raise psutil.NoSuchProcess(1)


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """The time in seconds, as the only entry of a list."""
    now = [100.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    return now


@pytest.mark.parametrize("sizes", [[300, 50, 20], [50, 300, 20], [20, 50, 300]])
def test_the_peak_is_the_largest_sample_of_all_processes(monkeypatch, sizes):
    processes = Processes(sizes)
    monkeypatch.setattr(module.psutil, "Process", processes)
    monkeypatch.setattr(module, "_INTERVAL", 0.001)
    with Meter() as meter:
        assert processes.all_sampled.wait(5)
    assert meter.peak_memory_mb == 300
    assert meter.cost()["peak_memory_mb"] == 300


def test_sampling_ends_with_the_block():
    with Meter() as meter:
        assert meter._sampler.is_alive()
    assert not meter._sampler.is_alive()


def test_seconds_are_those_of_the_block(clock):
    meter = Meter()
    clock[0] = 107.0  # before the block
    with meter:
        assert meter.seconds == 0
        clock[0] += 2.26
    clock[0] += 5
    assert meter.seconds == pytest.approx(2.26)
    assert meter.cost()["seconds"] == 2.3


def test_a_block_that_fails_is_measured_too(clock):
    with pytest.raises(ZeroDivisionError), Meter() as meter:
        clock[0] += 1.5
        raise ZeroDivisionError
    assert meter.seconds == 1.5


def test_a_meter_can_be_used_again(clock):
    meter = Meter()
    for duration in (3.0, 1.0):
        with meter:
            clock[0] += duration
        assert meter.seconds == duration
