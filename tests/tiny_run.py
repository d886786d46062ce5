"""A training of seconds on the drawn images, whose results the tests look at."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

import sppdet
from sppdet import config
from sppdet.detection.detector import Detector
from sppdet.training.pipeline import Pipeline

SETTINGS = {
    "backbone": {"name": "small", "weights": "random", "precision": "float32"},
    "regions": {"scales": [160], "target": 64},
    "pooling": {"levels": [3, 1]},
    "svm": {"random_negatives": 60, "max_negatives": 60, "C": 0.01},
    "bbox": {"max_windows": 100},
    "calibration": {"folds": 0},  # its tests have folds
    "device": "cpu",
    "workers": 1,
}


class TinyRun:
    """A data set, a cache and a run of the tiny configuration.

    Args:
        folder: where the run, its configuration and, unless given, the cache lie.
        root: the data set.
        cache: the cache; one of a finished run saves time.
    """

    def __init__(self, folder: Path, root: Path, cache: Path | None = None):
        folder.mkdir(exist_ok=True)
        self.root, self.folder, self.cache = root, folder / "run", cache or folder / "cache"
        self.yaml = folder / "tiny.yaml"
        run = {"dir": str(self.folder), "cache": str(self.cache)}
        self.yaml.write_text(yaml.safe_dump({**SETTINGS, "data": {"root": str(root)}, "run": run}))

    def pipeline(self, *overrides: str, keep: bool = False) -> Pipeline:
        """Return the stages of the run."""
        return Pipeline(config.load(self.yaml, overrides), keep)

    def train(self, *overrides: str, last: str = "evaluate", force: bool = False, keep: bool = False) -> None:
        """Run the stages up to ``last``."""
        self.pipeline(*overrides, keep=keep).run(last, force)

    def detector(self) -> Detector:
        """Load the detector that the run has saved."""
        return sppdet.load(self.folder, device="cpu")

    def model(self) -> bytes:
        """Return the content of the model's files."""
        return (self.folder / "model.json").read_bytes() + (self.folder / "model.safetensors").read_bytes()

    def json(self, name: str) -> dict:
        """Return the content of a JSON file of the run, without its checksum."""
        content = json.loads((self.folder / name).read_text())
        return (
            {key: value for key, value in content.items() if key != "checksum"}
            if isinstance(content, dict)
            else content
        )

    def times(self, pattern: str = "stages/**/*") -> dict[str, int]:
        """Return when each file of the run that matches was written, by path within the run."""
        paths = self.folder.glob(pattern)
        return {str(path.relative_to(self.folder)): path.stat().st_mtime_ns for path in paths if path.is_file()}

    def stored(self, kind: str, suffix: str) -> list[str]:
        """Return the names of cached proposals (.npy), maps (.b2nd) or crops (.rows)."""
        return sorted(path.stem for path in (self.cache / kind).rglob(f"*{suffix}"))
