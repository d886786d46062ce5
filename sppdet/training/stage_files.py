"""The files of what the stages of training have learned, below RUN/stages, and the detector's last layers from them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np

from sppdet.detection import BoxRegressors, LinearSVMs, Softmax
from sppdet.features import WindowFeatures
from sppdet.networks import Head
from sppdet.training.cached_result import read_result
from sppdet.training.held_out import HeldOut
from sppdet.training.locations import ClassWindows
from sppdet.training.perhaps_missed import PerhapsMissed
from sppdet.utils import entries_under, fingerprint, read_json

_LONGEST_NAME = 150  # characters of a class's name in a file's; file systems limit the whole to 255 bytes


class StageFiles:
    """The result files of one run and the layers that they hold.

    `sppdet.training.cached_result.write_result` writes each file.

    Args:
        folder: RUN/stages.
        classes: K names, in the detector's order.

    Attributes:
        pretrained: the trunk of stage ``pretrain``.
        end_to_end: trunk, head and last layers of stage ``end_to_end``.
        fine_tuned: the head of stage ``finetune``.
        balance: the factor of fc7 for features ``pool5+fc7``.
    """

    def __init__(self, folder: Path, classes: Sequence[str]):
        self.folder, self.classes = folder, classes
        self.pretrained = folder / "pretrain.safetensors"
        self.end_to_end = folder / "end_to_end.safetensors"
        self.fine_tuned = folder / "finetune.safetensors"
        self.balance = folder / "balance.safetensors"

    def of_class(self, stage: str, k: int) -> Path:
        """Return the file of class k of stage ``svm``, ``context``, ``bbox`` or ``calibration``.

        Those of ``windows`` and ``perhaps_missed`` are written with the SVMs: the windows that these were fitted to,
        and what is perhaps an object without a label.
        """
        name = quote(self.classes[k], safe=" ")
        if len(name) > _LONGEST_NAME:
            name = f"{name[:_LONGEST_NAME]}-{fingerprint(self.classes[k])}"
        return self.folder / stage / f"{name}.safetensors"

    def svms(self, stage: str = "svm") -> LinearSVMs:
        """Read the SVMs of all classes of stage ``svm`` or ``context``."""
        weight, bias = self._stacked(stage)
        return LinearSVMs(weight, bias[:, 0])

    def windows(self, k: int) -> ClassWindows:
        """Read the windows that the SVM of class k was fitted to."""
        return ClassWindows.restore(_arrays(self.of_class("windows", k)))

    def held_out(self, k: int) -> HeldOut:
        """Read the detections of class k in images that its SVM did not learn from."""
        return HeldOut.restore(_arrays(self.of_class("calibration", k)))

    def perhaps_missed(self, k: int) -> PerhapsMissed:
        """Read the detections of class k that are perhaps objects without a label."""
        return PerhapsMissed.restore(_arrays(self.of_class("perhaps_missed", k)))

    def softmax(self) -> Softmax:
        """Read the softmax classifier of the end-to-end training."""
        return Softmax(**self._layer("classify."))

    def regressors(self, kind: str, features: WindowFeatures, head: Head | None) -> BoxRegressors:
        """Read the box regressors of all classes.

        Args:
            kind: the setting ``bbox.kind``.
            features: the features that the classifier sees.
            head: the fc layers of these features; joint boxes need them.
        """
        if kind == "joint":
            return BoxRegressors(*self._joint_boxes(features, head), of_head=True)
        ridge = BoxRegressors(*self._stacked("bbox"))
        if features.concat_pooled:
            ridge = ridge.beside_fc7(features.dimension)
        if kind == "ridge+joint":
            # --keep adds later classes
            learned_jointly = read_json(self.end_to_end.with_suffix(".json"), classes=list)["classes"]
            common = [k for k, name in enumerate(self.classes) if name in learned_jointly]
            rows = [learned_jointly.index(self.classes[k]) for k in common]
            for learned, joint in zip((ridge.weight, ridge.bias), self._joint_boxes(features, head)):
                learned[common] = (learned[common] + joint[rows]) / 2
        return ridge

    def _joint_boxes(self, features: WindowFeatures, head: Head | None) -> tuple[np.ndarray, np.ndarray]:
        """Return weights ``(K, 4, D)`` and biases ``(K, 4)`` of the end-to-end training's boxes, for ``features``."""
        layer = self._layer("move.")
        bias = layer["bias"].reshape(-1, 4)
        weight = layer["weight"].reshape(*bias.shape, -1)
        if features.concat_pooled and head is not None:
            # The vectors begin with the pooled one, which the layer has not seen, and their fc7 is multiplied.
            weight = np.pad(weight / head.balance, [(0, 0), (0, 0), (features.pooled_dimension, 0)])
        return weight, bias

    def _layer(self, prefix: str) -> dict[str, np.ndarray]:
        """Return weight and bias of a layer of the end-to-end training."""
        return entries_under(_arrays(self.end_to_end), prefix)

    def _stacked(self, stage: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the weights and biases of all classes of a stage, stacked in the classes' order."""
        arrays = [_arrays(self.of_class(stage, k)) for k in range(len(self.classes))]
        weight, bias = (np.stack([of_class[name] for of_class in arrays]) for name in ("weight", "bias"))
        return weight, bias


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """Return what `read_result` reads, as arrays."""
    return {name: value.numpy() for name, value in read_result(path).items()}
