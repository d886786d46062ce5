"""The images of a split together with their cached proposals and feature maps, which the stages read and fill."""

from __future__ import annotations

import logging
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

import numpy as np
import torch

from sppdet.data import Dataset
from sppdet.features.cached_split import CachedSplit, fill_each, open_proposals
from sppdet.features.crop_features import CropFeatures, CropVectors
from sppdet.features.pyramid_features import FeatureMap, PyramidFeatures
from sppdet.features.regions import scale_factor
from sppdet.features.store import Store, fill
from sppdet.features.window_features import WindowFeatures
from sppdet.networks import Backbone
from sppdet.ops import CODES, CodedMap, round_map
from sppdet.proposals import SelectiveSearch
from sppdet.utils import SppdetError, fingerprint

logger = logging.getLogger(__name__)

_SAMPLE = 8  # images of a split whose maps tell what all of them will take on disk


def open_split(
    dataset: Dataset, cache: str, search: SelectiveSearch, backbone: Backbone, features: WindowFeatures
) -> FeatureSplit:
    """Open a split with its cached proposals and what ``features`` read windows from.

    Args:
        dataset: the images and their objects.
        cache: the cache folder.
        search: where the proposals come from.
        backbone: the network whose maps are stored.
        features: how windows become vectors.
    """
    return add_features(open_proposals(dataset, cache, search), cache, backbone, features)


def add_features(split: CachedSplit, cache: str, backbone: Backbone, features: WindowFeatures) -> FeatureSplit:
    """Open a split's cached maps as `open_split` does, without reading the images again for their digests."""
    of_split = (split.dataset, split.names, split.proposal_store, split.search)
    if isinstance(features, CropFeatures):
        return CropSplit(*of_split, _crop_store(cache, backbone, split.proposal_store, features), backbone, features)
    if isinstance(features, PyramidFeatures):
        maps = _map_store(cache, backbone, features.max_side, features.map_type)
        return MapSplit(*of_split, maps, backbone, features)
    raise TypeError(f"no split stores what {type(features).__name__} read windows from")


@dataclass(frozen=True, eq=False)
class FeatureSplit(CachedSplit, ABC):
    """One split of a data set with its cached proposals and what the windows' vectors are read from.

    Attributes:
        map_store: the store of feature maps, or of the vectors of crops.
        backbone: the network; computes damaged entries of ``map_store`` anew.
    """

    map_store: Store
    backbone: Backbone

    @abstractmethod
    def maps(self, i: int) -> list[FeatureMap] | CropVectors:
        """Return what the windows of image ``i`` are read from."""

    @abstractmethod
    def map_entries(self) -> dict[str, float]:
        """Return the entries of the map store, each with its share of the disk space."""

    @abstractmethod
    def fill_maps(self, backbone: Backbone, workers: int, again: bool = False, first: int | None = None) -> int:
        """Compute and store missing maps.

        Args:
            backbone: that of `open_split`.
            workers: threads; 0 is every core.
            again: compute all maps again.
            first: of how many images at most; None is of all.

        Returns:
            How many entries were computed.

        Raises:
            SppdetError: some images cannot be read; all others are stored by then.
        """

    def disk(self) -> tuple[int, int]:
        """Return the bytes of the stored proposals and of the stored maps."""
        return self.proposal_store.size(self.names), self.map_store.size([*self.map_entries()])

    def disk_needed(self) -> float:
        """Estimate the bytes of the missing maps from the stored ones; 0 if none is stored."""
        shares = self.map_entries()
        missing = self.map_store.missing([*shares])
        stored = sum(shares.values()) - sum(shares[entry] for entry in missing)
        return self.map_store.size([*shares]) / stored * sum(shares[entry] for entry in missing) if stored else 0.0


@dataclass(frozen=True, eq=False)
class MapSplit(FeatureSplit):
    """A split with its feature maps at several scales.

    Attributes:
        features: how windows become vectors: at which scales, and from maps of which type.
    """

    features: PyramidFeatures

    def maps(self, i: int) -> list[FeatureMap]:
        """Return the feature maps of image ``i``, one per scale: float32 ``(H, W, C)``, or maps of codes."""
        return [self._map(i, scale) for scale in self.features.scales]

    def _map(self, i: int, scale: int) -> FeatureMap:
        def compute() -> FeatureMap:
            return _compute_map(self.backbone, self.features, scale, self.dataset[i].read())

        stored = self.map_store.read_or_compute(map_name(scale, self.names[i]), compute)
        return stored if isinstance(stored, CodedMap) else torch.from_numpy(stored).float().numpy()

    def map_entries(self) -> dict[str, float]:
        """Return the entries of the map store; a map takes space in proportion to the square of its scale."""
        return {map_name(scale, name): scale**2 for scale in self.features.scales for name in self.names}

    def fill_maps(self, backbone: Backbone, workers: int, again: bool = False, first: int | None = None) -> int:
        """Compute and store missing maps, scale by scale, see `FeatureSplit.fill_maps`."""
        return sum(self._fill_scale(backbone, scale, workers, again, first) for scale in self.features.scales)

    def _fill_scale(self, backbone: Backbone, scale: int, workers: int, again: bool, first: int | None) -> int:
        images = {map_name(scale, name): sample.read for name, sample in zip(self.names, self.dataset)}
        if again:
            self.map_store.remove(list(images))
        images = dict(islice(images.items(), first))
        compute = partial(_compute_map, backbone, self.features, scale)
        return fill(self.map_store, images, compute, workers, f"maps at {scale}", threads=True)


def map_name(scale: int, name: str) -> str:
    """Return the store entry of the feature map of image entry ``name`` at ``scale``."""
    return f"{scale}/{name}"


