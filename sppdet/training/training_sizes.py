"""How large the training images and their objects are, which decides how larger images are cut into tiles."""

from __future__ import annotations

import math

import numpy as np

from sppdet.data import Dataset, Tiles
from sppdet.detection import TrainedOn

_USUAL = 0.95  # share of the objects that are no larger than the largest usual one
_SMALL = 30  # objects are small where half of them are smaller than this part of the longer side of the image
_TILE = 10  # tiles that are advised are as many times as large as half of the objects, in steps of 100 pixels
_SMALLEST_TILE = 500


def trained_on(dataset: Dataset, tiles: Tiles | None) -> TrainedOn:
    """Return what a model stores of its training images.

    Args:
        dataset: the training images, or their tiles.
        tiles: how the images were cut; None: not at all.
    """
    sides = _object_sides(dataset)
    usual = math.ceil(np.quantile(sides, _USUAL)) if len(sides) else 0
    return TrainedOn(round(float(np.median(_image_sides(dataset)))), usual, tiles)


def advice(dataset: Dataset, tiles: Tiles | None) -> str | None:
    """Return what tiles would serve the objects of whole images better; None where there is nothing to say.

    Args:
        dataset: whole images.
        tiles: how they are cut; None: not at all.
    """
    sides, images = _object_sides(dataset), _image_sides(dataset)
    if not len(sides):
        return None
    usual, half = math.ceil(np.quantile(sides, _USUAL)), float(np.median(sides))
    if tiles is not None and usual > tiles.overlap and tiles.overlap < tiles.side // 2:
        return (
            f"one object in twenty is larger than {usual} pixels, and tiles that overlap by {tiles.overlap} cut many "
            f"of them; give data.tile_overlap={min(usual, tiles.side // 2)}"
        )
    side = max(_SMALLEST_TILE, 100 * math.ceil(_TILE * half / 100))
    image_side = float(np.median(images))
    if tiles is None and half * _SMALL < image_side and image_side >= 2 * side:
        pieces = np.mean([len(Tiles(side, side // 4).boxes(image.width, image.height)) for image in dataset])
        return (
            f"half of the objects are smaller than {half:.0f} pixels, in images of {image_side:.0f}: data.tiles={side} "
            f"reads these in {pieces:.0f} tiles each, which takes as many times as long and finds smaller objects"
        )
    return None


def _object_sides(dataset: Dataset) -> np.ndarray:
    """Return the longer sides, in pixels, of all objects."""
    sides = [(sample.boxes[:, 2:] - sample.boxes[:, :2]).max(axis=1, initial=0) for sample in dataset]
    return np.concatenate([np.zeros(0), *sides])


def _image_sides(dataset: Dataset) -> list[int]:
    """Return the longer side of each image in pixels."""
    return [max(sample.width, sample.height) for sample in dataset]
