"""Images for classification, one folder per class: ``FOLDER/CLASS/*.jpg``, the layout of torchvision's ImageFolder."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sppdet.data.image_files import SUFFIXES, folders_below, is_image_name
from sppdet.data.images import check_image
from sppdet.utils import SppdetError, in_threads, worker_count

_SHOWN = 10  # unreadable images that one error names; the others are counted


@dataclass(frozen=True, eq=False, repr=False)
class LabelledImages:
    """Paths of P images and the class of each image.

    Attributes:
        classes: the K names that ``labels`` index.
        paths: P files.
        labels: int64 ``(P,)``, from 0 to K - 1.

    Examples:
        >>> LabelledImages(("ant", "bee"), (Path("ant/1.jpg"), Path("bee/2.jpg")), np.array([0, 1]))
        LabelledImages(2 images, 2 classes)
    """

    classes: tuple[str, ...]
    paths: tuple[Path, ...]
    labels: np.ndarray

    def __repr__(self) -> str:
        return f"LabelledImages({len(self.paths)} images, {len(self.classes)} classes)"

    def __len__(self) -> int:
        return len(self.paths)


def read_folders(folder: str | os.PathLike, classes: Sequence[str] | None = None, workers: int = 0) -> LabelledImages:
    """Find the images below the folder of each class, sorted by class and path.

    Every file is decoded, so that all broken images are reported at once and before hours of training, not after.

    Args:
        folder: holds one folder per class; images may lie in sub-folders of it. Hidden files and folders of classes
            whose names begin with a dot are passed over.
        classes: names that the labels index. By default the names of the folders, sorted.
        workers: threads that decode; 0 chooses by the machine.

    Raises:
        SppdetError: the folder is missing or has no class, a class has no images or is not in ``classes``, or images
            cannot be read: one line for each of the first ten.
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
    labelled = [(path, classes.index(name)) for name in names for path in _images_below(folder / name)]
    paths, labels = zip(*labelled)
    _check_readable(paths, worker_count(workers))
    return LabelledImages(tuple(classes), tuple(paths), np.array(labels, np.int64))


def _class_names(folder: Path) -> list[str]:
    """Return the names of the folders in ``folder``, sorted."""
    layout = f"lay images out as {folder}/CLASS/*.jpg"
    try:
        names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise SppdetError(f"{folder}: {(error.strerror or str(error)).lower()}; {layout}") from None
    if not names:
        raise SppdetError(f"{folder}: holds no folder of a class; {layout}")
    return names


def _images_below(folder: Path) -> list[Path]:
    """Return the images in a folder and its sub-folders, also through links, sorted by path."""
    below = [Path(path) for path in folders_below(str(folder), set())]
    paths = sorted(path for sub in below for path in sub.iterdir() if is_image_name(path.name) and path.is_file())
    if not paths:
        raise SppdetError(f"{folder}: no images ({', '.join(SUFFIXES)}); add some or remove the folder")
    return paths


def _check_readable(paths: Sequence[Path], workers: int) -> None:
    """Raise one error that names the images that cannot be read."""

    def problem(path: Path) -> str | None:
        try:
            check_image(path)
        except SppdetError as error:
            return str(error)
        return None

    problems = [text for text in in_threads(problem, paths, workers) if text]
    if problems:
        more = [f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        raise SppdetError("\n".join(problems[:_SHOWN] + more))
