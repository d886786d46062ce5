"""What a result was made with."""

from __future__ import annotations

import importlib.metadata
import platform


def versions() -> dict[str, str]:
    """The versions of Python, of this package and of those that its results depend on."""
    found = {"python": platform.python_version()}
    for name in ("sppdet", "torch", "torchvision", "opencv-contrib-python", "scikit-learn", "numpy", "numba"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # a checkout that is not installed, another OpenCV wheel
            found[name] = "not installed by pip"
    return found
