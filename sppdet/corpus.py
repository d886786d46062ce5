"""The pictures of a split together with what the cache holds of them: what the stages read and fill."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from sppdet import boxes as geometry
from sppdet.backbone import Backbone
from sppdet.cache import Store, fill
from sppdet.config import Config
from sppdet.data import Dataset
from sppdet.data.shapes import make_shapes
from sppdet.data.voc import read_voc
from sppdet.files import file_digest
from sppdet.proposals import SelectiveSearch, recall
from sppdet.regions import scale_factor


def load_split(config: Config, split: str, classes=None, limit: int | None = None) -> Dataset:
    """A split of the configured data set; ``data.root=shapes`` is drawn in the cache on first use."""
    shapes = config.data.root == "shapes"
    root = make_shapes(Path(config.run.cache) / "shapes") if shapes else Path(config.data.root)
    return read_voc(root, split, classes=classes or config.data.classes, limit=limit)


def entry_names(dataset: Dataset) -> list[str]:
    """The store entry of each picture: its id and a digest of the file."""
    return [f"{sample.id}-{file_digest(sample.path)}" for sample in dataset]


def proposal_store(cache: str, search: SelectiveSearch) -> Store:
    return Store(cache, "proposals", search.settings(), ".npy")


def map_name(scale: int, name: str) -> str:
    return f"{scale}/{name}"


def _map_store(cache: str, backbone: Backbone, max_side: int) -> Store:
    return Store(cache, "maps", backbone.settings() | {"max_side": max_side}, ".b2nd")


@dataclass(frozen=True, eq=False)
class Corpus:
    """One split of a data set, its proposals and its conv maps.

    Attributes:
        names: the store entry of each picture, see :func:`entry_names`.
        proposal_store, map_store: where they are; the maps are there at each of ``scales``.
        max_side: limit of a scaled picture's longer side.
    """

    dataset: Dataset
    names: list[str]
    proposal_store: Store
    map_store: Store
    scales: tuple[int, ...]
    max_side: int

    @classmethod
    def create(
        cls, dataset: Dataset, cache: str, search: SelectiveSearch, backbone: Backbone, scales, max_side: int
    ) -> Corpus:
        maps = _map_store(cache, backbone, max_side)
        return cls(dataset, entry_names(dataset), proposal_store(cache, search), maps, tuple(scales), max_side)

    def with_maps_of(self, backbone: Backbone, cache: str) -> Corpus:
        """The same pictures and proposals with another backbone's maps."""
        return replace(self, map_store=_map_store(cache, backbone, self.max_side))

    def __len__(self) -> int:
        return len(self.dataset)

    def size(self, i: int) -> tuple[int, int]:
        """Width and height of picture ``i``."""
        sample = self.dataset[i]
        return sample.width, sample.height

    def proposals(self, i: int) -> np.ndarray:
        """``(N, 4)`` windows of picture ``i``."""
        return self.proposal_store.read(self.names[i])

    def maps(self, i: int) -> list[np.ndarray]:
        """The conv maps of picture ``i``, one a scale: float32 ``(H, W, C)``."""
        halves = (self.map_store.read(map_name(scale, self.names[i])) for scale in self.scales)
        return [torch.from_numpy(half).float().numpy() for half in halves]

    def objects(self, i: int, label: int) -> np.ndarray:
        """``(M, 4)`` ground truth of one class in picture ``i``, difficult ones included, as in the originals."""
        sample = self.dataset[i]
        return sample.boxes[sample.labels == label]

    def overlaps(self, i: int, windows: np.ndarray, labels: list[int]) -> np.ndarray:
        """``(N, K)``: each window's highest IoU with an object of each class of ``labels``."""
        sample = self.dataset[i]
        overlap = geometry.iou(windows, sample.boxes)
        best = [overlap[:, sample.labels == label].max(axis=1, initial=0) for label in labels]
        return np.stack(best, axis=1) if best else np.zeros((len(windows), 0), np.float32)

    def fill_proposals(self, search: SelectiveSearch, workers: int, again: bool = False) -> int:
        """Compute the proposals that are missing (all of them, if ``again``); returns how many that were."""
        pictures = {name: sample.path for name, sample in zip(self.names, self.dataset)}
        if again:
            self.proposal_store.remove(list(pictures))
        if self.proposal_store.missing(list(pictures)):
            search.warm_up()
        return fill(self.proposal_store, pictures, search, workers, "proposals")

    def fill_maps(self, backbone: Backbone, workers: int, again: bool = False) -> int:
        """Compute the conv maps that are missing (all of them, if ``again``); returns how many that were."""
        return sum(self._fill_scale(backbone, scale, workers, again) for scale in self.scales)

    def _fill_scale(self, backbone: Backbone, scale: int, workers: int, again: bool) -> int:
        def compute(image: np.ndarray) -> np.ndarray:
            height, width = image.shape[:2]
            return backbone(image, scale_factor(width, height, scale, self.max_side))

        pictures = {map_name(scale, name): sample.path for name, sample in zip(self.names, self.dataset)}
        if again:
            self.map_store.remove(list(pictures))
        return fill(self.map_store, pictures, compute, workers, f"maps at {scale}", threads=True)

    def disk(self) -> tuple[int, int]:
        """Bytes of the proposals and of the maps."""
        maps = [map_name(scale, name) for scale in self.scales for name in self.names]
        return self.proposal_store.size(self.names), self.map_store.size(maps)

    def recall(self) -> dict[str, float]:
        """Of the proposals, against the objects that count in the evaluation: the difficult ones left out."""
        targets = (sample.boxes[~sample.difficult] for sample in self.dataset)
        table = recall((self.proposals(i) for i in range(len(self))), targets)
        return {key: round(value, 4) for key, value in table.items()}
