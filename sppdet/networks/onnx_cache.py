"""Trunks in ONNX form in the user's cache folder, from where a detector loads them without torch.

A file is named by the network, a digest of its weights and of the layers that it ends in, and the digest of the file.
It is written when a model is saved, or loaded for the first time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
from contextlib import suppress
from pathlib import Path

from sppdet.networks.onnx_trunk import OnnxTrunk
from sppdet.networks.trunk_output import WHOLE, Cut
from sppdet.utils import atomic_write

logger = logging.getLogger(__name__)

_FORMAT = 1  # of what `onnx_export` and `onnx_int8` write; raise it with every change
_MOST = 8  # files that are kept, those that were used last


def cache_folder() -> Path:
    """Return the folder of the trunks: in ``SPPDET_CACHE``, or where the system has the caches of a user."""
    if folder := os.environ.get("SPPDET_CACHE"):
        return Path(folder) / "trunks"
    if sys.platform == "win32":
        caches = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    elif sys.platform == "darwin":
        caches = "~/Library/Caches"
    else:
        caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(caches).expanduser() / "sppdet" / "trunks"


def cached_trunk(name: str, weights: str, cut: Cut = WHOLE, precision: str = "float32") -> OnnxTrunk | None:
    """Return a trunk from the cache; None if it is not there. A file that is damaged is removed.

    Args:
        name: the network.
        weights: digest of its weights, see `sppdet.networks.weights.weights_digest`.
        cut: where the trunk ends.
        precision: ``float32`` or ``int8``.
    """
    for path in sorted(cache_folder().glob(f"{_prefix(name, weights, cut, precision)}*.onnx")):
        with suppress(OSError):
            try:
                model = path.read_bytes()
                if path.name != _file_name(name, weights, cut, precision, model):
                    raise ValueError("its content is not what was written")
                trunk = OnnxTrunk(model)
                if (trunk.name, trunk.weights, trunk.cut, trunk.precision) != (name, weights, cut, precision):
                    raise ValueError(f"is of {trunk.name} with other weights, layers or precision")
            except ValueError as error:
                logger.warning("%s: %s; it is removed and made again", path, error)
                path.unlink()
                continue
            os.utime(path)  # so that it is among the last used
            return trunk
    return None


def keep_trunk(name: str, weights: str, model: bytes, cut: Cut = WHOLE, precision: str = "float32") -> None:
    """Write a trunk into the cache, and remove those that were not used for longest; do nothing if it is there.

    A cache that cannot be written is passed over: the trunk is then made again each time.
    """
    path = cache_folder() / _file_name(name, weights, cut, precision, model)
    with suppress(OSError):
        if not path.exists():
            atomic_write(path, lambda temporary: temporary.write_bytes(model))
        others = sorted(path.parent.glob("[!.]*.onnx"), key=lambda other: other.stat().st_mtime, reverse=True)
        for old in others[_MOST:]:
            old.unlink()


def _prefix(name: str, weights: str, cut: Cut, precision: str) -> str:
    described = [name, weights, cut.description(), *[precision] * (precision != "float32")]
    trunk = json.dumps(described, sort_keys=True).encode()
    return f"{name.replace('/', '-')}-{hashlib.blake2b(trunk, digest_size=8).hexdigest()}-{_FORMAT}-"


def _file_name(name: str, weights: str, cut: Cut, precision: str, model: bytes) -> str:
    return f"{_prefix(name, weights, cut, precision)}{hashlib.blake2b(model, digest_size=8).hexdigest()}.onnx"
