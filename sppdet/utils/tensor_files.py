"""Safetensors files that hold a checksum of themselves, so that a damaged file is never used without a word.

The checksum is a CRC-32 of the whole file, taken with zeros in its place. It stands in the metadata of the file's
header. Files of earlier versions and of other programs have none.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError

from sppdet.utils.errors import SppdetError
from sppdet.utils.files import atomic_write

if TYPE_CHECKING:  # detection may do without torch
    import torch

_UNSEALED = "00000000"
_ENTRY = re.compile(rb'"crc32":"([0-9a-f]{8})"')
_LONGEST_HEADER = 100_000_000  # bytes, the limit of safetensors
_BLOCK = 2**20  # bytes that are read at a time


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors atomically, with a checksum.

    Args:
        path: the file.
        tensors: contiguous arrays of NumPy, or tensors of torch, by name.
        metadata: texts that the header holds too.

    Raises:
        OSError: the file cannot be written.
    """
    of_numpy = all(isinstance(value, np.ndarray) for value in tensors.values())
    library: Any = import_module("safetensors.numpy" if of_numpy else "safetensors.torch")

    def write(temporary: Path) -> None:
        library.save_file(dict(tensors), temporary, metadata={**(metadata or {}), "crc32": _UNSEALED})
        sort_metadata(temporary)
        _seal(temporary)

    atomic_write(path, write)


def sort_metadata(path: str | os.PathLike[str]) -> None:
    """Sort the metadata of a file by name: safetensors writes them in random order, so that equal files differ."""
    with open(path, "r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        content = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(content) <= length:
            file.seek(8)
            file.write(content.ljust(length))


def verify_tensors(path: str | os.PathLike[str]) -> None:
    """Check the checksum of a file, if it has one.

    Raises:
        SafetensorError: the content is not what was written.
        OSError: the file cannot be read.
    """
    place, checksum = _find(path)
    if place and checksum != _checksum(path, place):
        raise SafetensorError("its checksum is wrong")


def read_tensors(path: str | os.PathLike[str], remedy: str) -> dict[str, torch.Tensor]:
    """Return the tensors of a file whose checksum, if it has one, is right.

    Args:
        path: the file.
        remedy: what to do about a damaged file, the end of the message.

    Raises:
        SppdetError: the file cannot be read, or is damaged.
    """
    from safetensors.torch import load_file

    try:
        verify_tensors(path)
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise SppdetError(f"{path}: cannot be read ({error}); {remedy}") from None


def read_arrays(path: str | os.PathLike[str], remedy: str) -> dict[str, np.ndarray]:
    """Return the arrays of a file as `read_tensors` does, without torch."""
    from safetensors.numpy import load_file

    try:
        verify_tensors(path)
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise SppdetError(f"{path}: cannot be read ({error}); {remedy}") from None


def _seal(path: Path) -> None:
    place, _ = _find(path)
    checksum = _checksum(path, place)
    with open(path, "r+b") as file:
        file.seek(place)
        file.write(checksum)


def _find(path: str | os.PathLike[str]) -> tuple[int, bytes]:
    """Return where the digits of the checksum begin in a file, and the digits; 0 and none without a checksum."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        match = _ENTRY.search(file.read(min(length, _LONGEST_HEADER)))
    return (8 + match.start(1), match[1]) if match else (0, b"")


def _checksum(path: str | os.PathLike[str], place: int) -> bytes:
    """Return the checksum of a file whose digits of it begin at ``place``."""
    with open(path, "rb") as file:
        value = zlib.crc32(_UNSEALED.encode(), zlib.crc32(file.read(place)))
        file.seek(place + len(_UNSEALED))
        while block := file.read(_BLOCK):
            value = zlib.crc32(block, value)
    return f"{value:08x}".encode()
