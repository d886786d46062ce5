"""Splits of data sets: of a VOC folder, or of the data set that a configuration names."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path

from sppdet.config import Config
from sppdet.data.dataset import Dataset
from sppdet.data.shapes import make_shapes
from sppdet.data.voc import read_voc
from sppdet.utils import SppdetError


def read_dataset(
    root: str | os.PathLike, split: str = "trainval", classes: Sequence[str] | None = None, limit: int | None = None
) -> Dataset:
    """Read the annotations of one split of a VOC folder; images are read later, by `Sample.read`.

    Args:
        root: VOC folder (``VOC2007``), or its parent (``VOCdevkit``) if that holds exactly one.
        split: name of a list in ``ImageSets/Main``: ``train``, ``val``, ``trainval``, ``test`` or your own.
        classes: names that the labels index. By default the names in all annotations of the split, sorted.
        limit: number of images to keep, the first ones of the split. The default keeps all.

    Returns:
        The images of the split in the order of the list.

    Raises:
        SppdetError: the folder or the split is missing, or files in it cannot be used; the message names them.

    Examples:
        >>> data = read_dataset("VOCdevkit")  # doctest: +SKIP
        >>> data  # doctest: +SKIP
        Dataset(5011 images, 20 classes, 15662 objects)
        >>> data[0]  # doctest: +SKIP
        Sample('000005', 500 x 375 pixels, 5 objects)
    """
    return read_voc(root, split, classes=classes, limit=limit)


def load_split(config: Config, split: str, classes: Sequence[str] | None = None, limit: int | None = None) -> Dataset:
    """Read one split of the data set that ``config.data`` names.

    ``data.root=shapes`` names the synthetic data set (`sppdet.data.shapes.make_shapes`). It is drawn in the
    cache folder on first use.

    Args:
        config: its ``data.root``, ``data.classes`` and ``run.cache`` are read.
        split: name of the split, ``trainval`` or ``test`` for example.
        classes: names that the labels index, instead of ``data.classes``.
        limit: number of images to keep, the first ones of the split. The default keeps all.

    Raises:
        SppdetError: the folder is missing, or an error of `read_dataset`.
    """
    is_shapes = config.data.root == "shapes"
    if is_shapes and Path("shapes").is_dir():
        warnings.warn(
            "data.root=shapes names the synthetic data set; give data.root=./shapes to read your folder", stacklevel=2
        )
    root = make_shapes(Path(config.run.cache) / "shapes") if is_shapes else Path(config.data.root)
    if not root.is_dir():  # a relative path may come from a run that was started in another folder
        raise SppdetError(f"data.root: there is no folder {root} in {Path.cwd()}; give data.root=FOLDER")
    return read_dataset(root, split, config.data.classes if classes is None else classes, limit)
