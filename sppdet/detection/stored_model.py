"""The files of a model as they are stored: its classes are taken out, added and renamed without touching the others.

No network is built, and no number is converted: what belongs to a class is a row of some arrays and an entry of
model.json.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sppdet.detection.compact import expand
from sppdet.detection.model_files import finish_update
from sppdet.detection.saved_ensemble import is_ensemble
from sppdet.utils import SppdetError, read_arrays, read_json, write_json, write_tensors

_OF_CLASSES = (
    *(f"{group}.{name}" for group in ("classifier", "bbox", "context") for name in ("weight", "bias")),
    "bbox.step",
)
# Entries of model.json that two models must share to be one detector, with their names for the user.
_SHARED = {
    "backbone": "network", "features": "features", "proposals": "proposals", "head": "fc layers",
    "bbox_of_head": "features of box regression",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class StoredClass:
    """What a model's files hold of one class.

    Attributes:
        name: of the class.
        arrays: its rows of the linear layers, by the arrays' names.
        calibration: its entry of the calibration; None without.
    """

    name: str
    arrays: dict[str, np.ndarray]
    calibration: dict[str, Any] | None = None


@dataclass(frozen=True, eq=False)
class StoredModel:
    """The files of a model with SVMs.

    Attributes:
        folder: where they were read.
        description: the content of model.json.
        tensors: the content of model.safetensors.
    """

    folder: Path
    description: dict[str, Any]
    tensors: dict[str, np.ndarray]

    @classmethod
    def read(cls, folder: str | Path) -> StoredModel:
        """Read the files of a model.

        Raises:
            SppdetError: there is none, or one whose classes cannot be changed one by one.
        """
        folder = Path(folder)
        finish_update(folder)
        if not (folder / "model.json").is_file():
            raise SppdetError(f"{folder}: no finished model (model.json) here; give the folder of a run")
        if is_ensemble(folder):
            raise SppdetError(f"{folder}: is an ensemble; change the classes of its runs and combine them again")
        description = read_json(folder / "model.json", classes=list, classifier=str)
        if description["classifier"] != "svm":
            raise SppdetError(f"{folder}: a softmax is learned for all classes at once; train with classifier=svm")
        return cls(folder, description, read_arrays(folder / "model.safetensors", "train again"))

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in order."""
        return tuple(self.description["classes"])

    def stored_classes(self) -> list[StoredClass]:
        """Return what the files hold of each class."""
        calibration = self.description.get("calibration")
        return [
            StoredClass(
                name,
                {key: self.tensors[key][k] for key in _OF_CLASSES if key in self.tensors},
                calibration["classes"][k] if calibration else None,
            )
            for k, name in enumerate(self.classes)
        ]

    def with_classes(self, classes: Sequence[StoredClass]) -> StoredModel:
        """Return the model with these classes in place of its own."""
        description = self.description | {"classes": [one.name for one in classes]}
        if calibration := description.get("calibration"):
            entries = [one.calibration or calibration["shared"] for one in classes]
            description["calibration"] = calibration | {"classes": entries}
        arrays = {key: np.stack([one.arrays[key] for one in classes]) for key in _OF_CLASSES if key in self.tensors}
        return replace(self, description=description, tensors=self.tensors | arrays)

    def expanded(self) -> StoredModel:
        """Return the model with box regression that is stored as codes as numbers of half precision."""
        if "bbox.step" not in self.tensors:
            return self
        tensors = {key: value for key, value in self.tensors.items() if key != "bbox.step"}
        weight = expand({"weight": self.tensors["bbox.weight"], "step": self.tensors["bbox.step"]})["weight"]
        return replace(self, tensors=tensors | {"bbox.weight": weight.astype(np.float16)})

    def difference(self, other: StoredModel) -> str | None:
        """Return what keeps two models from being one detector of the classes of both; None if nothing does."""
        for key, name in _SHARED.items():
            if self.description.get(key) != other.description.get(key):
                return name
        shared = [key for key in self.tensors if key not in _OF_CLASSES]
        if {*shared} != {key for key in other.tensors if key not in _OF_CLASSES}:
            return "network"
        for key in shared:
            if not np.array_equal(self.tensors[key], other.tensors[key]):
                return "weights of the network"
        for group, name in (("bbox.weight", "box regression"), ("context.weight", "detection.context")):
            if (group in self.tensors) != (group in other.tensors):
                return name
        return None

    def write(self, folder: Path) -> None:
        """Write the files into a folder that exists."""
        tensors = {key: np.ascontiguousarray(value) for key, value in self.tensors.items()}
        write_tensors(folder / "model.safetensors", tensors)
        write_json(folder / "model.json", self.description, sealed=True)