def _compute_map(backbone: Backbone, features: PyramidFeatures, scale: int, image: np.ndarray) -> FeatureMap:
    """Return the feature map of an image at a scale, to be stored."""
    height, width = image.shape[:2]
    return round_map(backbone(image, scale_factor(width, height, scale, features.max_side)), features.map_type)


def _map_store(cache: str, backbone: Backbone, max_side: int, map_type: str = "float16") -> Store:
    settings = backbone.settings() | {"max_side": max_side}
    if map_type in CODES:
        return Store(cache, "maps", settings | {"map_type": map_type}, ".codes")
    return Store(cache, "maps", settings, ".b2nd")


@dataclass(frozen=True, eq=False)
class CropSplit(FeatureSplit):
    """A split with the vectors of its windows, each cropped from its image: those of the proposals and of the objects.

    The last bits of a vector may depend on which crops go through the network together. So each object goes alone:
    its vector does not depend on the other annotations, and a class that is added learns the same SVM.

    Attributes:
        features: how windows become vectors.
    """

    features: CropFeatures

    def maps(self, i: int) -> CropVectors:
        """Return the windows of image ``i``, proposals first, and their vectors."""
        boxes = np.concatenate([self.proposals(i), self.dataset[i].boxes])
        stored = [self._vectors(self.names[i], i, self.proposals, None)]
        stored += [self._vectors(self._objects_name(i), i, self._objects, 1)] if len(self.dataset[i].boxes) else []
        vectors = np.concatenate(stored) if len(stored) > 1 else stored[0]
        if len(vectors) != len(boxes):
            path = self.map_store.path(self.names[i])
            raise SppdetError(f"{path}: holds other windows than the proposals; delete it and run again")
        return CropVectors(boxes, vectors)

    def _vectors(self, entry: str, i: int, boxes: Callable[[int], np.ndarray], batch: int | None) -> np.ndarray:
        """Return the stored vectors of the ``boxes`` of image ``i``."""

        def compute() -> np.ndarray:
            return self.features.compute(self.backbone, self.dataset[i].read(), boxes(i), batch)

        return self.map_store.read_or_compute(entry, compute)

    def map_entries(self) -> dict[str, float]:
        """Return the entries of the map store; vectors take space in proportion to their number."""
        shares: dict[str, float] = {name: len(self.proposals(i)) for i, name in enumerate(self.names)}
        annotated = [i for i, sample in enumerate(self.dataset) if len(sample.boxes)]
        return shares | {self._objects_name(i): len(self.dataset[i].boxes) for i in annotated}

    def fill_maps(self, backbone: Backbone, workers: int, again: bool = False, first: int | None = None) -> int:
        """Compute and store missing vectors, see `FeatureSplit.fill_maps`."""
        if again:
            self.map_store.remove([*self.map_entries()])
        images = dict(islice(enumerate(self.names), first))
        annotated = {self._objects_name(i): i for i in images if len(self.dataset[i].boxes)}
        compute = partial(self.features.compute, backbone)
        one = partial(compute, batch=1)
        computed = self._fill(
            annotated, lambda i: partial(np.copy, self._objects(i)), one, workers, "vectors of objects"
        )
        every = {name: i for i, name in images.items()}
        return computed + self._fill(every, self._read_proposals, compute, workers, "vectors of proposals")

    def _fill(
        self,
        entries: dict[str, int],
        boxes: Callable[[int], Callable[[], np.ndarray]],
        compute: Callable[..., np.ndarray],
        workers: int,
        description: str,
    ) -> int:
        """Store the vectors of the boxes ``boxes(i)()`` as an entry, for each entry and i of ``entries``."""
        images = {entry: self.dataset[i].read for entry, i in entries.items()}
        boxes_of = {entry: boxes(i) for entry, i in entries.items()}
        return fill(self.map_store, images, compute, workers, description, threads=True, boxes=boxes_of)

    def _read_proposals(self, i: int) -> Callable[[], np.ndarray]:
        """Return a function that reads the proposals of image ``i``, and holds no other image and no network."""
        dataset = replace(self.dataset, samples=(self.dataset[i],))
        return partial(CachedSplit(dataset, [self.names[i]], self.proposal_store, self.search).proposals, 0)

    def _objects(self, i: int) -> np.ndarray:
        return self.dataset[i].boxes

    def _objects_name(self, i: int) -> str:
        return f"objects/{self.names[i]}-{fingerprint(self.dataset[i].boxes.tolist())}"


def _crop_store(cache: str, backbone: Backbone, proposals: Store, features: CropFeatures) -> Store:
    settings = backbone.settings() | features.description() | {"proposals": proposals.folder.name}
    return Store(cache, "crops", settings, ".rows")


def fill_maps(splits: Sequence[FeatureSplit], backbone: Backbone, workers: int, *, again: bool = False) -> int:
    """Compute and store the missing maps of every split; log what they will take on disk, estimated from a few.

    Args:
        splits: splits of one cache folder.
        backbone: that of `open_split`.
        workers: threads; 0 is every core.
        again: compute all maps again.

    Returns:
        How many entries were computed.

    Raises:
        SppdetError: the maps need more space than is free, or some images cannot be read.
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
                "fewer images (data.limit_train, data.limit_test) or shorter vectors (pooling.levels)"
            )
        logger.info("maps: about %s", sizes)
    return computed + fill_each(splits, lambda split: split.fill_maps(backbone, workers))


def _size(count: float) -> str:
    """Return bytes as a person reads them.

    Examples:
        >>> _size(2.5e9), _size(1e5)
        ('2.5 GB', '0.1 MB')
    """
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
