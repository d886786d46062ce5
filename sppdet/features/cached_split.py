"""The images of a split together with their cached proposals, which the stages read and fill."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import numpy as np

from sppdet.data import Dataset, Sample
from sppdet.features.store import NotWritable, Store, fill
from sppdet.ops import boxes as geometry
from sppdet.proposals import SelectiveSearch, best_overlaps, recall_table
from sppdet.utils import SppdetError, file_digests, parallel_map, short_name

_MIRRORED = "-mirrored"

Split = TypeVar("Split", bound="CachedSplit")
Result = TypeVar("Result")


def entry_names(dataset: Dataset) -> list[str]:
    """Return the store entry of each image: its id, or the beginning of a long one, a digest of the file, its tile."""
    digests = file_digests(sample.path for sample in dataset)
    return [f"{short_name(sample.id)}-{digests[sample.path]}{_tile_name(sample)}" for sample in dataset]


def _tile_name(sample: Sample) -> str:
    """Return the end of the entry's name of a tile; "" for a whole image."""
    return "" if sample.tile is None else "-" + "_".join(map(str, sample.tile))


def proposal_store(cache: str, search: SelectiveSearch) -> Store:
    """Return the store of the proposals of ``search`` in the folder ``cache``."""
    return Store(cache, "proposals", search.settings(), ".npy")


def open_proposals(dataset: Dataset, cache: str, search: SelectiveSearch) -> CachedSplit:
    """Open a split with its cached proposals; no network is needed.

    Args:
        dataset: the images and their objects.
        cache: the cache folder.
        search: where the proposals come from.
    """
    return CachedSplit(dataset, entry_names(dataset), proposal_store(cache, search), search)


@dataclass(frozen=True, eq=False)
class CachedSplit:
    """One split of a data set with its cached proposals.

    Attributes:
        dataset: the images and their objects.
        names: the store entry of each image, see `entry_names`.
        proposal_store: the store of the proposals.
        search: where the proposals come from; computes damaged ones anew.
    """

    dataset: Dataset
    names: list[str]
    proposal_store: Store
    search: SelectiveSearch

    def with_mirror_images(self: Split) -> Split:
        """Return the images followed by their mirror images, with the proposals mirrored."""
        samples = (*self.dataset, *(sample.mirror() for sample in self.dataset))
        return self.of_images(samples, [*self.names, *(name + _MIRRORED for name in self.names)])

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def unmirrored(self) -> int:
        """The number of images without those that `with_mirror_images` has added."""
        return sum(not name.endswith(_MIRRORED) for name in self.names)

    def of_images(self: Split, samples: tuple[Sample, ...], names: list[str]) -> Split:
        """Return a split of other images in the same stores."""
        return replace(self, dataset=replace(self.dataset, samples=samples), names=names)

    def size(self, i: int) -> tuple[int, int]:
        """Return the width and height of image ``i`` in pixels."""
        sample = self.dataset[i]
        return sample.width, sample.height

    def proposals(self, i: int) -> np.ndarray:
        """Return the proposals of image ``i``: float32 ``(N, 4)`` pixel edges."""
        sample, name = self.dataset[i], self.names[i].removesuffix(_MIRRORED)
        unmirrored = replace(sample, mirrored=False)
        boxes = self.proposal_store.read_or_compute(name, lambda: self.search(unmirrored.read()))
        return geometry.mirror(boxes, sample.width) if sample.mirrored else boxes

    def objects(self, i: int, label: int) -> np.ndarray:
        """Return the boxes ``(M, 4)`` of one class in image ``i``, difficult ones included, as in the papers."""
        sample = self.dataset[i]
        return sample.boxes[sample.labels == label]

    def overlaps(self, i: int, windows: np.ndarray, labels: list[int]) -> np.ndarray:
        """Compute the highest IoU of each window of image ``i`` with an object of each class.

        Args:
            windows: ``(N, 4)`` pixel edges.
            labels: K classes.

        Returns:
            ``(N, K)``; 0 for a class without objects in the image.
        """
        sample = self.dataset[i]
        overlap = geometry.iou(windows, sample.boxes)
        best = [overlap[:, sample.labels == label].max(axis=1, initial=0) for label in labels]
        return np.stack(best, axis=1) if best else np.zeros((len(windows), 0), np.float32)

    def fill_proposals(self, search: SelectiveSearch, workers: int, again: bool = False) -> int:
        """Compute and store missing proposals.

        Args:
            search: that of `open_proposals`.
            workers: processes; 0 is every core.
            again: compute all proposals again.

        Returns:
            How many images were searched.

        Raises:
            SppdetError: some images cannot be read; all others are stored by then.
        """
        images = {name: sample.read for name, sample in zip(self.names, self.dataset) if not sample.mirrored}
        if again:
            self.proposal_store.remove(list(images))
        if self.proposal_store.missing(list(images)):
            search.warm_up()
        return fill(self.proposal_store, images, search, workers, "proposals")

    def recall(self, workers: int = 0) -> dict[str, float | None]:
        """Compute the recall of the proposals for the objects that count in the evaluation, not the difficult ones.

        Args:
            workers: threads; 0 is every core.
        """
        covered = map_images(_covered, self, range(len(self)), workers, "recall of the proposals")
        overlaps, counts = zip(*covered)
        table = recall_table(np.concatenate(overlaps), float(np.mean(counts)))
        return {key: None if value is None else round(value, 4) for key, value in table.items()}


def _covered(_: int, image: CachedSplit) -> tuple[np.ndarray, int]:
    """Return how well each object that counts is covered by the proposals of an image, and their number."""
    proposals, sample = image.proposals(0), image.dataset[0]
    return best_overlaps(proposals, sample.boxes[~sample.difficult]), len(proposals)


def map_images(
    function: Callable[[int, Split], Result], split: Split, images: Sequence[int], workers: int, description: str
) -> Iterator[Result]:
    """Yield ``function(i, image)`` for images of a split, in order; ``image`` is a split of image ``i`` alone.

    Threads compute them, or within `sppdet.utils.cluster` other machines.

    Args:
        function: the work; it and its results must be small enough to be sent to other machines.
        split: the images with what the cache holds of them.
        images: their numbers.
        workers: threads; 0 is every core.
        description: of the work, for the progress bar.
    """
    work = partial(_with_image, function, split.of_images((), []))
    items = [(i, split.dataset[i], split.names[i]) for i in images]
    return parallel_map(work, items, workers, description, threads=True, portable=True)


def _with_image(function: Callable[[int, Split], Result], split: Split, item: tuple[int, Sample, str]) -> Result:
    """Return ``function(i, image)``, see `map_images`; ``split`` is without images."""
    i, sample, name = item
    return function(i, split.of_images((sample,), [name]))


def fill_each(splits: Sequence[Split], fill_one: Callable[[Split], int]) -> int:
    """Fill the cache of every split.

    Args:
        splits: the splits.
        fill_one: fills the cache of a split and returns how many entries it computed.

    Returns:
        How many entries were computed.

    Raises:
        SppdetError: the images of all splits that cannot be read, one per line; all others are stored by then, unless
            the last line says that the store cannot be written.
    """
    computed, errors = 0, []
    for split in splits:
        try:
            computed += fill_one(split)
        except NotWritable as error:
            errors.append(str(error))
            break
        except SppdetError as error:
            errors.append(str(error))
    if errors:
        raise SppdetError("\n".join(errors))
    return computed
