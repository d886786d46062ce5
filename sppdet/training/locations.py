"""Where windows lie, in 24 bytes each, from which their vectors of 50 kB are pooled again.

Names: n windows, K classes, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np

from sppdet.data import Sample
from sppdet.features import FeatureSplit, WindowFeatures, Windows
from sppdet.utils import active_cluster, parallel_map

Result = TypeVar("Result")

# Where a window lies: index of its image in the split, index of the feature map, and x1, y1, x2, y2 in cells of the
# map. float32 holds whole cells exactly; with pooling.kind=align the edges are not whole.
LOCATION = np.dtype([("image", np.int32), ("scale", np.int32), ("cells", np.float32, 4)])
# Names of these fields in checkpoints, which stay as they were in earlier versions.
STORED_NAMES = {"image": "picture", "scale": "scale", "cells": "window"}


@dataclass(frozen=True, eq=False)
class ClassWindows:
    """The windows that the SVM of one class was fitted to, and their dual variables: enough to fit it again.

    Attributes:
        locations: ``(n,)`` of `LOCATION`, positives first.
        positives: how many of them are positives.
        alpha: ``(n,)``, the dual variables, float32 in files; zeros where they are not known.
    """

    locations: np.ndarray
    positives: int
    alpha: np.ndarray

    @property
    def labels(self) -> np.ndarray:
        """``(n,)`` +1 for positives, -1 for negatives."""
        return np.where(np.arange(len(self.locations)) < self.positives, 1, -1)

    def tensors(self) -> dict[str, np.ndarray]:
        """Return the values as arrays without fields, for a file."""
        fields = {name: self.locations[name] for name in STORED_NAMES}
        return fields | {"alpha": self.alpha, "positives": np.array(self.positives)}

    @classmethod
    def restore(cls, tensors: dict[str, np.ndarray]) -> ClassWindows:
        """Return the windows that `tensors` described."""
        locations = np.empty(len(tensors["alpha"]), LOCATION)
        for name in STORED_NAMES:
            locations[name] = tensors[name]
        return cls(locations, int(tensors["positives"]), tensors["alpha"])


def pool_locations(
    split: FeatureSplit,
    features: WindowFeatures,
    locations: np.ndarray,
    workers: int | None,
    bank: np.ndarray | None = None,
) -> np.ndarray:
    """Pool windows again, image by image.

    Args:
        split: the images that the locations number.
        features: how windows become vectors of D features.
        locations: ``(n,)`` of `LOCATION`.
        workers: threads; 0 is every core; None is the thread of the caller.
        bank: float16 ``(B, D)``, vectors that follow those of the windows.

    Returns:
        float16 ``(n + B, D)``.
    """
    count = len(locations)
    vectors = np.empty((count + (0 if bank is None else len(bank)), features.dimension), np.float16)
    if bank is not None:
        vectors[count:] = bank
    _pool_into(vectors, np.arange(count), split, features, locations, workers)
    return vectors


def _pool_into(
    vectors: np.ndarray,
    rows: np.ndarray,
    split: FeatureSplit,
    features: WindowFeatures,
    locations: np.ndarray,
    workers: int | None,
) -> None:
    """Pool windows again, see `pool_locations`, into ``rows`` ``(n,)`` of ``vectors``."""
    order = np.argsort(locations["image"], kind="stable")
    images = np.split(order, np.flatnonzero(np.diff(locations["image"][order])) + 1) if len(locations) else []

    def fill(image_rows: np.ndarray) -> None:
        every, of_image = np.arange(len(image_rows)), locations[image_rows]
        windows = Windows(of_image["scale"], of_image["cells"], every)
        maps = split.maps(int(of_image["image"][0]))
        vectors[rows[image_rows]] = features.vectors(maps, windows, every, np.float16)

    for _ in map(fill, images) if workers is None else parallel_map(fill, images, workers, "vectors", threads=True):
        pass


class KeptVectors:
    """A store of window vectors that lives from one fit to the next: only windows that it does not hold are pooled.

    For features without fc layers; after these the last bits depend on which windows are computed together.

    Args:
        split: the images that the locations number.
        features: how windows become vectors of D features.
        most: vectors that memory holds; more are held only where they are asked for at once.
        workers: threads; 0 is every core.

    Attributes:
        vectors: float16 ``(m, D)``. Rows that were never used take no memory.
    """

    def __init__(self, split: FeatureSplit, features: WindowFeatures, most: float, workers: int):
        self.split, self.features, self.most, self.workers = split, features, most, workers
        self.vectors = np.empty((0, features.dimension), np.float16)
        self._rows: dict[bytes, int] = {}  # of each window that is held
        self._free: list[int] = []

    def rows(self, locations: np.ndarray) -> np.ndarray:
        """Pool the windows that are not held yet, and forget all others than these.

        Args:
            locations: ``(n,)`` of `LOCATION`.

        Returns:
            ``(n,)``, the row of each window in ``vectors``.
        """
        windows = [location.tobytes() for location in locations]
        position = {window: i for i, window in enumerate(windows)}
        if len(position) > len(self.vectors):
            self._grow(int(max(len(position), min(2 * len(position), self.most))))
        for window in self._rows.keys() - position.keys():
            self._free.append(self._rows.pop(window))
        new = [window for window in position if window not in self._rows]
        rows, places = self._free[: len(new)], np.array([position[window] for window in new], np.int64)
        _pool_into(self.vectors, np.array(rows), self.split, self.features, locations[places], self.workers)
        del self._free[: len(new)]
        self._rows |= zip(new, rows)
        return np.array([self._rows[window] for window in windows], np.int64)

    def _grow(self, size: int) -> None:
        """Make room for ``size`` vectors; none is held then, as copying them would take room for both arrays."""
        del self.vectors
        self.vectors = np.empty((size, self.features.dimension), np.float16)
        self._rows, self._free = {}, [*range(size)]


def locations_of(image: int, windows: Windows, rows: np.ndarray) -> np.ndarray:
    """Return the locations ``(len(rows),)`` of the windows at ``rows``, of `LOCATION`."""
    locations = np.empty(len(rows), LOCATION)
    locations["image"], locations["scale"], locations["cells"] = image, windows.scales[rows], windows.cells[rows]
    return locations


def share_locations(windows: Sequence[ClassWindows]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return the different locations of the windows of classes, and of each class the numbers of its windows."""
    locations = np.concatenate([of_class.locations for of_class in windows])
    identities = locations.view(f"V{locations.dtype.itemsize}")
    _, first, rows = np.unique(identities, return_index=True, return_inverse=True)
    return locations[first], np.split(rows, np.cumsum([len(of_class.locations) for of_class in windows])[:-1])


def class_groups(rows: Sequence[np.ndarray], limit: float) -> Iterator[tuple[list[int], np.ndarray]]:
    """Divide classes into groups whose windows together are no more than memory holds.

    Args:
        rows: of each class, the numbers of its windows, which classes may share.
        limit: windows of a group; a class with more is a group of its own.

    Yields:
        Classes, in order; and the numbers of their windows together, ascending.

    Examples:
        >>> [(classes, shared.tolist()) for classes, shared in class_groups([[1, 5], [5, 2], [7]], 3)]
        [([0, 1], [1, 2, 5]), ([2], [7])]
    """
    group: list[int] = []
    shared = np.zeros(0, np.int64)
    for k, of_class in enumerate(rows):
        together = np.union1d(shared, of_class)
        if group and len(together) > limit:
            yield group, shared
            group, together = [], np.unique(of_class)
        group, shared = [*group, k], together
    if group:
        yield group, shared


def windows_in_memory(memory_gb: float, dimension: int) -> float:
    """Return how many vectors of ``dimension`` numbers in half precision fit into memory."""
    return memory_gb * 1e9 / (2 * dimension)


def fits_apart(features: WindowFeatures) -> bool:
    """Whether each class is fitted by itself in a cluster, and not in groups that share what is pooled.

    Not after fc layers: the last bits of their products depend on which windows go through them together.
    """
    return active_cluster() is not None and features.head is None


def map_classes(
    function: Callable[[np.ndarray, ClassWindows], Result],
    split: FeatureSplit,
    features: WindowFeatures,
    windows: Sequence[ClassWindows],
    workers: int,
    description: str,
) -> Iterator[Result]:
    """Yield ``function(vectors, windows)`` for classes, in order; each pools its windows where the function is called.

    In a cluster a worker reads the maps of a class from the store, holds the vectors of this class alone, and sends
    back what the function returns.

    Args:
        function: the work; it and its results are sent to other machines.
        split: the images that the locations number.
        features: how windows become vectors.
        windows: those of each class.
        workers: threads; 0 is every core.
        description: of the work, for the progress bar.
    """
    items = []
    for of_class in windows:
        images = np.unique(of_class.locations["image"]).tolist()
        items.append((of_class, tuple(split.dataset[i] for i in images), [split.names[i] for i in images]))
    work = partial(_with_vectors, function, split.of_images((), []), features)
    return parallel_map(work, items, workers, description, threads=True, portable=True)


def _with_vectors(
    function: Callable[[np.ndarray, ClassWindows], Result],
    split: FeatureSplit,
    features: WindowFeatures,
    item: tuple[ClassWindows, tuple[Sample, ...], list[str]],
) -> Result:
    """Return ``function(vectors, windows)``, see `map_classes`; ``split`` is without images."""
    windows, samples, names = item
    among_these = windows.locations.copy()
    among_these["image"] = np.unique(windows.locations["image"], return_inverse=True)[1]
    return function(pool_locations(split.of_images(samples, names), features, among_these, None), windows)
