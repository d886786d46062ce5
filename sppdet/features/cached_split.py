"""The images of a split together with what the cache holds of them: what the stages read and fill."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

import numpy as np
import torch

from sppdet.data import Dataset
from sppdet.features.crop_features import CropFeatures, CropVectors
from sppdet.features.regions import scale_factor
from sppdet.features.store import Store, fill
from sppdet.features.window_features import WindowFeatures
from sppdet.networks import Backbone
from sppdet.ops import boxes as geometry
from sppdet.proposals import SelectiveSearch, proposal_recall
from sppdet.utils import SppdetError, file_digest, fingerprint

_SAMPLE = 8  # images of a split whose maps tell what all of them will take on disk


_MIRRORED = "-mirrored"


def entry_names(dataset: Dataset) -> list[str]:
    """The store entry of each image: its id and a digest of the file."""
    return [f"{sample.id}-{file_digest(sample.path)}" for sample in dataset]


def proposal_store(cache: str, search: SelectiveSearch) -> Store:
    return Store(cache, "proposals", search.settings(), ".npy")


def open_split(
    dataset: Dataset, cache: str, search: SelectiveSearch, backbone: Backbone, features: WindowFeatures
) -> CachedSplit:
    """A split with what ``cache`` holds for its proposals and ``features``."""
    if isinstance(features, CropFeatures):
        return CropSplit.create(dataset, cache, search, backbone, features)
    return MapSplit.create(dataset, cache, search, backbone, features.scales, features.max_side)


@dataclass(frozen=True, eq=False)
class CachedSplit(ABC):
    """One split of a data set, its proposals, and its maps: what its windows are read from.

    Attributes:
        names: the store entry of each image, see :func:`entry_names`.
        proposal_store, map_store: where they are.
    """

    dataset: Dataset
    names: list[str]
    proposal_store: Store
    map_store: Store

    @abstractmethod
    def with_maps_of(self, backbone: Backbone, cache: str) -> CachedSplit:
        """The same images and proposals with another backbone's maps."""

    @abstractmethod
    def maps(self, i: int):
        """What the windows of image ``i`` are read from."""

    @abstractmethod
    def map_entries(self) -> dict[str, float]:
        """The entries of the map store, and how they share the room that they take."""

    @abstractmethod
    def fill_maps(self, backbone: Backbone, workers: int, again: bool = False, first: int | None = None) -> int:
        """Compute the maps that are missing (all of them, if ``again``); returns how many that were.

        ``first``: of so many images and no more.
        """

    def with_mirror_images(self) -> CachedSplit:
        """The same images and, behind them, their mirror images, with the same proposals mirrored."""
        samples = (*self.dataset, *(sample.mirror() for sample in self.dataset))
        names = [*self.names, *(name + _MIRRORED for name in self.names)]
        return replace(self, dataset=replace(self.dataset, samples=samples), names=names)

    def __len__(self) -> int:
        return len(self.dataset)

    def size(self, i: int) -> tuple[int, int]:
        """Width and height of image ``i``."""
        sample = self.dataset[i]
        return sample.width, sample.height

    def proposals(self, i: int) -> np.ndarray:
        """``(N, 4)`` windows of image ``i``."""
        sample, found = self.dataset[i], self.proposal_store.read(self.names[i].removesuffix(_MIRRORED))
        return geometry.mirror(found, sample.width) if sample.mirrored else found

    def objects(self, i: int, label: int) -> np.ndarray:
        """``(M, 4)`` ground truth of one class in image ``i``, difficult ones included, as in the originals."""
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
        images = {name: sample.read for name, sample in zip(self.names, self.dataset) if not sample.mirrored}
        if again:
            self.proposal_store.remove(list(images))
        if self.proposal_store.missing(list(images)):
            search.warm_up()
        return fill(self.proposal_store, images, search, workers, "proposals")

    def disk(self) -> tuple[int, int]:
        """Bytes of the proposals and of the maps."""
        return self.proposal_store.size(self.names), self.map_store.size([*self.map_entries()])

    def disk_needed(self) -> float:
        """Bytes that the missing maps will take, as far as the stored ones tell."""
        shares = self.map_entries()
        missing = self.map_store.missing([*shares])
        stored = sum(shares.values()) - sum(shares[entry] for entry in missing)
        return self.map_store.size([*shares]) / stored * sum(shares[entry] for entry in missing) if stored else 0.0

    def recall(self) -> dict[str, float]:
        """Of the proposals, against the objects that count in the evaluation: the difficult ones left out."""
        targets = (sample.boxes[~sample.difficult] for sample in self.dataset)
        table = proposal_recall((self.proposals(i) for i in range(len(self))), targets)
        return {key: round(value, 4) for key, value in table.items()}


