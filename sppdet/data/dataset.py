"""Detection data sets: images, their objects and the names of the classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import overload

import numpy as np

from sppdet.data.images import read_image
from sppdet.data.large_images import Pixels, PixelsInMemory, open_pixels, read_tile
from sppdet.ops import boxes as geometry
from sppdet.utils import counted

EVERY_CLASS = -1  # in place of a class, in the labels of regions that are ignored
_MOSTLY = 0.5  # a box is in a region if this share of its area is, as in COCO's evaluation at an IoU of 0.5


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
            ``height``, ``boxes`` and ``ignored`` are those of the part.
        ignored: float32 ``(M, 4)`` regions of which nobody knows what they hold, such as COCO's crowds: boxes in them
            say nothing for or against a class.
        ignored_labels: int64 ``(M,)`` the class of which this is so, or `EVERY_CLASS`.

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
    ignored: np.ndarray = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    ignored_labels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

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

    def open(self) -> Pixels:
        """Open the image to read parts of it.

        Raises:
            SppdetError: the file cannot be read as an image.
        """
        is_file = self.tile is None and not self.mirrored
        return open_pixels(self.path) if is_file else PixelsInMemory(self.read())

    def was_looked_for(self, labels: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return bool ``(len(labels),)``, whether each class was annotated in this image."""
        return np.ones(len(labels), bool) if self.looked_for is None else self.looked_for[np.asarray(labels, np.int64)]

    def ignored_of(self, label: int) -> np.ndarray:
        """Return the regions ``(m, 4)`` that are ignored for a class."""
        return self.ignored[(self.ignored_labels == label) | (self.ignored_labels == EVERY_CLASS)]

    def are_ignored(self, boxes: np.ndarray, label: int | None = None) -> np.ndarray:
        """Return bool ``(N,)``, whether boxes lie mostly in a region that is ignored for a class; None: for any."""
        regions = self.ignored if label is None else self.ignored_of(label)
        inside = geometry.shares_inside(boxes, regions) >= _MOSTLY
        return np.asarray(inside.any(axis=1))

    def mirror(self) -> Sample:
        """Return the sample flipped left to right, with its boxes."""
        boxes, ignored = (geometry.mirror(each, self.width) for each in (self.boxes, self.ignored))
        return replace(self, boxes=boxes, ignored=ignored, mirrored=not self.mirrored)


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


def file_numbers(samples: Sequence[Sample]) -> np.ndarray:
    """Return the number of each sample's file, int64 ``(N,)`` from 0; a mirror image and tiles are of one file.

    Examples:
        >>> one = Sample("a", Path("a.jpg"), 9, 9, np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0, bool))
        >>> file_numbers([one, replace(one, path=Path("b.jpg")), one.mirror()]).tolist()
        [0, 1, 0]
    """
    numbers: dict[Path, int] = {}
    return np.array([numbers.setdefault(sample.path, len(numbers)) for sample in samples], np.int64)
