"""Pretraining of a trunk on the objects of a detection data set: SPP-net classifies crops of objects and of background.

The training itself is `sppdet.classification.training`'s.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import cv2
import numpy as np
import torch
from torch import nn

from sppdet.classification import SPPClassifier, to_pixels, train_classifier
from sppdet.config import PretrainSettings
from sppdet.data import Dataset, Sample
from sppdet.networks import WHOLE, Backbone, Cut, Normalisation
from sppdet.ops import boxes as geometry
from sppdet.utils import Execution, SppdetError, parallel_map

_MARGIN = 0.2  # of an object's sides: the surroundings that a crop shows on each side, for a random cut to move in
_BACKGROUND_TRIES = 4  # boxes that are tried for each object; most images leave one that is free
_BACKGROUND_IOU = 0.3  # boxes that overlap an object by less are background
_JITTER_NUMBERS = 5  # random numbers that one _jitter draws


@dataclass(frozen=True, eq=False)
class Crops:
    """Images of single objects and of background.

    Attributes:
        images: RGB uint8 ``(n, side, side, 3)``.
        labels: int64 ``(n,)``; background is label K.
    """

    images: np.ndarray
    labels: np.ndarray


def object_crops(dataset: Dataset, side: int, seed: int, workers: int) -> Crops:
    """Cut out every object with some of its surroundings, and as much background.

    Background are boxes of the objects' sizes at random positions that overlap no object by 0.3 or more.

    Args:
        dataset: the images and their objects.
        side: pixels a side of each crop.
        seed: of the background's positions.
        workers: threads; 0 is every core.
    """

    def cut(i: int) -> tuple[list[np.ndarray], list[int]]:
        sample = dataset[i]
        if not len(sample.boxes):
            return [], []
        rng = np.random.default_rng([seed, i])
        image = sample.read()
        background = _background(sample, rng)
        labels = [*sample.labels.tolist(), *[len(dataset.classes)] * len(background)]
        return [_crop(image, box, side) for box in np.concatenate([sample.boxes, background])], labels

    images, labels = zip(*parallel_map(cut, range(len(dataset)), workers, "cropping objects", threads=True))
    return Crops(np.array([*chain(*images)]), np.array([*chain(*labels)], np.int64))


def _background(sample: Sample, rng: np.random.Generator) -> np.ndarray:
    """Return background boxes ``(n, 4)`` of an image, at most as many as it has objects."""
    image_size = np.array([sample.width, sample.height])
    sizes = np.repeat(np.minimum(sample.boxes[:, 2:] - sample.boxes[:, :2], image_size), _BACKGROUND_TRIES, axis=0)
    corners = rng.random(sizes.shape) * (image_size - sizes)
    boxes = np.concatenate([corners, corners + sizes], axis=1).astype(np.float32)
    free = geometry.iou(boxes, sample.boxes).max(axis=1) < _BACKGROUND_IOU
    return boxes[free][: len(sample.boxes)]


def around(image: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Return a box ``(4,)`` of an image ``(H, W, 3)`` with its surroundings, as far as they lie in the image."""
    height, width = image.shape[:2]
    margin = _MARGIN * (box[2:] - box[:2])
    x1, y1 = np.maximum(np.floor(box[:2] - margin), 0).astype(int)
    x2, y2 = np.minimum(np.ceil(box[2:] + margin), [width, height]).astype(int)
    return np.ascontiguousarray(image[y1:y2, x1:x2])


def _crop(image: np.ndarray, box: np.ndarray, side: int) -> np.ndarray:
    """Return a box with its surroundings, resized to ``(side, side, 3)``."""
    return cv2.resize(around(image, box), (side, side), interpolation=cv2.INTER_LINEAR)


def _jitter(crop: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Return a random cut of a crop that holds the whole object, ``(size, size, 3)``, mirrored half of the times."""
    side = len(crop)
    most = side * _MARGIN / (1 + 2 * _MARGIN)  # how far an edge may move in before it cuts the object
    x1, y1, x2, y2 = np.rint(rng.random(4) * most).astype(int)
    view = cv2.resize(crop[y1 : side - y2, x1 : side - x2], (size, size), interpolation=cv2.INTER_LINEAR)
    return view[:, ::-1] if rng.random() < 0.5 else view


def pretrain(
    dataset: Dataset,
    backbone_name: str,
    precision: str,
    settings: PretrainSettings,
    levels: tuple[int, ...],
    device: str,
    execution: Execution,
    cut: Cut = WHOLE,
) -> tuple[nn.Module, float]:
    """Train a trunk with random weights on the objects of a data set.

    Args:
        dataset: the images and their objects.
        backbone_name: which trunk, such as ``small``.
        precision: ``auto``, ``float32`` or ``bfloat16``.
        settings: of the training.
        levels: bins per side of each level of the pyramid on the trunk.
        device: ``auto``, ``cpu`` or ``cuda``.
        execution: seed, workers and checkpoint.
        cut: where the trunk ends.

    Returns:
        The trunk, on the CPU, and its accuracy on the crops in the last epoch.

    Raises:
        SppdetError: the crops do not fill a batch, or the loss is not finite.
    """
    crops = object_crops(dataset, max(settings.sizes), execution.seed, execution.workers)
    per_epoch = len(crops.labels) // settings.batch_size
    if not per_epoch:
        raise SppdetError(
            f"pretrain: {len(crops.labels)} crops are fewer than pretrain.batch_size={settings.batch_size}; "
            "give more images or backbone.weights=imagenet"
        )
    torch.manual_seed(execution.seed)
    backbone = Backbone.create(backbone_name, "random", device, precision, execution.seed, cut)
    network = SPPClassifier(backbone.trunk, backbone.channels, len(dataset.classes) + 1, levels)
    network.for_training(backbone.device)
    history = train_classifier(
        network,
        backbone,
        lambda epoch, size, first: _batches(
            crops, backbone.normalisation, size, settings.batch_size, execution.seed, epoch, first
        ),
        per_epoch,
        settings,
        name="pretraining",
        section="pretrain.",
        checkpoint=execution.checkpoint,
        curves=execution.curves,
    )
    return backbone.trunk.cpu(), history[-1]["accuracy"]


def _batches(
    crops: Crops, normalisation: Normalisation, size: int, batch_size: int, seed: int, epoch: int, first: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield the batches of an epoch from number ``first`` on: pixels of random cuts, and labels.

    One generator draws for all epochs; the draws for earlier batches are repeated and dropped. The incomplete last
    batch of an epoch is left out.
    """
    count = len(crops.labels)
    per_epoch = count // batch_size
    rng = np.random.default_rng(seed)
    for _ in range(epoch):
        rng.permutation(count)
        rng.random(_JITTER_NUMBERS * per_epoch * batch_size)
    order = rng.permutation(count)
    rng.random(_JITTER_NUMBERS * first * batch_size)
    for number in range(first, per_epoch):
        rows = order[number * batch_size : (number + 1) * batch_size]
        images = np.stack([_jitter(crops.images[row], size, rng) for row in rows])
        yield to_pixels(images, normalisation), torch.from_numpy(crops.labels[rows])