@dataclass(frozen=True, eq=False)
class MapSplit(CachedSplit):
    """A split with its conv maps, at each of ``scales``, where the longer side never exceeds ``max_side``."""

    scales: tuple[int, ...]
    max_side: int

    @classmethod
    def create(
        cls, dataset: Dataset, cache: str, search: SelectiveSearch, backbone: Backbone, scales, max_side: int
    ) -> MapSplit:
        names, proposals = entry_names(dataset), proposal_store(cache, search)
        return cls(dataset, names, proposals, _map_store(cache, backbone, max_side), tuple(scales), max_side)

    def with_maps_of(self, backbone: Backbone, cache: str) -> MapSplit:
        return replace(self, map_store=_map_store(cache, backbone, self.max_side))

    def maps(self, i: int) -> list[np.ndarray]:
        """The conv maps of image ``i``, one a scale: float32 ``(H, W, C)``."""
        halves = (self.map_store.read(map_name(scale, self.names[i])) for scale in self.scales)
        return [torch.from_numpy(half).float().numpy() for half in halves]

    def map_entries(self) -> dict[str, float]:
        return {map_name(scale, name): scale**2 for scale in self.scales for name in self.names}

    def fill_maps(self, backbone: Backbone, workers: int, again: bool = False, first: int | None = None) -> int:
        return sum(self._fill_scale(backbone, scale, workers, again, first) for scale in self.scales)

    def _fill_scale(self, backbone: Backbone, scale: int, workers: int, again: bool, first: int | None) -> int:
        def compute(image: np.ndarray) -> np.ndarray:
            height, width = image.shape[:2]
            return backbone(image, scale_factor(width, height, scale, self.max_side))

        images = {map_name(scale, name): sample.read for name, sample in zip(self.names, self.dataset)}
        if again:
            self.map_store.remove(list(images))
        images = dict(islice(images.items(), first))
        return fill(self.map_store, images, compute, workers, f"maps at {scale}", threads=True)


def map_name(scale: int, name: str) -> str:
    return f"{scale}/{name}"


def _map_store(cache: str, backbone: Backbone, max_side: int) -> Store:
    return Store(cache, "maps", backbone.settings() | {"max_side": max_side}, ".b2nd")


