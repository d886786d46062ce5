"""The files that images and videos are drawn into: their names, which overwrite nothing, and how they are written."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sppdet.utils import SppdetError, atomic_write, remove_leftovers, short_name

if TYPE_CHECKING:  # imported late: --help does not wait for it
    import numpy as np

_JPEG_SIDE = 65_500  # pixels per side that JPEG libraries write


def output_paths(images: Sequence[str], folder: Path, suffix: str = ".jpg") -> list[Path]:
    """Choose a file in ``folder`` for the drawing of each image or video, and make the folder.

    A file is named by the stem of its image; equal stems are numbered: ``a``, ``a-2``, ``a-3``.

    Raises:
        SppdetError: if the folder cannot be made, or a file in a folder of images would be overwritten.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SppdetError(f"{folder}: cannot be made ({error.strerror}); give another --output") from None
    remove_leftovers(folder, below=False)
    paths = [folder / f"{name}{suffix}" for name in _unique([short_name(Path(image).stem) for image in images])]
    existing = [Path(image) for image in images if Path(image).exists()]
    originals = {_identity(image) for image in existing}
    folders_of_images = {_identity(image.parent) for image in existing}
    lines = [path.with_suffix(".jsonl") for path in paths if suffix == ".mp4"]  # written beside a video
    for path in filter(Path.exists, [*paths, *lines]):
        if _identity(path) in originals:
            raise SppdetError(f"{path}: would be overwritten, and is one of the images; give another --output")
        if _identity(folder) in folders_of_images:
            raise SppdetError(f"{path}: would be overwritten, and may be an image of yours; give another --output")
    return paths


def _unique(stems: Sequence[str]) -> list[str]:
    """Number equal stems. Upper and lower case are equal, because they are on some file systems."""
    taken = {stem.casefold() for stem in stems}
    numbers: dict[str, Iterator[int]] = {}
    names = []
    for stem in stems:
        key, name = stem.casefold(), stem
        if key in numbers:
            numbered = (f"{stem}-{number}" for number in numbers[key])
            name = next(name for name in numbered if name.casefold() not in taken)
        numbers.setdefault(key, itertools.count(2))
        taken.add(name.casefold())
        names.append(name)
    return names


def _identity(path: str | Path) -> tuple[int, int]:
    """Return a value that all names of a file, and all links to it, share."""
    status = os.stat(path)
    return status.st_dev, status.st_ino


def write_drawing(target: Path, drawing: np.ndarray) -> None:
    """Write an RGB array as a JPEG file."""
    from PIL import Image

    if max(drawing.shape) > _JPEG_SIDE:
        raise SppdetError(f"not drawn, as JPEG ends at {_JPEG_SIDE} pixels per side and the image has more")
    image = Image.fromarray(drawing)
    try:
        atomic_write(target, lambda temporary: image.save(temporary, quality=92))
    except OSError as error:
        raise SppdetError(f"{target} cannot be written ({error.strerror or error}); give another --output") from None
