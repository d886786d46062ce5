"""Overlapping tiles of large images: where they lie, and the samples of a data set cut into them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from sppdet.config import MIN_TILE, DataSettings
from sppdet.data.dataset import Dataset, Sample
from sppdet.ops import boxes as geometry
from sppdet.utils import SppdetError

_WHOLE = 0.7  # share of an object's area that a tile must show, so that the object is learned from this tile


@dataclass(frozen=True)
class Tiles:
    """How large images are cut into tiles.

    Every object that is no larger than ``overlap`` lies wholly in a tile.

    Attributes:
        side: pixels per side of a tile; images that are smaller make smaller tiles.
        overlap: pixels that neighbouring tiles share at least, at most half of a side.

    Raises:
        SppdetError: no tiles can be so.

    Examples:
        >>> Tiles(100, 20).starts(240)
        [0, 70, 140]
        >>> Tiles(100, 20).boxes(170, 80).tolist()
        [[0, 0, 100, 80], [70, 0, 170, 80]]
    """

    side: int
    overlap: int

    def __post_init__(self) -> None:
        if self.side < MIN_TILE:
            raise SppdetError(f"tiles: {self.side} is no tile size; give {MIN_TILE} pixels or more")
        if not 0 <= self.overlap <= self.side // 2:
            raise SppdetError(
                f"tiles: tiles of {self.side} pixels cannot overlap by {self.overlap}; give at most half of a side"
            )

    @classmethod
    def of(cls, settings: DataSettings) -> Tiles | None:
        """Return the tiles that the settings ask for; None for whole images."""
        if not settings.tiles:
            return None
        overlap = settings.tile_overlap
        return cls(settings.tiles, settings.tiles // 4 if overlap is None else overlap)

    def starts(self, length: int) -> list[int]:
        """Return where the tiles along a side of ``length`` pixels begin, evenly spaced."""
        if length <= self.side:
            return [0]
        steps = -(-(length - self.side) // (self.side - self.overlap))
        return [(length - self.side) * step // steps for step in range(steps + 1)]

    def boxes(self, width: int, height: int) -> np.ndarray:
        """Return the tiles of an image, int64 ``(T, 4)`` ``x1, y1, x2, y2``, row by row."""
        return np.array(
            [
                (x, y, min(x + self.side, width), min(y + self.side, height))
                for y in self.starts(height)
                for x in self.starts(width)
            ],
            np.int64,
        )


def tile_dataset(dataset: Dataset, tiles: Tiles | None) -> Dataset:
    """Return a data set with the tiles of its large images in place of these, image by image.

    Args:
        dataset: whole images.
        tiles: None returns the data set itself.
    """
    if tiles is None:
        return dataset
    return replace(dataset, samples=tuple(tile for sample in dataset for tile in tile_sample(sample, tiles)))


def tile_sample(sample: Sample, tiles: Tiles) -> list[Sample]:
    """Return the tiles of an image, or the image itself if it is no larger than one.

    An object has its box in each tile that shows 70% of its area or more, clipped to the tile. What other tiles show
    of it is ``ignored`` there: it is learned from neither as an object nor as background.
    """
    boxes = tiles.boxes(sample.width, sample.height)
    return [sample] if len(boxes) == 1 else [_tile_of(sample, box) for box in boxes]


def _tile_of(sample: Sample, tile: np.ndarray) -> Sample:
    x1, y1, x2, y2 = (int(edge) for edge in tile)
    width, height, corner = x2 - x1, y2 - y1, np.array([x1, y1, x1, y1], np.float32)
    shown = geometry.clip(sample.boxes - corner, width, height)
    share = geometry.areas(shown) / np.maximum(geometry.areas(sample.boxes), 1e-6)
    whole, cut = share >= _WHOLE, (share > 0) & (share < _WHOLE)
    ignored = geometry.clip(sample.ignored - corner, width, height)
    visible = geometry.areas(ignored) > 0
    return replace(
        sample,
        id=f"{sample.id}@{x1},{y1}",
        width=width,
        height=height,
        boxes=shown[whole],
        labels=sample.labels[whole],
        difficult=sample.difficult[whole],
        tile=(x1, y1, x2, y2),
        ignored=np.concatenate([ignored[visible], shown[cut]]),
        ignored_labels=np.concatenate([sample.ignored_labels[visible], sample.labels[cut]]),
    )


def in_whole_image(sample: Sample, box: list[float]) -> tuple[str, list[float]]:
    """Return the id of the whole image that a sample is a tile of, and the corners of a box in it.

    Of a sample that is a whole image, these are its id and the box itself.
    """
    if sample.tile is None:
        return sample.id, box
    x, y = sample.tile[:2]
    return sample.id.removesuffix(f"@{x},{y}"), [corner + offset for corner, offset in zip(box, (x, y, x, y))]
