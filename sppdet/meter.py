"""What a stage costs, seconds and peak memory with its worker processes, and on which machine."""

from __future__ import annotations

import importlib.metadata
import platform
import threading
import time
from pathlib import Path

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


def versions() -> dict[str, str]:
    """What a result was made with."""
    found = {"python": platform.python_version()}
    for name in ("sppdet", "torch", "torchvision", "opencv-contrib-python", "scikit-learn", "numpy", "numba"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # a checkout that is not installed, another OpenCV wheel
            found[name] = "not installed by pip"
    return found


def machine() -> str:
    """Processor, cores, memory and versions, for a document."""
    model = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    memory = psutil.virtual_memory().total / 2**30
    found = ", ".join(f"{name} {version}" for name, version in versions().items())
    return f"{model}, {len(psutil.Process().cpu_affinity())} cores, {memory:.0f} GB of memory. {found}."
