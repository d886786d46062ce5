"""The cost of a stage: seconds and peak memory, worker processes included."""

from __future__ import annotations

import threading
import time

import psutil

_INTERVAL = 0.2  # seconds between two samples of the memory


class Meter:
    """Context manager that measures the time and the peak memory of its block.

    Memory is the sum of the resident sizes of this process and of all its child processes, sampled on entry and then
    five times per second.

    Attributes:
        seconds: wall-clock duration of the block; 0 until the block ends.
        peak_memory_mb: largest memory sampled so far, in MB (2**20 bytes).

    Examples:
        >>> with Meter() as meter:
        ...     total = sum(range(1000))
        >>> sorted(meter.cost())
        ['peak_memory_mb', 'seconds']
    """

    seconds: float
    peak_memory_mb: float

    def __enter__(self) -> Meter:
        self.seconds, self.peak_memory_mb = 0.0, _resident_mb()
        self._start = time.perf_counter()
        self._done = threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)
        self._sampler.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._start
        self._done.set()
        self._sampler.join()

    def cost(self) -> dict[str, float]:
        """Return the seconds, rounded to tenths, and the peak memory, rounded to whole MB, by attribute name."""
        return {"seconds": round(self.seconds, 1), "peak_memory_mb": round(self.peak_memory_mb)}

    def _sample(self) -> None:
        """Sample the memory until the block ends."""
        while not self._done.wait(_INTERVAL):
            self.peak_memory_mb = max(self.peak_memory_mb, _resident_mb())


def _resident_mb() -> float:
    """Return the resident size of this process and its children, in MB."""
    this_process = psutil.Process()
    total = 0
    for process in [this_process, *this_process.children(recursive=True)]:
        try:
            total += process.memory_info().rss
        except psutil.Error:  # the child has ended
            continue
    return total / 2**20
