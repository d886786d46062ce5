"""Several detectors as one, which looks at every window with each of them (SPP-net, section 4.4).

There the suppression runs over the union of both models' windows and scores. Here both see the same windows, so a
window's margin and its shift are the means of theirs: docs/best.md has what either gives. As in the paper, what differs
must be the conv layers, and a class's margins must mean the same in all: SVMs and a softmax are not mixed.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from sppdet.config import DetectionSettings
from sppdet.detection import detector as detectors
from sppdet.detection.detector import Detector
from sppdet.detection.predictor import Predictor, WindowScores
from sppdet.proposals import SelectiveSearch
from sppdet.utils import SppdetError, file_digest, read_json, write_json

_FORMAT = "combination 1"
MODEL_FILES = ("model.json", "model.safetensors")


@dataclass
class Ensemble(Predictor):
    """Detectors of the same classes, whose margins and shifts are averaged.

    Attributes:
        detectors: at least one; the first's proposals are looked at.
        shares: of each in the mean; their sum is 1.
        detection: thresholds; ``context`` is for those that have SVMs of whole images.
    """

    detectors: tuple[Detector, ...]
    shares: tuple[float, ...]
    detection: DetectionSettings

    def __post_init__(self):
        with_images = [one.context is not None for one in self.detectors]
        if self.detection.context and not any(with_images):
            raise SppdetError("detection.context: none of these models has SVMs of whole images")
        self.detectors = tuple(
            one.with_detection(replace(self.detection, context=self.detection.context if there else 0.0))
            for one, there in zip(self.detectors, with_images)
        )

    @property
    def classes(self) -> tuple[str, ...]:
        return self.detectors[0].classes

    @property
    def search(self) -> SelectiveSearch:
        return self.detectors[0].search

    @property
    def parts(self) -> tuple[Detector, ...]:
        return self.detectors

    @property
    def needs_windows(self) -> bool:
        return any(one.needs_windows for one in self.detectors)

    def with_detection(self, detection: DetectionSettings) -> Ensemble:
        return replace(self, detection=detection)

    def read(self, image: np.ndarray, proposals: np.ndarray | None = None) -> tuple:
        return tuple(one.read(image, proposals) for one in self.detectors)

    def of_parts(self, read: Sequence) -> tuple:
        return tuple(read)

    def views(self, maps, proposals: np.ndarray, size: tuple[int, int], mirrored) -> list[tuple[float, WindowScores]]:
        there = (None,) * len(maps) if mirrored is None else mirrored
        return [
            (share * part, view)
            for one, share, own, other in zip(self.detectors, self.shares, maps, there)
            for part, view in one.views(own, proposals, size, other)
        ]


def combine(folders: Sequence[Path], weights: Sequence[float], output: Path) -> None:
    """Make a run's folder of those of several runs: copies of their models, and the first one's config.json.

    Args:
        weights: what each counts, of any sum.

    Raises:
        SppdetError: runs that do not fit each other, or an output that is there already or cannot be written.
    """
    if output.exists():
        raise SppdetError(f"{output}: is there already; give another --output")
    if not all(np.isfinite(weights)) or min(weights) <= 0 or len(weights) != len(folders):
        raise SppdetError(f"--weights: give a number above 0 for each of the {len(folders)} runs")
    if any(map(is_combined, folders)):
        raise SppdetError("combinations cannot be combined: name the runs that they were made of")
    models = [detectors.load_detector(folder, "cpu") for folder in folders]
    _check(folders, models)
    shares = [weight / sum(weights) for weight in weights]
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as place:
            made = Path(place) / output.name
            _write(folders, models[0], shares, made, output)
            made.rename(output)
    except OSError as error:
        raise SppdetError(f"{output}: cannot be written ({error.strerror}); choose another place") from None


def _write(folders: Sequence[Path], first: Detector, shares: Sequence[float], made: Path, output: Path) -> None:
    """Into the folder ``made`` what will be ``output``."""
    parts = [_part(folder, made, f"parts/{n}", share) for n, (folder, share) in enumerate(zip(folders, shares))]
    settings = read_json(folders[0] / "config.json")
    write_json(made / "config.json", settings | {"run": settings["run"] | {"dir": str(output)}})
    description = {
        "format": _FORMAT,
        "classes": list(first.classes),
        "proposals": asdict(first.search),
        "detection": asdict(first.detection),
        "parts": parts,
    }
    write_json(made / MODEL_FILES[0], description)


def _part(folder: Path, made: Path, name: str, share: float) -> dict:
    """Copy a model; what the description says of it. Its digests make the combination's key for what was measured."""
    (made / name).mkdir(parents=True)
    for file in MODEL_FILES:
        shutil.copyfile(folder / file, made / name / file)
    return {"folder": name, "share": share, "run": folder.name, "digests": _digests(folder)}


def is_combined(folder: Path) -> bool:
    """Whether it holds several detectors, and so nothing that can be trained."""
    return _described(folder).get("format") == _FORMAT


def is_of(combined: Path, folders: Sequence[Path]) -> bool:
    """Whether it was made of these runs as they are now."""
    parts = _described(combined).get("parts", [])
    return [part["digests"] for part in parts] == [_digests(folder) for folder in folders]


def _digests(folder: Path) -> list[str]:
    return [file_digest(folder / file) for file in MODEL_FILES]


def _check(folders: Sequence[Path], models: Sequence[Detector]) -> None:
    if not (folders[0] / "config.json").is_file():
        raise SppdetError(f"{folders[0]}/config.json: is not there; name a run's folder")
    first = models[0]
    for folder, model in zip(folders[1:], models[1:]):
        if model.classes != first.classes:
            raise SppdetError(
                f"{folder}: its classes ({', '.join(model.classes)}) are not those of {folders[0]} "
                f"({', '.join(first.classes)})"
            )
        if type(model.classifier) is not type(first.classifier):
            raise SppdetError(f"{folder}: SVMs and a softmax cannot be averaged; {folders[0]} has the other one")


def load(folder: str | Path, device: str = "auto") -> Detector | Ensemble:
    """The detector saved in ``folder``, a run's folder such as ``runs/demo``, or the combination."""
    folder = Path(folder)
    if not is_combined(folder):
        return detectors.load_detector(folder, device)
    description = _described(folder)
    return Ensemble(
        detectors=tuple(detectors.load_detector(folder / part["folder"], device) for part in description["parts"]),
        shares=tuple(part["share"] for part in description["parts"]),
        detection=DetectionSettings(**description["detection"]),
    )


def _described(folder: Path) -> dict:
    path = folder / MODEL_FILES[0]
    return read_json(path) if path.is_file() else {}
