"""How much a scheduler, the store and the calling machine can take, each measured by itself."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import psutil

from cluster_checks.machines import DaskCluster, cluster_of, wait_for_workers
from sppdet.features.store import Store
from sppdet.training.locations import LOCATION
from sppdet.training.sample_cache import SampleCache
from sppdet.utils import cluster, parallel_map

_SLOTS, _SECONDS = 1000, 1.0  # simulated workers, and what a unit takes them


def measure_limits(folder: Path, images: int, pause: float) -> str:
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
