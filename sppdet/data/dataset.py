"""Detection data sets: what every reader of this package returns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sppdet.data.images import read_image
from sppdet.ops import boxes as geometry


@dataclass(frozen=True, eq=False)  # arrays have no plain truth value to compare by
class Sample:
    """One image and its objects.

    ``width`` and ``height`` are pixels of the image as displayed. ``boxes`` is ``(N, 4)`` float32 in the
    convention of :mod:`sppdet.ops.boxes`, ``labels`` ``(N,)`` int64 in 0..K-1, ``difficult`` ``(N,)`` bool.
    N may be 0. ``mirrored``: what the file shows, and ``boxes`` with it, is flipped left to right.
    """

    id: str
    path: Path
    width: int
    height: int
    boxes: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray
    mirrored: bool = False

    def read(self) -> np.ndarray:
        """The image: RGB uint8 ``(H, W, 3)``, contiguous. Errors are :func:`sppdet.data.images.read_image`'s."""
        image = read_image(self.path)
        return np.ascontiguousarray(image[:, ::-1]) if self.mirrored else image

    def mirror(self) -> Sample:
        """Its mirror image."""
        return replace(self, boxes=geometry.mirror(self.boxes, self.width), mirrored=not self.mirrored)


@dataclass(frozen=True, eq=False)
class Dataset:
    """The images of one split; ``labels`` of its samples index ``classes``, the K names."""

    classes: tuple[str, ...]
    samples: tuple[Sample, ...]

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]
