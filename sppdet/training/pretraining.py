"""Pretraining of a trunk on the objects of a detection data set: classification of their crops by SPP-net.

Objects and as much background, with the training of :mod:`sppdet.classification.training`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain

import cv2
import numpy as np
import torch
from torch import nn

from sppdet.classification import SPPClassifier, to_pixels, train_network
from sppdet.config import PretrainSettings
from sppdet.data import Dataset
from sppdet.networks import Backbone
from sppdet.ops import boxes as geometry
from sppdet.utils import SppdetError, parallel_map

_MARGIN = 0.2  # of an object's sides: what a crop shows around it


@dataclass(frozen=True, eq=False)
class Crops:
    """Images of single objects: uint8 ``(n, side, side, 3)`` and labels ``(n,)``."""

    images: np.ndarray
    labels: np.ndarray


def object_crops(dataset: Dataset, side: int, seed: int, workers: int) -> Crops:
    """Every object with a little of its surroundings, and as much background, resized to ``side`` x ``side``.

    Background is label K: boxes of the objects' own sizes, elsewhere, that overlap any object by less than 0.3.
    """

    def cut(i: int) -> tuple[list[np.ndarray], list[int]]:
        sample = dataset[i]
        if not len(sample.boxes):
            return [], []
        rng = np.random.default_rng([seed, i])
        image = sample.read()
        background = _elsewhere(sample, rng)
        labels = [*sample.labels.tolist(), *[len(dataset.classes)] * len(background)]
        return [_crop(image, box, side) for box in np.concatenate([sample.boxes, background])], labels

    images, labels = zip(*parallel_map(cut, range(len(dataset)), workers, "cropping objects", threads=True))
    return Crops(np.array([*chain(*images)]), np.array([*chain(*labels)], np.int64))


def _elsewhere(sample, rng: np.random.Generator) -> np.ndarray:
    size = np.minimum(sample.boxes[:, 2:] - sample.boxes[:, :2], [sample.width, sample.height])
    tries = np.repeat(size, 4, axis=0)
    corner = rng.random(tries.shape) * (np.array([sample.width, sample.height]) - tries)
    boxes = np.concatenate([corner, corner + tries], axis=1).astype(np.float32)
    free = geometry.iou(boxes, sample.boxes).max(axis=1) < 0.3
    return boxes[free][: len(sample.boxes)]


def _jitter(image: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """A random part that holds the object, at ``size`` x ``size``, mirrored every other time."""
    side = len(image)
    most = side * _MARGIN / (1 + 2 * _MARGIN)  # how far an edge may move in before it cuts the object
    x1, y1, x2, y2 = np.rint(rng.random(4) * most).astype(int)
    part = cv2.resize(image[y1 : side - y2, x1 : side - x2], (size, size), interpolation=cv2.INTER_LINEAR)
    return part[:, ::-1] if rng.random() < 0.5 else part


def around(image: np.ndarray, box: np.ndarray) -> np.ndarray:
    """A box ``(4,)`` of an image with a little of its surroundings, as far as they are in the image."""
    height, width = image.shape[:2]
    margin = _MARGIN * (box[2:] - box[:2])
    x1, y1 = np.maximum(np.floor(box[:2] - margin), 0).astype(int)
    x2, y2 = np.minimum(np.ceil(box[2:] + margin), [width, height]).astype(int)
    return np.ascontiguousarray(image[y1:y2, x1:x2])


def _crop(image: np.ndarray, box: np.ndarray, side: int) -> np.ndarray:
    return cv2.resize(around(image, box), (side, side), interpolation=cv2.INTER_LINEAR)


def pretrain(
    dataset: Dataset,
    backbone: str,
    precision: str,
    settings: PretrainSettings,
    levels: tuple[int, ...],
    seed: int,
    device: str,
    workers: int,
    log: Callable[[str], None],
) -> tuple[nn.Module, float]:
    """Train a trunk from nothing on the objects of ``dataset``; returns it and its last training accuracy."""
    crops = object_crops(dataset, max(settings.sizes), seed, workers)
    per_epoch = len(crops.labels) // settings.batch_size
    if not per_epoch:
        raise SppdetError(
            f"pretrain: {len(crops.labels)} crops are fewer than pretrain.batch_size={settings.batch_size}; "
            "give more images or backbone.weights=imagenet"
        )
    torch.manual_seed(seed)
    made = Backbone.create(backbone, "random", device, precision, seed)
    network = SPPClassifier(made.trunk, made.channels, len(dataset.classes) + 1, levels)
    network.requires_grad_(True).to(made.device, memory_format=torch.channels_last)
    rng = np.random.default_rng(seed)  # one for all epochs, which come in order

    def batches(epoch: int, size: int, first: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return _batches(crops, size, settings.batch_size, rng)

    history = train_network(network, made, batches, per_epoch, settings, log, section="pretrain.")
    return made.trunk.cpu(), history[-1]["accuracy"]


def _batches(
    crops: Crops, size: int, batch_size: int, rng: np.random.Generator
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Shuffled, at ``size`` pixels a side, each cut and mirrored at random; the incomplete last batch is left out."""
    order = rng.permutation(len(crops.labels))
    for start in range(0, len(order) - batch_size + 1, batch_size):
        rows = order[start : start + batch_size]
        images = np.stack([_jitter(crops.images[row], size, rng) for row in rows])
        yield to_pixels(images), torch.from_numpy(crops.labels[rows])
