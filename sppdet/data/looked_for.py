"""Images in which only some classes were annotated: of the others nobody knows whether the image holds them.

The file that ``data.labelled_classes`` names has one line per image: its id or file name, then the classes that were
looked for, separated by commas. In images that the file does not name all classes were looked for.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from sppdet.data.dataset import Dataset
from sppdet.utils import SppdetError


def read_looked_for(path: Path, classes: Sequence[str]) -> dict[str, np.ndarray]:
    """Read which classes were looked for in which images.

    Args:
        path: the file of lines ``image,class,class,...``; a first line ``image,...`` is a header.
        classes: the K names of the classes.

    Returns:
        By image as the file names it, bool ``(K,)``.

    Raises:
        SppdetError: the file cannot be read, names an image twice, or a class that is not in ``classes``.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeError) as error:
        raise SppdetError(
            f"data.labelled_classes: {path} cannot be read ({error}); give a file of lines image,class"
        ) from None
    looked_for: dict[str, np.ndarray] = {}
    for number, row in enumerate(csv.reader(text.splitlines()), 1):
        image, *names = (field.strip() for field in row) if row else ("",)
        if not image or image.startswith("#") or (number == 1 and image.lower() == "image"):
            continue
        names = [name for name in names if name]
        if unknown := [name for name in names if name not in classes]:
            raise SppdetError(
                f"{path}, line {number}: no class '{unknown[0]}' in the annotations, which have {', '.join(classes)}"
            )
        if image in looked_for:
            raise SppdetError(f"{path}, line {number}: the image '{image}' has a line already; join them")
        looked_for[image] = np.isin(classes, names)
    return looked_for


def with_looked_for(dataset: Dataset, path: str | None) -> Dataset:
    """Return a data set whose samples know the classes that were looked for in them.

    Args:
        dataset: the images.
        path: see `read_looked_for`; None: every class in every image.

    Raises:
        SppdetError: an error of `read_looked_for`.
    """
    if path is None:
        return dataset
    looked_for = read_looked_for(Path(path), dataset.classes)
    samples = []
    for sample in dataset:
        name = next((name for name in (sample.id, sample.path.name, sample.path.stem) if name in looked_for), None)
        samples.append(sample if name is None else replace(sample, looked_for=looked_for[name]))
    return replace(dataset, samples=tuple(samples))
