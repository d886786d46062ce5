"""What a stage costs: seconds and peak memory, its worker processes included."""

from __future__ import annotations

import threading
import time

import psutil


class Meter:
    """``with Meter() as meter: ...`` then ``meter.seconds`` and ``meter.peak_memory_mb``.

    Memory is the sum of the resident sizes of this process and its children, sampled five times a second.
    """

    def __enter__(self) -> Meter:
        self.seconds, self.peak_memory_mb = 0.0, _resident_mb()
        self._start = time.perf_counter()
        self._done = threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)
        self._sampler.start()
        return self

    def __exit__(self, *_) -> None:
        self.seconds = time.perf_counter() - self._start
        self._done.set()
        self._sampler.join()

    def cost(self) -> dict[str, float]:
        return {"seconds": round(self.seconds, 1), "peak_memory_mb": round(self.peak_memory_mb)}

    def _sample(self) -> None:
        while not self._done.wait(0.2):
            self.peak_memory_mb = max(self.peak_memory_mb, _resident_mb())


def _resident_mb() -> float:
    own = psutil.Process()
    total = 0
    for process in [own, *own.children(recursive=True)]:
        try:
            total += process.memory_info().rss
        except psutil.Error:  # it ended meanwhile
            continue
    return total / 2**20
