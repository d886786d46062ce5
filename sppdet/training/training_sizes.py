"""How large the training images and their objects are, which decides how detection cuts larger images."""

from __future__ import annotations

import numpy as np

from sppdet.data import Dataset, Tiles
from sppdet.detection import TrainedOn

_USUAL = 0.95  # share of the objects that are no larger than the largest usual one


def trained_on(dataset: Dataset, tiles: Tiles | None) -> TrainedOn:
    """Return what a model stores of its training images.

    Args:
        dataset: the training images, or their tiles.
        tiles: how the images were cut; None: not at all.
    """
    image_side = np.median([max(sample.width, sample.height) for sample in dataset])
    objects = [sample.boxes[sample.whole] for sample in dataset]
    sides = np.concatenate([(boxes[:, 2:] - boxes[:, :2]).max(axis=1, initial=0) for boxes in objects])
    object_side = np.quantile(sides, _USUAL) if len(sides) else 0
    return TrainedOn(round(float(image_side)), int(np.ceil(object_side)), tiles)
