"""Detection in overlapping tiles of an image, and which detections count where tiles meet.

Every object is judged by a tile that shows it whole:

- A detection at an inner border of a tile is dropped where another tile shows the same place with more room around it.
  So the fragments of an object that is no larger than the overlap go, and the whole object in the next tile stays.
- What is larger than the overlap may be whole in no tile. It is looked for in the whole image, too, where only such
  large detections count. With models that were trained on tiles there is no such object.
- Fragments of large objects stay unless they lie mostly inside a detection of their class that no border cuts.
- Of all detections together, non-maximum suppression keeps the best.

Names: n detections.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

import numpy as np

from sppdet.config import MIN_TILE
from sppdet.data import Pixels, Tiles
from sppdet.detection.detections import Detections
from sppdet.ops import boxes as geometry
from sppdet.ops import nms
from sppdet.utils import SppdetError, parallel_map, thread_count

_NEAR, _ROOM = 16, 8  # a box is near a border within 1/16 of the overlap, and has room from 1/8 of the overlap on
_LARGER = 1.5  # images whose longer side is so many times that of the training images are cut by `auto`
_INSIDE = 0.5  # share of a fragment that lies inside a whole object to which it then belongs
_FEW = 20  # tiles that are read one after another, each with all cores; more are read by one thread per core
_UNKNOWN_SIDE = 1000  # of a tile, for models that do not say on which images they were trained


@dataclass(frozen=True)
class TrainedOn:
    """On which images a model was trained, as far as it says how to cut larger ones.

    Attributes:
        image_side: median of the longer sides of the training images, in pixels; tiles count as images.
        object_side: pixels above which the longer side of one object in twenty is.
        tiles: the tiles that the training images were cut into; None for whole images.
    """

    image_side: int
    object_side: int
    tiles: Tiles | None = None

    def description(self) -> dict[str, Any]:
        """Return the values as an entry of model.json."""
        tiles = [self.tiles.side, self.tiles.overlap] if self.tiles else None
        return {"image_side": self.image_side, "object_side": self.object_side, "tiles": tiles}

    @classmethod
    def restore(cls, description: dict[str, Any]) -> TrainedOn:
        """Return what `description` described."""
        tiles = description["tiles"]
        return cls(int(description["image_side"]), int(description["object_side"]), Tiles(*tiles) if tiles else None)


@dataclass(frozen=True)
class TilePlan:
    """How an image is read.

    Attributes:
        tiles: how it is cut.
        whole: whether it is read as a whole, too, for objects that are larger than the overlap.
    """

    tiles: Tiles
    whole: bool


def plan_tiles(
    trained_on: TrainedOn | None, working_side: int, size: tuple[int, int], side: int | str
) -> TilePlan | None:
    """Return how an image is cut; None if it is read as a whole only.

    Tiles of ``auto`` are those of the training, or as large as the training images: objects are then as large against a
    tile as they were against these. The overlap is that of the training, or the size of the largest usual object, at
    most half of a tile.

    Args:
        trained_on: of the model; None if it does not say. Tiles are then as large as the images in which proposals are
            searched, and a third of a tile overlaps.
        working_side: the longest side of these images, 0 for any.
        size: width and height of the image.
        side: of the tiles, or ``auto``; 0: no tiles.

    Raises:
        SppdetError: no tiles can be so.
    """
    as_trained = trained_on.tiles if trained_on else None
    if side == "auto":
        if as_trained:
            return TilePlan(as_trained, False) if max(size) > as_trained.side else None
        side = max(MIN_TILE, trained_on.image_side if trained_on else working_side or _UNKNOWN_SIDE)
        if max(size) <= _LARGER * side:
            return None
    if not isinstance(side, Integral):
        raise SppdetError(f"tiles: expected auto or a number of pixels, found {side!r}")
    if side == 0:
        return None
    overlap = as_trained.overlap if as_trained else trained_on.object_side if trained_on else side // 3
    tiles = Tiles(side, min(overlap, side // 2))
    return TilePlan(tiles, not as_trained) if max(size) > side else None


def detect_in_tiles(
    detect: Callable[[np.ndarray], Detections], pixels: Pixels, plan: TilePlan, overlap: float
) -> Detections:
    """Detect objects in an image tile by tile. Memory does not grow with the size of the image.

    Args:
        detect: finds the objects in an array; of these all are kept that the tiles' seams allow.
        pixels: the image.
        plan: how it is cut.
        overlap: IoU of non-maximum suppression.

    Returns:
        The detections in pixels of the image, those of the highest probability, or else score, first.
    """
    boxes = plan.tiles.boxes(pixels.width, pixels.height)

    def of_tile(box: np.ndarray) -> Detections:
        return detect(pixels.read(box))

    if len(boxes) > _FEW:
        found = parallel_map(of_tile, list(boxes), thread_count(), "tiles", threads=True)
    else:
        found = map(of_tile, boxes)
    whole = None
    if plan.whole:
        image, factor = pixels.overview()
        whole = detect(image)
        whole = replace(whole, xyxy=whole.xyxy / np.float32(factor))
    return merge_tiles(found, boxes, plan.tiles, (pixels.width, pixels.height), overlap, whole)


def merge_tiles(
    detections: Iterable[Detections],
    boxes: np.ndarray,
    tiles: Tiles,
    size: tuple[int, int],
    overlap: float,
    whole: Detections | None = None,
) -> Detections:
    """Return the detections of an image from those of its tiles.

    Args:
        detections: of each tile, in pixels of the tile; each is let go of when the next one is asked for.
        boxes: the tiles ``(T, 4)``.
        tiles: how the image was cut.
        size: width and height of the image.
        overlap: IoU of non-maximum suppression.
        whole: detections of the whole image, of which those count that are larger than the tiles' overlap.

    Returns:
        The detections in pixels of the image, those of the highest probability, or else score, first.
    """
    kept, fragments = [], []
    for found, box in zip(detections, boxes, strict=True):
        moved = replace(found, xyxy=found.xyxy + np.tile(box[:2], 2).astype(np.float32))
        near = _room(moved.xyxy, box[0::2], box[1::2], size) < tiles.overlap / _NEAR
        elsewhere = _most_room(moved.xyxy, tiles, size) >= tiles.overlap / _ROOM
        rows = np.flatnonzero(~(near & elsewhere))
        kept.append(moved[rows])
        fragments.append(near[rows])
    if whole is not None:
        kept.append(whole[(whole.xyxy[:, 2:] - whole.xyxy[:, :2]).max(axis=1, initial=0) > tiles.overlap])
        fragments.append(np.zeros(len(kept[-1]), bool))
    every, fragment = Detections.merge(kept), np.concatenate(fragments)
    of_classes = [
        _survivors(every, fragment, np.flatnonzero(every.labels == k), overlap) for k in np.unique(every.labels)
    ]
    rows = np.concatenate([np.zeros(0, np.int64), *of_classes])
    order = every.scores if every.probabilities is None else every.probabilities
    return every[rows[np.argsort(-order[rows], kind="stable")]]


def _survivors(every: Detections, fragment: np.ndarray, rows: np.ndarray, overlap: float) -> np.ndarray:
    """Return those of the detections ``rows`` of a class that stay: the best ones, without fragments of whole objects.

    A fragment gives way to the object that it lies in, whatever their scores are.
    """

    def best(chosen: np.ndarray) -> np.ndarray:
        return chosen[nms(every.xyxy[chosen], every.scores[chosen], overlap)]

    objects = best(rows[~fragment[rows]])
    fragments = rows[fragment[rows]]
    inside = geometry.shares_inside(every.xyxy[fragments], every.xyxy[objects]) > _INSIDE
    fragments = fragments[~inside.any(axis=1)]
    return best(np.concatenate([objects, fragments])) if len(fragments) else objects


def _most_room(boxes: np.ndarray, tiles: Tiles, size: tuple[int, int]) -> np.ndarray:
    """Return ``(n,)`` the room around each box in the tile that has most of it."""
    by_axis = []
    for axis, length in enumerate(size):
        spans = [(start, min(start + tiles.side, length)) for start in tiles.starts(length)]
        by_axis.append(np.max([_room_along(boxes, axis, span, length) for span in spans], axis=0))
    return np.minimum(*by_axis)


def _room(boxes: np.ndarray, xs: np.ndarray, ys: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return ``(n,)`` the pixels between each box and the nearest border of a tile that is no border of the image."""
    return np.minimum(_room_along(boxes, 0, xs, size[0]), _room_along(boxes, 1, ys, size[1]))


def _room_along(boxes: np.ndarray, axis: int, span: Sequence[int] | np.ndarray, length: int) -> np.ndarray:
    """Return `_room` along one axis; negative where a box sticks out of the tile."""
    first, last = span
    before = boxes[:, axis] - first if first > 0 else np.inf
    after = last - boxes[:, 2 + axis] if last < length else np.inf
    return np.minimum(before, after) * np.ones(len(boxes))
