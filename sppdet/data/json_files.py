"""JSON files of annotation tools."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from sppdet.data.listing import Listing, read_text, start_of
from sppdet.utils import SppdetError


def json_files(listing: Listing, has_form: Callable[[Any], bool], start: str) -> list[Path]:
    """Return the JSON files of a format.

    A file that cannot be read is one of them if others are, or if it begins as they do: reading it names what is wrong.

    Args:
        listing: the files of a folder.
        has_form: whether the content of a file has the format.
        start: regular expression of what a file of the format has near its start.
    """
    files, broken = [], []
    for path in listing.with_suffix(".json"):
        try:
            if has_form(read_json_file(path)):
                files.append(path)
        except SppdetError:
            broken.append(path)
    return files + [path for path in broken if files or re.search(start, start_of(path))]


def read_json_file(path: Path) -> Any:
    """Return the content of a JSON file, without LabelMe's ``imageData``.

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
