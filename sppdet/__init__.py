"""Region-based object detectors of the R-CNN family, SPP-net first.

>>> import sppdet
>>> detector = sppdet.load("runs/demo")          # doctest: +SKIP
>>> for found in detector.predict("photo.jpg").above(-0.5).to_list(): print(found)   # doctest: +SKIP
"""

from __future__ import annotations

import os

# Torch asks the kernel for pages of 2 MB, if told so before it loads: conv layers' outputs are large and short-lived,
# and in a worker of one thread the faults of their small pages are a seventh of the time of a conv map.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

__version__ = "0.1.0"
__all__ = ["Config", "Detections", "Detector", "SppdetError", "load"]

_PLACES = {
    "Config": "sppdet.settings",
    "Detections": "sppdet.detections",
    "Detector": "sppdet.detector",
    "SppdetError": "sppdet.errors",
    "load": "sppdet.combination",
}


def __getattr__(name: str):
    """The public names, imported when first used: ``import sppdet`` does not wait for torch."""
    if name not in _PLACES:
        raise AttributeError(f"module 'sppdet' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(_PLACES[name]), name)
