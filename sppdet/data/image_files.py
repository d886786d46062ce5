"""Image files that the arguments of a command name: paths, folders and glob patterns."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence

from sppdet.utils import SppdetError

# Files of a folder that count as images. A file that is named itself may have any suffix that Pillow reads.
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
    paths = sorted(path for path in glob.glob(argument, recursive=True) if os.path.isfile(path))
    if not paths:
        what = "no image matches this pattern" if glob.has_magic(argument) else "no such image or folder"
        raise SppdetError(f"{argument or repr('')}: {what}; check the path")
    return paths
