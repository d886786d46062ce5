"""Region-based object detectors of the R-CNN family, SPP-net first.

>>> import sppdet
>>> detector = sppdet.load("runs/demo")          # doctest: +SKIP
>>> for found in detector.predict("photo.jpg").above(-0.5).to_list(): print(found)   # doctest: +SKIP
"""

from __future__ import annotations

__version__ = "0.1.0"
__all__ = ["Config", "Detections", "Detector", "SppdetError", "load"]

_PLACES = {
    "Config": "sppdet.config",
    "Detections": "sppdet.detections",
    "Detector": "sppdet.detector",
    "SppdetError": "sppdet.errors",
    "load": "sppdet.detector",
}


def __getattr__(name: str):
    """The public names, imported when first used: ``import sppdet`` does not wait for torch."""
    if name not in _PLACES:
        raise AttributeError(f"module 'sppdet' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(_PLACES[name]), name)
