"""What an image file says of itself, without its pixels: size, orientation, whether it is whole, its digest."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from sppdet.data.images import decode_image, is_too_large
from sppdet.data.large_images import header_of_any_size, open_pixels
from sppdet.data.problems import Problem
from sppdet.utils import SppdetError, file_digest

_TAIL = 4096  # bytes at the end of a file in which the mark of its end is looked for: some cameras add data behind it
_ENDS = dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), b"\xff\xd9") | {".png": b"IEND"}


@dataclass(frozen=True)
class ImageFacts:
    """Facts about an image file.

    Attributes:
        size: width and height in pixels as displayed, that is with the EXIF orientation applied.
        orientation: EXIF orientation, 1 to 8; 1 shows the pixels as they are stored.
        truncated: whether the end of the file is missing.
        digest: of the content; empty where it was not asked for.
    """

    size: tuple[int, int]
    orientation: int = 1
    truncated: bool = False
    digest: str = ""


def image_facts(path: Path, problems: list[Problem], decode: bool = False, digest: bool = False) -> ImageFacts | None:
    """Return the facts of an image; None, and a problem in the list, if the image cannot be used.

    Args:
        path: the image.
        problems: what is wrong is added to this list.
        decode: read the pixels too, which finds damage in the middle of a file.
        digest: compute the digest.
    """
    try:
        width, height, orientation = header_of_any_size(path)
        end = _ENDS.get(path.suffix.lower())
        truncated = end is not None and end not in _tail(path)
        if is_too_large(width, height):
            if truncated:
                raise SppdetError(f"{path}: is cut off at the end; copy it again")
            if decode:
                open_pixels(path).overview()  # reads all parts
        elif decode or truncated:
            # A JPEG that is cut off is decoded as far as it goes; other damage is an error.
            truncated = decode_image(path)[1]
        facts = ImageFacts((width, height), orientation, truncated, file_digest(path) if digest else "")
    except SppdetError as error:
        problems.append(Problem("unreadable image", str(path), str(error), True))
        return None
    if truncated:
        problems.append(Problem("truncated", str(path), f"{path}: is cut off at the end; copy it again"))
    return facts


def all_image_facts(
    paths: Sequence[Path], problems: list[Problem], decode: bool = False, digest: bool = True
) -> dict[Path, ImageFacts]:
    """Return the facts of many images, read by several threads; those that cannot be used are left out."""
    lists: list[list[Problem]] = [[] for _ in paths]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        facts = list(pool.map(lambda i: image_facts(paths[i], lists[i], decode, digest), range(len(paths))))
    problems += [problem for single in lists for problem in single]
    return {path: fact for path, fact in zip(paths, facts) if fact is not None}


def _tail(path: Path) -> bytes:
    """Return the last bytes of a file."""
    with open(path, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
        return file.read()
