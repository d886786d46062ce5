"""JSON files of annotation tools."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from sppdet.data.listing import read_text
from sppdet.utils import SppdetError


def json_of(path: Path) -> Any:
    """Return the content of a JSON file without LabelMe's ``imageData``; None if it is not JSON."""
    try:
        return read_json_file(path)
    except SppdetError:
        return None


def read_json_file(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        SppdetError: the file is not JSON, or cannot be read.
    """
    status = path.stat()
    return _parse(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=8)  # a large file is asked for by each format in turn
def _parse(path: Path, changed: int, size: int) -> Any:
    try:
        return json.loads(read_text(path), object_hook=_without_images)
    except (ValueError, RecursionError) as error:
        raise SppdetError(f"{path}: is not JSON ({' '.join(str(error).split())}); export it again") from None


def _without_images(entry: dict) -> dict:
    """Return an object without the image that LabelMe may have put into it."""
    entry.pop("imageData", None)
    return entry
