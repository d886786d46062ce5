"""What the stages of training have learned: files below RUN/stages, and the last layers of a detector made of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np
from safetensors.torch import load_file

from sppdet.detection import BoxRegressors, LinearSVMs, Softmax
from sppdet.features import WindowFeatures
from sppdet.networks import Head
from sppdet.utils import entries_under, fingerprint, read_json

_LONGEST = 150  # of a class's name in a file's, which systems limit to 255


class StageFiles:
    """The files of one run, each of which :func:`sppdet.training.cached_result.finish` writes, and the layers that they hold.

    Args:
        folder: RUN/stages.
        classes: their names, in the detector's order.

    Attributes:
        pretrained, end_to_end, fine_tuned, balance: what is learned for all classes at once.
    """

    def __init__(self, folder: Path, classes: Sequence[str]):
        self.folder, self.classes = folder, classes
        self.pretrained = folder / "pretrain.safetensors"
        self.end_to_end = folder / "end_to_end.safetensors"
        self.fine_tuned = folder / "finetune.safetensors"
        self.balance = folder / "balance.safetensors"

    def of_class(self, stage: str, k: int) -> Path:
        """The file of class k, of stage ``svm``, ``context`` or ``bbox``."""
        name = quote(self.classes[k], safe=" ")
        if len(name) > _LONGEST:
            name = f"{name[:_LONGEST]}-{fingerprint(self.classes[k])}"
        return self.folder / stage / f"{name}.safetensors"

    def svms(self, stage: str = "svm") -> LinearSVMs:
        """Those of all classes, of stage ``svm`` or ``context``."""
        weight, bias = self._stacked(stage)
        return LinearSVMs(weight, bias[:, 0])

    def softmax(self) -> Softmax:
        """That of the end-to-end training."""
        return Softmax(**self._layer("classify."))

    def regressors(self, kind: str, features: WindowFeatures, head: Head | None) -> BoxRegressors:
        """Those of all classes.

        Args:
            kind: as in the configuration's ``bbox``.
            features, head: what the classifier sees.
        """
        if kind == "joint":
            return BoxRegressors(*self._joint_boxes(features, head), of_head=True)
        weight, bias = self._stacked("bbox")
        if kind == "ridge+joint":
            known = read_json(self.end_to_end.with_suffix(".json"))["classes"]  # with keep, some may be new since
            here = [k for k, name in enumerate(self.classes) if name in known]
            there = [known.index(self.classes[k]) for k in here]
            for ridge, joint in zip((weight, bias), self._joint_boxes(features, head)):
                ridge[here] = (ridge[here] + joint[there]) / 2
        return BoxRegressors(weight, bias, of_head=features.concat_pooled)

    def _joint_boxes(self, features: WindowFeatures, head: Head) -> tuple[np.ndarray, np.ndarray]:
        """What end-to-end training learned, for the vectors that the classifier sees: ``(K, 4, D)`` and ``(K, 4)``."""
        layer = self._layer("move.")
        bias = layer["bias"].reshape(-1, 4)
        weight = layer["weight"].reshape(*bias.shape, -1)
        if features.concat_pooled:  # they see the pooled vector too, and fc7 multiplied
            weight = np.pad(weight / head.balance, [(0, 0), (0, 0), (features.pooled_dimension, 0)])
        return weight, bias

    def _layer(self, prefix: str) -> dict[str, np.ndarray]:
        return {name: value.numpy() for name, value in entries_under(load_file(self.end_to_end), prefix).items()}

    def _stacked(self, stage: str) -> tuple[np.ndarray, np.ndarray]:
        """Weights and biases of all classes, one upon the other."""
        tensors = [load_file(self.of_class(stage, k)) for k in range(len(self.classes))]
        return tuple(np.stack([t[name].numpy() for t in tensors]) for name in ("weight", "bias"))
