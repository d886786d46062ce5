"""Image files that the arguments of a command name: paths, folders and glob patterns."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress

from sppdet.utils import SppdetError

# Files of a folder that count as images. A file that is named itself may have any suffix that Pillow reads.
SUFFIXES = (
    ".avif",
    ".bmp",
    ".gif",
    ".jfif",
    ".jpe",
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
VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")


def find_images(arguments: Sequence[str]) -> list[str]:
    """Return the image files that paths, folders and glob patterns name.

    Args:
        arguments: a path is taken as it is; a folder stands for the images directly in it, sorted; a pattern such as
            ``photos/**/*.jpg`` for the files that match, sorted.

    Returns:
        Paths in the order of the arguments, each file once.

    Raises:
        SppdetError: a path or pattern matches no file, or a folder has no images.
    """
    paths: dict[str, str] = {}  # by absolute path
    for argument in arguments:
        for path in _matches(argument):
            paths.setdefault(os.path.abspath(path), path)
    return list(paths.values())


def is_image_name(name: str) -> bool:
    """Whether a file of this name counts as an image when its folder is searched.

    Examples:
        >>> is_image_name("photo.JPG"), is_image_name("notes.txt"), is_image_name(".photo.jpg")
        (True, False, False)
    """
    # Hidden files do not count: macOS leaves `._photo.jpg`, which is no image, beside `photo.jpg`.
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES


def is_video_name(name: str) -> bool:
    """Whether a file of this name is a video.

    Examples:
        >>> is_video_name("a.MP4"), is_video_name("a.gif")
        (True, False)
    """
    return os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES


def _matches(argument: str) -> list[str]:
    """Return the files that one argument names."""
    if os.path.isdir(argument):
        try:
            names = sorted(name for name in os.listdir(argument) if is_image_name(name))
        except OSError as error:
            raise SppdetError(f"{argument}: cannot be read ({error.strerror}); check its permissions") from None
        if not names:
            kinds = ", ".join(SUFFIXES)
            raise SppdetError(f"{argument}: no images in this folder ({kinds}); give a folder that has some")
        return [os.path.join(argument, name) for name in names]
    if os.path.exists(argument):  # before patterns are tried: the file `a[1].jpg` looks like one
        return [argument]
    paths = sorted({os.path.normpath(path) for path in expanded(argument) if os.path.isfile(path)})
    if not paths:
        what = "no image matches this pattern" if glob.has_magic(argument) else "no such image or folder"
        raise SppdetError(f"{argument or repr('')}: {what}; check the path")
    return paths


def expanded(pattern: str) -> Iterator[str]:
    """Yield what a pattern matches. Other than with `glob.glob`, ``**`` enters each folder once, also through links."""
    before, stars, after = re.fullmatch(r"(.*?)(?:(?<![^/])(\*\*)(?![^/])(.*))?", pattern, re.DOTALL).groups()  # type: ignore[union-attr]
    if not stars:
        yield from glob.glob(pattern)
        return
    for root in glob.glob(before) if before else ["."]:
        for folder in folders_below(root, set()):
            yield from expanded(os.path.join(glob.escape(folder), after.strip("/") or "*"))


def folders_below(folder: str, entered: set[tuple[int, int]]) -> Iterator[str]:
    """Yield a folder and all below it that are not hidden and not yet ``entered`` (device and inode)."""
    with suppress(OSError):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in entered:
            return
        entered.add((status.st_dev, status.st_ino))
        yield folder
        with os.scandir(folder) as entries:
            below = sorted(entry.path for entry in entries if entry.is_dir() and not entry.name.startswith("."))
        for path in below:
            yield from folders_below(path, entered)


def passed_over(arguments: Sequence[str]) -> list[str]:
    """Return a line per folder among ``arguments`` with files that `find_images` does not take, counted by suffix.

    Hidden files do not count, and folders are not entered.
    """
    lines = []
    for folder in dict.fromkeys(argument for argument in arguments if os.path.isdir(argument)):
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if not entry.name.startswith(".")]
            below = sum(os.path.isdir(os.path.join(folder, name)) for name in names)
        files = [name for name in names if not os.path.isdir(os.path.join(folder, name)) and not is_image_name(name)]
        counts = Counter(os.path.splitext(name)[1].lower() or "no suffix" for name in files)
        kinds = [f"{count} {suffix}" for suffix, count in sorted(counts.items())]
        kinds += [f"{below} folder{'s' * (below > 1)}"] if below else []
        if kinds:
            lines.append(
                f"{folder}: passed over {', '.join(kinds)}; name files, or a pattern such as '{folder}/**/*.jpg'"
            )
    return lines
