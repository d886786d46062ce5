"""The pictures of a split together with what the cache holds of them: what training stages read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sppdet import boxes as geometry
from sppdet.cache import Store
from sppdet.data import Dataset
from sppdet.files import file_digest


def entry_names(dataset: Dataset) -> list[str]:
    """The name of each picture's entries in a store: its id and a digest of the file."""
    return [f"{sample.id}-{file_digest(sample.path)}" for sample in dataset]


@dataclass(frozen=True, eq=False)
class Corpus:
    """One split of a data set, its proposals and its conv maps.

    Attributes:
        names: the store entry of each picture.
        proposal_store, map_store: where they are; ``scales`` are those of the maps.
    """

    dataset: Dataset
    names: list[str]
    proposal_store: Store
    map_store: Store
    scales: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.dataset)

    def size(self, i: int) -> tuple[int, int]:
        sample = self.dataset[i]
        return sample.width, sample.height

    def proposals(self, i: int) -> np.ndarray:
        """``(N, 4)`` windows of picture ``i``."""
        return self.proposal_store.read(self.names[i])

    def maps(self, i: int) -> list[np.ndarray]:
        """The conv maps of picture ``i``, one a scale: float32 ``(H, W, C)``."""
        return [self.map_store.read(map_name(scale, self.names[i])).astype(np.float32) for scale in self.scales]

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


def map_name(scale: int, name: str) -> str:
    return f"{scale}/{name}"
