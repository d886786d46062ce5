"""One network and what was learned on top of it, as users hold it; saved as JSON and safetensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from sppdet.config import DetectionSettings
from sppdet.detection.linear_layers import BoxRegressors, LinearSVMs, Softmax
from sppdet.detection.predictor import Predictor
from sppdet.features import Crop, CropFeatures, PyramidFeatures, WindowFeatures
from sppdet.networks import Backbone, Head, restore_trunk
from sppdet.ops import Products
from sppdet.ops import boxes as geometry
from sppdet.proposals import SelectiveSearch
from sppdet.utils import SppdetError, atomic_write, entries_under, read_json, write_json

_FORMAT = 2


@dataclass
class Detector(Predictor):
    """A trained detector.

    Attributes:
        classes: K names.
        backbone, features, search: how an image becomes window vectors.
        classifier, regressors: what they are multiplied with; ``regressors`` may be None.
        detection: thresholds.
        head: the fc layers whose output the classifier sees, None for ``pool5``.
        context: the SVMs of whole images, see :mod:`sppdet.training.image_svms`; None if none were learned.
    """

    classes: tuple[str, ...]
    backbone: Backbone
    features: WindowFeatures
    search: SelectiveSearch
    classifier: LinearSVMs | Softmax
    regressors: BoxRegressors | None
    detection: DetectionSettings
    head: Head | None = None
    context: LinearSVMs | None = None

    def __post_init__(self):
        if self.detection.context and self.context is None:
            raise SppdetError("detection.context: this model has no SVMs of whole images; train with it to have them")

    @cached_property
    def joint(self) -> bool:
        """Whether all windows' shifts are computed with their margins.

        Behind fc layers vectors are short, and dear to compute twice; with voting most windows are candidates.
        """
        if self.regressors is None:
            return False
        return self.regressors.of_head or (self.features.head is None and self.detection.vote > 0)

    @cached_property
    def weights(self) -> Products:
        """Those of the classifier and, if they are ``joint``, of the box regressors, which need not be exact: half a
        percent of a shift does not matter."""
        moves = self.regressors.weight.reshape(-1, self.features.dimension) if self.joint else None
        return Products(self.classifier.weight, moves, self.features.half)

    @cached_property
    def context_weights(self) -> Products:
        """Those of the SVMs of whole images."""
        return Products(self.context.weight, half=self.features.half)

    @property
    def parts(self) -> tuple[Detector]:
        return (self,)

    @property
    def needs_windows(self) -> bool:
        return self.features.needs_windows

    def with_detection(self, detection: DetectionSettings) -> Detector:
        return replace(self, detection=detection)

    def read(self, image: np.ndarray, proposals: np.ndarray | None = None):
        return self.features.read(self.backbone, image, proposals)

    def of_parts(self, read: Sequence):
        return read[0]

    def views(self, maps, proposals: np.ndarray, size: tuple[int, int], mirrored) -> list[tuple[float, WindowScores]]:
        if not len(proposals):
            return []
        if mirrored is None:
            return [(1.0, WindowScores(self, maps, proposals, size))]
        there = WindowScores(self, mirrored, geometry.mirror(proposals, size[0]), size, mirrored=True)
        return [(0.5, WindowScores(self, maps, proposals, size)), (0.5, there)]

    def save(self, folder: str | Path) -> None:
        """Write ``model.json`` and ``model.safetensors`` into ``folder``."""
        folder = Path(folder)
        description = {
            "format": _FORMAT,
            "classes": list(self.classes),
            "classifier": "softmax" if isinstance(self.classifier, Softmax) else "svm",
            "backbone": {"name": self.backbone.name, "precision": self.backbone.precision},
            "features": self.features.description(),
            "proposals": asdict(self.search),
            "head": self.head.description() if self.head else None,
            "bbox_of_head": self.regressors.of_head if self.regressors else None,
            "detection": asdict(self.detection),
        }
        tensors = {f"trunk.{key}": value for key, value in self.backbone.trunk.state_dict().items()}
        tensors |= {f"head.{key}": value for key, value in self.head.state_dict().items()} if self.head else {}
        tensors |= {"classifier.weight": self.classifier.weight, "classifier.bias": self.classifier.bias}
        if self.regressors is not None:
            tensors |= {"bbox.weight": self.regressors.weight, "bbox.bias": self.regressors.bias}
        if self.context is not None:
            tensors |= {"context.weight": self.context.weight, "context.bias": self.context.bias}
        tensors = {key: torch.as_tensor(value).cpu().contiguous() for key, value in tensors.items()}
        atomic_write(folder / "model.safetensors", lambda path: save_file(tensors, path))
        write_json(folder / "model.json", description)


class WindowScores:
    """The proposals ``(N, 4)`` of an image, or of its mirror image, as a detector sees them.

    A :class:`sppdet.detection.predictor.View`.
    """

    def __init__(self, detector: Detector, maps, proposals: np.ndarray, size: tuple[int, int], mirrored: bool = False):
        self.mirrored, self.moves = mirrored, detector.regressors is not None
        self._features, self._regressors, self._maps = detector.features, detector.regressors, maps
        self._windows = detector.features.windows(proposals, size, maps)
        products, shifts = self._features.products(maps, self._windows, detector.weights)
        self.margins = detector.classifier.margins(products + detector.classifier.bias)[self._windows.group]
        if detector.detection.context:
            self.margins += detector.detection.context * np.minimum(self._image_margins(detector, size), 0)
        bias = self._regressors.bias if detector.joint else None
        self._shifts = None if bias is None else shifts.reshape(-1, *bias.shape) + bias

    def _image_margins(self, detector: Detector, size: tuple[int, int]) -> np.ndarray:
        """``(K,)``: does the image hold such an object?"""
        whole = self._features.whole(self._maps, size)
        return self._features.products(self._maps, whole, detector.context_weights)[0][0] + detector.context.bias

    def deltas(self, chosen: np.ndarray, labels: np.ndarray) -> np.ndarray:
        group = self._windows.group[chosen]
        if self._shifts is not None:
            return self._shifts[group, labels]
        present, column = np.unique(labels, return_inverse=True)
        weight = self._regressors.weight[present].reshape(4 * len(present), -1)
        weights = Products(weight[:0], weight, self._features.half)
        _, shifts = self._features.pooled.products(self._maps, self._windows, weights, np.unique(group))
        return (shifts.reshape(-1, len(present), 4) + self._regressors.bias[present])[group, column]


def load_detector(folder: str | Path, device: str = "auto") -> Detector:
    """The detector saved in ``folder``, a run's folder such as ``runs/demo``."""
    folder = Path(folder)
    if not (folder / "model.json").is_file():
        raise SppdetError(f"{folder}: no finished model (model.json) here; train one with python -m sppdet.train")
    description = read_json(folder / "model.json")
    if description.get("format") != _FORMAT:
        raise SppdetError(f"{folder}/model.json: format {description.get('format')}, this version reads {_FORMAT}")
    try:
        tensors = load_file(folder / "model.safetensors")
    except (OSError, SafetensorError) as error:
        raise SppdetError(f"{folder}/model.safetensors: cannot be read ({error}); train again") from None

    name, precision = description["backbone"]["name"], description["backbone"]["precision"]
    try:
        trunk = restore_trunk(name, entries_under(tensors, "trunk."))
    except RuntimeError:
        raise SppdetError(f"{folder}: its weights do not fit this version's {name}; train again") from None
    # bfloat16 only if this machine multiplies it natively: elsewhere it would be slower than float32.
    backbone = Backbone.wrap(name, trunk, device, "auto" if precision == "bfloat16" else precision)
    features = _features(description["features"], backbone)
    head = None
    if description["head"]:
        learned = entries_under(tensors, "head.")
        head = Head.restore(features.pooled_dimension, description["head"], learned, backbone.bfloat16_on_cpu)
        features = features.under(head)
    arrays = {key: value.numpy() for key, value in tensors.items() if not key.startswith(("trunk.", "head."))}
    moves, images = entries_under(arrays, "bbox."), entries_under(arrays, "context.")
    kind = {"svm": LinearSVMs, "softmax": Softmax}[description["classifier"]]
    return Detector(
        classes=tuple(description["classes"]),
        backbone=backbone,
        features=features,
        search=SelectiveSearch(**description["proposals"]),
        classifier=kind(**entries_under(arrays, "classifier.")),
        regressors=BoxRegressors(**moves, of_head=description["bbox_of_head"]) if moves else None,
        detection=DetectionSettings(**description["detection"]),
        head=head,
        context=LinearSVMs(**images) if images else None,
    )


def _features(description: dict, backbone: Backbone) -> WindowFeatures:
    """What :meth:`WindowFeatures.description` describes, on this backbone."""
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in description.items()}
    if "crop" in values:
        return CropFeatures(channels=backbone.channels, crop=Crop(**values["crop"]), levels=values["levels"])
    return PyramidFeatures(grid=backbone.grid, channels=backbone.channels, half=backbone.bfloat16_on_cpu, **values)
