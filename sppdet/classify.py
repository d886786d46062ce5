"""SPP-net as a classifier: trunk, pyramid, one linear layer; multi-size training (He et al. 2014, section 3).

Because the pyramid's output does not depend on the picture's size, one set of weights is trained at several sizes:
each epoch at one of them, in turn (the paper's 180 and 224).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain

import cv2
import numpy as np
import torch
from torch import nn

from sppdet import boxes as geometry
from sppdet.backbone import MEAN, STD, build_trunk, resolve_device, resolve_precision
from sppdet.config import Pretrain
from sppdet.data import Dataset
from sppdet.errors import SppdetError
from sppdet.images import read_image
from sppdet.parallel import run
from sppdet.pooling import SpatialPyramidPooling

_MARGIN = 0.2  # of an object's sides: what a crop shows around it


class SPPClassifier(nn.Module):
    """Pictures ``(B, 3, H, W)`` of any size -> ``(B, K)`` logits."""

    def __init__(self, trunk: nn.Module, channels: int, classes: int, levels: tuple[int, ...], dropout: float = 0.3):
        super().__init__()
        self.trunk = trunk
        self.pool = SpatialPyramidPooling(levels)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(self.pool.output_dim(channels), classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.dropout(self.pool(self.trunk(x))))


@dataclass(frozen=True, eq=False)
class Crops:
    """Pictures of single objects: uint8 ``(n, side, side, 3)`` and labels ``(n,)``."""

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
        image = read_image(sample.path)
        background = _elsewhere(sample, rng)
        labels = [*sample.labels.tolist(), *[len(dataset.classes)] * len(background)]
        return [_crop(image, box, side) for box in np.concatenate([sample.boxes, background])], labels

    images, labels = zip(*run(cut, range(len(dataset)), workers, "cropping objects", threads=True))
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


def _crop(image: np.ndarray, box: np.ndarray, side: int) -> np.ndarray:
    height, width = image.shape[:2]
    margin = _MARGIN * (box[2:] - box[:2])
    x1, y1 = np.maximum(np.floor(box[:2] - margin), 0).astype(int)
    x2, y2 = np.minimum(np.ceil(box[2:] + margin), [width, height]).astype(int)
    return cv2.resize(image[y1:y2, x1:x2], (side, side), interpolation=cv2.INTER_LINEAR)


def pretrain(
    dataset: Dataset,
    backbone: str,
    settings: Pretrain,
    levels: tuple[int, ...],
    seed: int,
    device: str,
    workers: int,
    log: Callable[[str], None],
) -> tuple[nn.Module, float]:
    """Train a trunk from nothing on the objects of ``dataset``; returns it and its last training accuracy."""
    crops = object_crops(dataset, max(settings.sizes), seed, workers)
    if len(crops.labels) < settings.batch_size:
        raise SppdetError(
            f"pretrain: {len(crops.labels)} crops are fewer than pretrain.batch_size={settings.batch_size}; "
            "give more pictures or backbone.weights=imagenet"
        )
    torch.manual_seed(seed)
    place = resolve_device(device)
    trunk = build_trunk(backbone, seed)
    channels = trunk(torch.zeros(1, 3, 64, 64)).shape[1]
    network = SPPClassifier(trunk, channels, len(dataset.classes) + 1, levels)
    network = network.to(place, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    steps = settings.epochs * (len(crops.labels) // settings.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.learning_rate, total_steps=steps)
    half = resolve_precision("auto", place) == "bfloat16"
    rng = np.random.default_rng(seed)
    accuracy = 0.0
    for epoch in range(settings.epochs):
        size = settings.sizes[epoch % len(settings.sizes)]
        right = seen = 0
        for x, labels in _batches(crops, size, settings.batch_size, rng):
            x, labels = x.to(place, memory_format=torch.channels_last), labels.to(place)
            with torch.autocast(place.type, torch.bfloat16, enabled=half):
                logits = network(x).float()
            loss = nn.functional.cross_entropy(logits, labels)
            if not torch.isfinite(loss):
                raise SppdetError("pretrain: the loss is not finite; lower pretrain.learning_rate")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            right += int((logits.argmax(1) == labels).sum())
            seen += len(labels)
        accuracy = right / seen
        log(
            json.dumps(
                {
                    "epoch": epoch + 1,
                    "size": size,
                    "loss": round(loss.item(), 4),
                    "accuracy": round(accuracy, 3),
                }
            )
        )
    return trunk.eval().cpu(), accuracy


def _batches(crops: Crops, size: int, batch_size: int, rng: np.random.Generator):
    """Shuffled, at ``size`` pixels a side, each cut and mirrored at random; the incomplete last batch is left out."""
    order = rng.permutation(len(crops.labels))
    for start in range(0, len(order) - batch_size + 1, batch_size):
        rows = order[start : start + batch_size]
        images = np.stack([_jitter(crops.images[row], size, rng) for row in rows])
        x = torch.from_numpy((images * (1 / 255 / STD) - MEAN / STD).astype(np.float32)).permute(0, 3, 1, 2)
        yield x, torch.from_numpy(crops.labels[rows])
