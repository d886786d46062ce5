"""Checks of what model.json says, before and after a detector is built from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sppdet.config import Config, PoolingSettings, RegionSettings, check
from sppdet.detection.detector import Detector
from sppdet.detection.linear_layers import Softmax
from sppdet.detection.model_files import REMEDY
from sppdet.utils import SppdetError


def checked_backbone(described: dict) -> dict:
    """Return a description of a backbone whose entries were checked for their types.

    Raises:
        TypeError, KeyError: an entry is missing or of another type.
    """
    package = described.get("package")
    texts = [described["name"], described["precision"]]
    texts += [] if package is None else [package[key] for key in ("name", "version", "sha256", "trunk")]
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("the entries of 'backbone' are text")
    return described


def check_classes(path: Path, classes: list) -> None:
    """Refuse names of classes that are no text, or that repeat."""
    if not classes or not all(isinstance(name, str) for name in classes) or len(set(classes)) < len(classes):
        raise SppdetError(f"{path}: 'classes' are not a list of different names; {REMEDY}")


def check_shapes(path: Path, detector: Detector) -> None:
    """Refuse linear layers that do not fit the classes and the features of the description."""
    classes, features = len(detector.classes), detector.features
    if detector.calibration is not None and len(detector.calibration.curves) != classes:
        curves = len(detector.calibration.curves)
        raise SppdetError(f"{path}: 'calibration' has {curves} classes, and the model {classes}; {REMEDY}")
    rows = classes + isinstance(detector.classifier, Softmax)
    expected: dict[str, tuple[Any, tuple[int, ...]]]
    expected = {"classifier": (detector.classifier, (rows, features.dimension))}
    if detector.regressors is not None:
        of_head = detector.regressors.of_head
        inputs = features.dimension if of_head else features.pooled_dimension
        expected["bbox"] = (detector.regressors, (classes, 4, inputs))
    if detector.image_svms is not None:
        expected["context"] = (detector.image_svms, (classes, features.dimension))
    for name, (layer, shape) in expected.items():
        if layer.weight.shape != shape or layer.bias.shape != shape[:-1]:
            raise SppdetError(
                f"{path}: the weights '{name}' are {layer.weight.shape}, but classes and features need {shape}; "
                f"{REMEDY}"
            )


def checked_features(description: dict, layers: int) -> dict[str, Any]:
    """Return a description of features with its values checked, and converted, by the classes of the settings.

    Args:
        description: in model.json.
        layers: of the backbone.
    """
    values = dict(description)
    names: dict[type[RegionSettings] | type[PoolingSettings], tuple[str, ...]] = {
        RegionSettings: ("scales", "max_side", "target", "shrink"),
        PoolingSettings: ("levels", "layer_levels", "layer_weights", "samples", "map_type"),
    }
    for kind in names:
        present = [name for name in names[kind] if name in values]
        settings = kind(**{name: values[name] for name in present})
        values |= {name: getattr(settings, name) for name in present}
    for name in ("layer_levels", "layer_weights"):
        if len(values.get(name, ())) not in (0, layers):
            raise ValueError(f"{name} has {len(values[name])} entries for {layers} layers of the backbone")
    if "crop" in values:
        keys = {"kind": "crop", "size": "crop_size", "context": "context"}
        check(Config(regions=RegionSettings(**{keys[name]: value for name, value in values["crop"].items()})))
    return values
