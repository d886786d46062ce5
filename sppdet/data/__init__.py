"""Detection data sets: what every reader of this package returns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True, eq=False)  # arrays have no plain truth value to compare by
class Sample:
    """One picture and its objects.

    ``width`` and ``height`` are pixels of the picture as displayed. ``boxes`` is ``(N, 4)`` float32 in the
    convention of :mod:`sppdet.boxes`, ``labels`` ``(N,)`` int64 in 0..K-1, ``difficult`` ``(N,)`` bool.
    N may be 0.
    """

    id: str
    path: Path
    width: int
    height: int
    boxes: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray


@dataclass(frozen=True, eq=False)
class Dataset:
    """The pictures of one split; ``labels`` of its samples index ``classes``, the K names."""

    classes: tuple[str, ...]
    samples: tuple[Sample, ...]

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]
