"""Images in a folder a class, as torchvision's ImageFolder reads them: ``FOLDER/CLASS/*.jpg``."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sppdet.data.image_files import SUFFIXES, is_image
from sppdet.data.images import image_size
from sppdet.utils import SppdetError, in_threads, worker_count

_SHOWN = 10  # images that cannot be read are told together, this many by name


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Paths of P images and the class of each: ``labels`` ``(P,)`` int64 index ``classes``, the K names."""

    classes: tuple[str, ...]
    paths: tuple[Path, ...]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.paths)


def read_folders(folder: str | os.PathLike, classes: Sequence[str] | None = None, workers: int = 0) -> LabelledImages:
    """The images below each class's folder, in order of their names.

    ``classes`` fixes the labels; by default they are the folders' names, sorted. Every image's header is looked
    at, so that one that is no image is told before hours of training and not after.

    Raises:
        SppdetError: no such folder, no class in it, a class without images or not in ``classes``, and one for
            all images that cannot be read: a line for each of the first ten.
    """
    folder = Path(folder)
    names = _class_names(folder)
    classes = names if classes is None else classes
    for name in names:
        if name not in classes:
            near = difflib.get_close_matches(name, classes, n=1, cutoff=0)
            raise SppdetError(
                f"{folder / name}: class '{name}' is none of the {len(classes)} that were trained "
                f"(nearest: {', '.join(near)}); rename or remove the folder"
            )
    found = [(path, classes.index(name)) for name in names for path in _images_below(folder / name)]
    paths, labels = zip(*found)
    _check_readable(paths, worker_count(workers))
    return LabelledImages(tuple(classes), tuple(paths), np.array(labels, np.int64))


def _class_names(folder: Path) -> list[str]:
    layout = f"lay images out as {folder}/CLASS/*.jpg"
    try:
        names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise SppdetError(f"{folder}: {error.strerror.lower()}; {layout}") from None
    if not names:
        raise SppdetError(f"{folder}: holds no folder of a class; {layout}")
    return names


def _images_below(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.rglob("*") if is_image(path.name) and path.is_file())
    if not found:
        raise SppdetError(f"{folder}: no images ({', '.join(SUFFIXES)}); add some or remove the folder")
    return found


def _check_readable(paths: Sequence[Path], workers: int) -> None:
    def problem(path: Path) -> str | None:
        try:
            image_size(path)
        except SppdetError as error:
            return str(error)
        return None

    problems = [text for text in in_threads(problem, paths, workers) if text]
    if problems:
        more = [f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        raise SppdetError("\n".join(problems[:_SHOWN] + more))
