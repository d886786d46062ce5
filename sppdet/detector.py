"""The detector that users hold: pictures in, boxes out; saved as JSON and safetensors."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torchvision.ops import batched_nms, nms

from sppdet import boxes as geometry
from sppdet.backbone import Backbone, build_trunk
from sppdet.config import Detection
from sppdet.detections import Detections
from sppdet.errors import SppdetError
from sppdet.features import PyramidFeatures, Windows
from sppdet.files import atomic_write, read_json, write_json
from sppdet.head import Head
from sppdet.images import to_rgb
from sppdet.linear import BoxRegressors, LinearSVMs
from sppdet.proposals import SelectiveSearch

_FORMAT = 1


@dataclass
class Detector:
    """SPP-net with its SVMs.

    Attributes:
        classes: K names.
        backbone, features, search: how a picture becomes window vectors.
        svms, regressors: what they are multiplied with; ``regressors`` may be None.
        detection: thresholds.
        head: the fc layers whose output the SVMs see, None for ``pool5``.
    """

    classes: tuple[str, ...]
    backbone: Backbone
    features: PyramidFeatures
    search: SelectiveSearch
    svms: LinearSVMs
    regressors: BoxRegressors | None
    detection: Detection
    head: Head | None = None

    def predict(self, image) -> Detections:
        """Find objects in a picture: a path, a Pillow image, or an RGB uint8 array ``(H, W, 3)``."""
        image = to_rgb(image)
        size = (image.shape[1], image.shape[0])
        threads = torch.get_num_threads()
        if threads == 1:  # one of many workers: other pictures take the other cores
            return self.detect(self._maps(image), self.search(image), size)
        with ThreadPoolExecutor(1) as helper:
            proposals = helper.submit(self.search, image)
            # The threads of a layer wait for each other: one that shared its core with the search would hold up all.
            torch.set_num_threads(threads - 1)
            try:
                maps = self._maps(image)
            finally:
                torch.set_num_threads(threads)
            return self.detect(maps, proposals.result(), size)

    def _maps(self, image: np.ndarray) -> list[np.ndarray]:
        return [self.backbone(image, factor) for factor in self.features.factors(image.shape[1], image.shape[0])]

    def detect(self, maps: Sequence[np.ndarray], proposals: np.ndarray, size: tuple[int, int]) -> Detections:
        """Detections among proposals ``(N, 4)`` of a picture of ``(width, height)``, from its conv maps."""
        return self.detect_both(maps, proposals, size)[1]

    def detect_both(
        self, maps: Sequence[np.ndarray], proposals: np.ndarray, size: tuple[int, int]
    ) -> tuple[Detections, Detections]:
        """Detections before and after box regression; twice the same if there is none.

        As in the originals, regression moves the boxes that survived the first suppression, leaves their scores,
        and is followed by a second suppression.
        """
        if not len(proposals):
            nothing = self._sorted(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.float32))
            return nothing, nothing
        windows = self.features.windows(proposals, size, maps)
        scores = self.features.linear(maps, windows, self.svms.weight, self.svms.bias)[windows.group]
        kept, labels = self._suppress(proposals, scores)
        boxes, scores = proposals[kept], scores[kept, labels]
        plain = self._sorted(boxes, labels, scores)
        if self.regressors is None or not len(kept):
            return plain, plain
        deltas = self._deltas(maps, windows, kept, labels)
        boxes = geometry.clip(geometry.decode(boxes, deltas), *size)
        again = batched_nms(*map(torch.from_numpy, (boxes, scores, labels)), self.detection.nms).numpy()
        return plain, self._sorted(boxes[again], labels[again], scores[again])

    def _sorted(self, boxes: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> Detections:
        order = np.argsort(-scores, kind="stable")
        return Detections(boxes[order], labels[order], scores[order], self.classes)

    def _suppress(self, boxes: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Windows and labels that survive, of ``(N, 4)`` boxes with ``(N, K)`` scores."""
        kept, labels = [], []
        for k in range(scores.shape[1]):
            rows = np.flatnonzero(scores[:, k] > self.detection.min_margin)
            best = np.argsort(-scores[rows, k], kind="stable")
            rows = rows[best[: self.detection.max_candidates]]
            survivors = nms(torch.from_numpy(boxes[rows]), torch.from_numpy(scores[rows, k]), self.detection.nms)
            rows = rows[survivors[: self.detection.max_per_class].numpy()]
            kept.append(rows)
            labels.append(np.full(len(rows), k, np.int64))
        return np.concatenate(kept), np.concatenate(labels)

    def _deltas(self, maps: Sequence[np.ndarray], windows: Windows, kept: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """``(n, 4)`` shifts of the windows ``kept``, each by the regressor of its label."""
        rows, inverse = np.unique(windows.group[kept], return_inverse=True)
        present, column = np.unique(labels, return_inverse=True)
        weight = self.regressors.weight[present].reshape(4 * len(present), -1)
        pooled = self.features.pooled.vectors(maps, windows, rows)
        every = torch.mm(torch.from_numpy(pooled), torch.from_numpy(weight).T).numpy()
        every = every.reshape(len(rows), len(present), 4) + self.regressors.bias[present]
        return every[inverse, column]

    def save(self, folder: str | Path) -> None:
        """Write ``model.json`` and ``model.safetensors`` into ``folder``."""
        folder = Path(folder)
        description = {
            "format": _FORMAT,
            "classes": list(self.classes),
            "backbone": {"name": self.backbone.name, "precision": self.backbone.precision},
            "features": {
                key: getattr(self.features, key) for key in ("scales", "max_side", "target", "shrink", "levels")
            },
            "proposals": asdict(self.search),
            "head": self.head.description() if self.head else None,
            "detection": asdict(self.detection),
        }
        tensors = {f"trunk.{key}": value for key, value in self.backbone.trunk.state_dict().items()}
        tensors |= {f"head.{key}": value for key, value in self.head.state_dict().items()} if self.head else {}
        tensors |= {"svm.weight": self.svms.weight, "svm.bias": self.svms.bias}
        if self.regressors is not None:
            tensors |= {"bbox.weight": self.regressors.weight, "bbox.bias": self.regressors.bias}
        tensors = {key: torch.as_tensor(value).cpu().contiguous() for key, value in tensors.items()}
        atomic_write(folder / "model.safetensors", lambda path: save_file(tensors, path))
        write_json(folder / "model.json", description)


def load(folder: str | Path, device: str = "auto") -> Detector:
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

    def part(prefix: str) -> dict[str, torch.Tensor]:
        return {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}

    name, precision = description["backbone"]["name"], description["backbone"]["precision"]
    trunk = build_trunk(name)
    try:
        trunk.load_state_dict(part("trunk."))
    except RuntimeError:
        raise SppdetError(f"{folder}: its weights do not fit this version's {name}; train again") from None
    # bfloat16 only if this machine multiplies it natively: elsewhere it would be slower than float32.
    backbone = Backbone.wrap(name, trunk, device, "auto" if precision == "bfloat16" else precision)
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in description["features"].items()}
    features = PyramidFeatures(grid=backbone.grid, channels=backbone.channels, **values)
    head = None
    if description["head"]:
        head = Head(features.pooled_dimension, **description["head"])
        head.load_state_dict(part("head."))
        head.eval().half = backbone.precision == "bfloat16"
        features = replace(features, head=head.vectors, head_dimension=head.dimension)
    arrays = {key: value.numpy() for key, value in tensors.items() if key.startswith(("svm.", "bbox."))}
    regressors = BoxRegressors(arrays["bbox.weight"], arrays["bbox.bias"]) if "bbox.weight" in arrays else None
    return Detector(
        classes=tuple(description["classes"]),
        backbone=backbone,
        features=features,
        search=SelectiveSearch(**description["proposals"]),
        svms=LinearSVMs(arrays["svm.weight"], arrays["svm.bias"]),
        regressors=regressors,
        detection=Detection(**description["detection"]),
        head=head,
    )
