"""Ensembles in files, and loading what a folder holds, a detector or an ensemble.

The folder of an ensemble is like that of a run. Its model.json names the parts: copies of the runs' model files.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from sppdet.config import DetectionSettings
from sppdet.detection.detector import Detector
from sppdet.detection.ensemble import Ensemble
from sppdet.detection.model_files import MODEL_FILES, REMEDY
from sppdet.detection.saved_model import load_detector
from sppdet.detection.shipped import model_folder
from sppdet.utils import SppdetError, errors_naming, file_digest, new_folder, read_json, write_json

_ENSEMBLE_FORMAT = "combination 1"


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
    with errors_naming(path, REMEDY):
        folders = [folder / part["folder"] for part in description["parts"]]
        weights = tuple(float(part["share"]) for part in description["parts"])
        detection = DetectionSettings(**description["detection"])
        if not folders or not all(np.isfinite(weights)) or min(weights) <= 0:
            raise SppdetError(f"{path}: 'parts' are {len(folders)} with the shares {list(weights)}; {REMEDY}")
    detectors = tuple(load_detector(part, device) for part in folders)
    return Ensemble(detectors=detectors, weights=weights, detection=detection)


def combine_runs(folders: Sequence[Path], weights: Sequence[float], output: Path) -> None:
    """Write an ensemble of several runs: copies of their model files, and the config.json of the first run.

    Args:
        folders: the runs' folders. The first one computes the proposals, and its settings hold for the ensemble
            (without ``detection.rescore`` if one of the runs is R-CNN). Any other may be ``voc07``, the detector that
            is part of the package.
        weights: the weight of each run in the means of margins and box regressions, above 0; any sum.
        output: the folder to write; it must not exist.

    Raises:
        SppdetError: if the runs do not fit each other, or ``output`` exists or cannot be written.
    """
    if output.exists():
        raise SppdetError(f"{output}: exists already; give another --output")
    if not all(np.isfinite(weights)) or min(weights) <= 0 or len(weights) != len(folders):
        raise SppdetError(f"--weights: give a number above 0 for each of the {len(folders)} runs")
    folders = [model_folder(folder) for folder in folders]
    for folder in filter(is_ensemble, folders):
        raise SppdetError(f"{folder}: ensembles cannot be combined; name the runs that it was made of")
    detectors = [load_detector(folder, "cpu") for folder in folders]
    _check_that_runs_fit(folders, detectors)
    shares = [weight / sum(weights) for weight in weights]
    with new_folder(output) as unfinished:
        _write_ensemble(folders, detectors, shares, unfinished, output)


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
    folders: Sequence[Path], detectors: Sequence[Detector], shares: Sequence[float], unfinished: Path, output: Path
) -> None:
    """Write into the folder ``unfinished`` what will be the folder ``output``."""
    parts = [
        _copy_part(folder, unfinished, f"parts/{n}", share) for n, (folder, share) in enumerate(zip(folders, shares))
    ]
    first = detectors[0]
    detection = asdict(first.detection)
    settings = read_json(folders[0] / "config.json", run=dict)
    settings["run"] |= {"dir": str(output)}
    if any(detector.features.needs_windows for detector in detectors):  # crops of moved boxes are not read
        detection["rescore"] = 0.0
        settings["detection"] = settings.get("detection", {}) | {"rescore": 0.0}
    write_json(unfinished / "config.json", settings)
    description = {
        "format": _ENSEMBLE_FORMAT,
        "classes": list(first.classes),
        "proposals": asdict(first.search),
        "detection": detection,
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


def is_ensemble(folder: Path) -> bool:
    """Whether ``folder`` holds an ensemble, which cannot be trained."""
    return _read_description(folder).get("format") == _ENSEMBLE_FORMAT


def is_ensemble_of(ensemble: Path, folders: Sequence[Path]) -> bool:
    """Whether the folder ``ensemble`` was made of these runs as they are now."""
    with errors_naming(ensemble / "model.json", REMEDY):
        parts = _read_description(ensemble).get("parts", [])
        return [part["digests"] for part in parts] == [_digests(folder) for folder in folders]


def _digests(folder: Path) -> list[str]:
    return [file_digest(folder / file) for file in MODEL_FILES]


def _read_description(folder: Path) -> dict:
    """Read the model.json in ``folder``; empty if there is none."""
    path = folder / "model.json"
    return read_json(path) if path.is_file() else {}
