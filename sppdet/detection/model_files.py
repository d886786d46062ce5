"""The files of a model: their names, and how several of them are replaced together."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from sppdet.utils import temporary_folder

MODEL_FILES = ("model.json", "model.safetensors")
REMEDY = "train again, or copy the model's folder again"
_UPDATE = "model-update"  # folder of new files of a model that are complete


def finish_update(folder: Path) -> None:
    """Put new files of a model into place, where `replace_files` was interrupted after it had written all of them."""
    update = folder / _UPDATE
    if update.is_dir():
        for file in sorted(update.iterdir()):
            os.replace(file, folder / file.name)
        update.rmdir()


def replace_files(folder: Path, write: Callable[[Path], object]) -> None:
    """Replace several files of a model together: all of them are new, or all are as they were.

    Args:
        folder: of the model.
        write: writes the new files into the folder that it receives.
    """
    finish_update(folder)
    with temporary_folder(folder) as temporary:
        unfinished = temporary / _UPDATE
        unfinished.mkdir()
        write(unfinished)
        unfinished.rename(folder / _UPDATE)  # from here on the new files count, see `finish_update`
    finish_update(folder)