@dataclass(frozen=True, eq=False)
class CropSplit(CachedSplit):
    """A split with the vectors of its windows, each cropped from its image: of the proposals and of the objects.

    What goes through a network together may differ in the last bits from what goes alone. So each object goes alone:
    its vector does not depend on what else is annotated, and a class that is added is the same SVM.
    """

    features: CropFeatures

    @classmethod
    def create(
        cls, dataset: Dataset, cache: str, search: SelectiveSearch, backbone: Backbone, features: CropFeatures
    ) -> CropSplit:
        names, proposals = entry_names(dataset), proposal_store(cache, search)
        return cls(dataset, names, proposals, _crop_store(cache, backbone, proposals, features), features)

    def with_maps_of(self, backbone: Backbone, cache: str) -> CropSplit:
        return replace(self, map_store=_crop_store(cache, backbone, self.proposal_store, self.features))

    def maps(self, i: int) -> CropVectors:
        """The windows of image ``i``, proposals first, and their vectors."""
        boxes = np.concatenate([self.proposals(i), self.dataset[i].boxes])
        stored = [self.map_store.read(self.names[i])]
        stored += [self.map_store.read(self._objects_name(i))] if len(self.dataset[i].boxes) else []
        vectors = np.concatenate(stored) if len(stored) > 1 else stored[0]
        if len(vectors) != len(boxes):
            path = self.map_store.path(self.names[i])
            raise SppdetError(f"{path}: holds other windows than the proposals; delete it and run again")
        return CropVectors(boxes, vectors)

    def map_entries(self) -> dict[str, float]:
        shares = {name: len(self.proposals(i)) for i, name in enumerate(self.names)}
        annotated = [i for i, sample in enumerate(self.dataset) if len(sample.boxes)]
        return shares | {self._objects_name(i): len(self.dataset[i].boxes) for i in annotated}

    def fill_maps(self, backbone: Backbone, workers: int, again: bool = False, first: int | None = None) -> int:
        if again:
            self.map_store.remove([*self.map_entries()])
        images = dict(islice(enumerate(self.names), first))
        annotated = {self._objects_name(i): i for i in images if len(self.dataset[i].boxes)}
        compute = partial(self.features.compute, backbone)
        found = self._fill(annotated, self._objects, partial(compute, batch=1), workers, "vectors of objects")
        every = {name: i for i, name in images.items()}
        return found + self._fill(every, self.proposals, compute, workers, "vectors of proposals")

    def _fill(self, entries: dict[str, int], boxes: Callable, compute: Callable, workers: int, what: str) -> int:
        """``entries`` are of images, whose ``boxes`` are computed."""
        images = {entry: self.dataset[i].read for entry, i in entries.items()}
        return fill(
            self.map_store, images, compute, workers, what, threads=True, boxes=lambda entry: boxes(entries[entry])
        )

    def _objects(self, i: int) -> np.ndarray:
        return self.dataset[i].boxes

    def _objects_name(self, i: int) -> str:
        return f"objects/{self.names[i]}-{fingerprint(self.dataset[i].boxes.tolist())}"


def _crop_store(cache: str, backbone: Backbone, proposals: Store, features: CropFeatures) -> Store:
    settings = backbone.settings() | features.description() | {"proposals": proposals.folder.name}
    return Store(cache, "crops", settings, ".rows")


def fill_each(splits: Sequence[CachedSplit], fill: Callable[[CachedSplit], int]) -> int:
    """Fill the cache of every split; the images of all that cannot be read are told together."""
    computed, errors = 0, []
    for split in splits:
        try:
            computed += fill(split)
        except SppdetError as error:
            errors.append(str(error))
    if errors:
        raise SppdetError("\n".join(errors))
    return computed


def fill_maps(
    splits: Sequence[CachedSplit], backbone: Backbone, workers: int, log: Callable[[str], None], again: bool = False
) -> int:
    """Compute the missing maps of every split (all of them, if ``again``); returns how many that were.

    Says what they will take on disk once a few are there to tell by, and stops if there is no room.
    """
    computed = fill_each(splits, lambda split: split.fill_maps(backbone, workers, again, _SAMPLE))
    needed = sum(split.disk_needed() for split in splits)
    if needed:
        folder = splits[0].map_store.folder
        free = shutil.disk_usage(folder).free
        sizes = f"{_size(needed)} to be written, {_size(free)} free in {folder}"
        if needed > free:
            raise SppdetError(
                f"run.cache: about {sizes}; give a folder with more room, "
                "fewer images (data.limit_train, data.limit_test) or less to a window (pooling.levels)"
            )
        log(f"maps: about {sizes}")
    return computed + fill_each(splits, lambda split: split.fill_maps(backbone, workers))


def _size(count: float) -> str:
    """Bytes as a person reads them."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
