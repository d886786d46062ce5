"""The software versions and the machine that a result was computed with."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
from pathlib import Path

import joblib
import psutil

_PACKAGES = ("sppdet", "torch", "torchvision", "opencv-contrib-python", "scikit-learn", "numpy", "numba")
_CGROUP = Path("/sys/fs/cgroup")  # of the container, as its processes see it (cgroup version 2)


def versions() -> dict[str, str]:
    """Return the versions of Python, of sppdet and of the packages that results depend on, by name.

    Examples:
        >>> list(versions())[:3]
        ['python', 'sppdet', 'torch']
    """
    version_of = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            version_of[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # a checkout that is not installed, or another OpenCV wheel
            version_of[name] = "not installed by pip"
    return version_of


def free_memory_gb() -> float:
    """Return how much memory this process may still take, in GB: of the machine or, if less, of its container."""
    free = psutil.virtual_memory().available
    limit, used = _CGROUP / "memory.max", _CGROUP / "memory.current"
    with contextlib.suppress(OSError, ValueError):  # no container, or one without a limit ("max")
        free = min(free, int(limit.read_text()) - int(used.read_text()))
    return max(0, free) / 1e9


def machine() -> str:
    """Return a sentence for a document: the processor, its cores, the memory and the software versions."""
    model = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    memory = psutil.virtual_memory().total / 2**30
    software = ", ".join(f"{name} {version}" for name, version in versions().items())
    cores = joblib.cpu_count()
    return f"{model}, {cores} core{'s' * (cores > 1)}, {memory:.0f} GB of memory. {software}."
