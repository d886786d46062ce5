"""What a result was made with, and on which machine."""

from __future__ import annotations

import importlib.metadata
import platform
from pathlib import Path

import joblib
import psutil


def versions() -> dict[str, str]:
    """The versions of Python, of this package and of those that its results depend on."""
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
    cores = joblib.cpu_count()
    return f"{model}, {cores} core{'s' * (cores > 1)}, {memory:.0f} GB of memory. {found}."
