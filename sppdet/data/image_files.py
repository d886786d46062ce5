"""Which images the arguments of a command name: files, folders and patterns."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence

from sppdet.utils import SppdetError

# What a folder is searched for; a file named by itself may be anything that Pillow reads.
SUFFIXES = (
    ".avif",
    ".bmp",
    ".gif",
    ".jpeg",
    ".jpg",
    ".pbm",
    ".pgm",
    ".png",
    ".ppm",
    ".tif",
    ".tiff",
    ".webp",
)


def find_images(arguments: Sequence[str]) -> list[str]:
    """The files that paths, folders (their own images, sorted) and glob patterns name; each once.

    Raises :class:`SppdetError` for a path or pattern without a match, and for a folder without images.
    """
    found: dict[str, str] = {}
    for argument in arguments:
        for path in _matches(argument):
            found.setdefault(os.path.abspath(path), path)
    return list(found.values())


def _matches(argument: str) -> list[str]:
    if os.path.isdir(argument):
        try:
            names = sorted(name for name in os.listdir(argument) if is_image(name))
        except OSError as error:
            raise SppdetError(f"{argument}: cannot be read ({error.strerror}); check its permissions") from None
        if not names:
            kinds = ", ".join(SUFFIXES)
            raise SppdetError(f"{argument}: no images in this folder ({kinds}); name one that has some")
        return [os.path.join(argument, name) for name in names]
    if os.path.exists(argument):  # before patterns: a file may be called `a[1].jpg`
        return [argument]
    found = sorted(path for path in glob.glob(argument, recursive=True) if os.path.isfile(path))
    if not found:
        what = "no image matches this pattern" if glob.has_magic(argument) else "no such image or folder"
        raise SppdetError(f"{argument or repr('')}: {what}; check the path")
    return found


def is_image(name: str) -> bool:
    """Whether a file of this name in a folder is taken for an image."""
    # Hidden files: a Mac leaves `._photo.jpg`, which is no image, beside `photo.jpg`.
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES
