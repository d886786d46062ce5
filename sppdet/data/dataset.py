"""Detection data sets: images, their objects and the names of the classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import overload

import numpy as np

from sppdet.data.images import read_image
from sppdet.data.large_images import read_tile
from sppdet.ops import boxes as geometry
from sppdet.utils import counted


@dataclass(frozen=True, eq=False, repr=False)  # eq: arrays have no plain truth value to compare by
class Sample:
    """One image and its N objects; N may be 0.

    The pixels stay in the file until `read` is called.

    Attributes:
        id: name of the image in its data set, ``000005`` for example.
        path: file of the image.
        width: pixels of the image as displayed, that is with its EXIF orientation applied.
        height: pixels of the image as displayed.
        boxes: float32 ``(N, 4)`` ``x1, y1, x2, y2`` in pixel edges from 0 (`sppdet.ops.boxes`).
        labels: int64 ``(N,)`` classes of the objects, from 0 to K - 1.
        difficult: bool ``(N,)`` objects that VOC marks as difficult: they count neither as hits nor as misses.
        mirrored: whether `read` flips the image left to right. ``boxes`` are those of the flipped image.
        looked_for: bool ``(K,)`` classes that were annotated in this image; of the others nobody knows whether it holds
            them. None: all were.
        tile: ``x1, y1, x2, y2`` of the part of the image in the file that this sample is; None: all of it. ``width``,
            ``height`` and ``boxes`` are those of the part.
        cut: bool ``(N,)`` objects of which the tile shows so little that no window on them is learned from, neither as
            an object nor as background; they are ``difficult``, too. None: no object is.

    Examples:
        >>> cat = np.array([[10, 20, 60, 80]], np.float32)
        >>> sample = Sample("000005", Path("000005.jpg"), 100, 90, cat, np.array([0]), np.array([False]))
        >>> sample
        Sample('000005', 100 x 90 pixels, 1 object)
        >>> sample.mirror().boxes
        array([[40., 20., 90., 80.]], dtype=float32)
    """

    id: str
    path: Path
    width: int
    height: int
    boxes: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray
    mirrored: bool = False
    looked_for: np.ndarray | None = None
    tile: tuple[int, int, int, int] | None = None
    cut: np.ndarray | None = None

    def __repr__(self) -> str:
        mirrored = ", mirrored" if self.mirrored else ""
        return (
            f"Sample({self.id!r}, {self.width} x {self.height} pixels, {counted(len(self.boxes), 'object')}{mirrored})"
        )

    def read(self) -> np.ndarray:
        """Return the image as a C-contiguous RGB uint8 array ``(height, width, 3)``.

        Raises:
            SppdetError: the file cannot be read as an image.
        """
        image = read_image(self.path) if self.tile is None else read_tile(self.path, self.tile)
        return np.ascontiguousarray(image[:, ::-1]) if self.mirrored else image

    def was_looked_for(self, labels: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return bool ``(len(labels),)``, whether each class was annotated in this image."""
        return np.ones(len(labels), bool) if self.looked_for is None else self.looked_for[np.asarray(labels, np.int64)]

    @property
    def whole(self) -> np.ndarray:
        """The rows of the objects that are not cut by the border of a tile."""
        return np.arange(len(self.boxes)) if self.cut is None else np.flatnonzero(~self.cut)

    def mirror(self) -> Sample:
        """Return the sample flipped left to right, with its boxes."""
        return replace(self, boxes=geometry.mirror(self.boxes, self.width), mirrored=not self.mirrored)


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """The images of one split, in order.

    A data set has a length, can be iterated, and is indexed by number. A slice of a data set is a data set.

    Attributes:
        classes: the K names that ``labels`` of the samples index.
        samples: the images and their objects.

    Examples:
        >>> none = np.zeros(0, np.int64)
        >>> samples = [Sample(name, Path(f"{name}.jpg"), 8, 6, np.zeros((0, 4)), none, none > 0) for name in "abc"]
        >>> data = Dataset(("cat", "dog"), tuple(samples))
        >>> data
        Dataset(3 images, 2 classes, 0 objects)
        >>> data[1]
        Sample('b', 8 x 6 pixels, 0 objects)
        >>> [sample.id for sample in data[1:]]
        ['b', 'c']
    """

    classes: tuple[str, ...]
    samples: tuple[Sample, ...]

    def __repr__(self) -> str:
        counts = (
            counted(len(self.samples), "image"),
            counted(len(self.classes), "class", "classes"),
            counted(sum(len(sample.boxes) for sample in self.samples), "object"),
        )
        return f"Dataset({', '.join(counts)})"

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)

    @overload
    def __getitem__(self, index: int) -> Sample: ...

    @overload
    def __getitem__(self, index: slice) -> Dataset: ...

    def __getitem__(self, index: int | slice) -> Sample | Dataset:
        if isinstance(index, slice):
            return replace(self, samples=self.samples[index])
        return self.samples[index]
