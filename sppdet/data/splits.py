"""The split of a data set that a configuration names."""

from __future__ import annotations

import warnings
from pathlib import Path

from sppdet.config import Config
from sppdet.data.dataset import Dataset
from sppdet.data.shapes import make_shapes
from sppdet.data.voc import read_voc
from sppdet.utils import SppdetError


def load_split(config: Config, split: str, classes=None, limit: int | None = None) -> Dataset:
    """A split of the configured data set; ``data.root=shapes`` is drawn in the cache on first use."""
    shapes = config.data.root == "shapes"
    if shapes and Path("shapes").is_dir():
        warnings.warn("data.root=shapes is the drawn set; ./shapes names the folder of yours", stacklevel=1)
    root = make_shapes(Path(config.run.cache) / "shapes") if shapes else Path(config.data.root)
    if not root.is_dir():  # a run remembers the path as it was given
        raise SppdetError(f"data.root: there is no folder {root} in {Path.cwd()}; give data.root=FOLDER")
    return read_voc(root, split, classes=config.data.classes if classes is None else classes, limit=limit)
