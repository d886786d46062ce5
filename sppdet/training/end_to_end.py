"""The whole network learned together: trunk, pyramid, fc6, fc7, softmax and boxes (Fast R-CNN, arXiv 1504.08083).

SPP-net trained its fc layers only, because a window's receptive field is most of an image and windows were drawn
from many of them. Fast R-CNN draws many windows from few images, so one pass through the trunk serves them all,
and gradients go through the pooling. With one level this is Fast R-CNN, with several SPP-net trained end to end. Where
windows are crops, each goes through the trunk on its own: without the boxes' loss, R-CNN's fine-tuning.

The softmax and the boxes learned here can be the detector's own (``classifier: softmax``, ``bbox.kind: joint``), or
SVMs and ridge regression are fitted afterwards to what the trunk and the fc layers have become.

Names: B images a step, n windows of them, K classes, D features of the pooled vector.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from tqdm import tqdm

from sppdet.config import EndToEndSettings
from sppdet.features import CachedSplit, WindowFeatures
from sppdet.networks import Backbone, Head, freeze
from sppdet.ops import boxes as geometry
from sppdet.ops import nms
from sppdet.training.finetune import make_optimizer, sample_windows, warm_cosine
from sppdet.utils import SppdetError, checkpoints, in_threads

_REPORT = 50  # steps between two lines of the log
_SAVE = 60  # seconds between two checkpoints
_SAMPLE = 25  # steps whose images tell the size of features
_FEW = 10  # windows of a class below which its targets are taken for as large as those of all classes


class Network(nn.Module):
    """Trunk, head, and the two layers on fc7: ``classify`` (K + 1 logits) and ``move`` (4 K shifts).

    ``move`` learns ``(shift - mean) / deviation``, both ``(K, 4)``, until :meth:`unwhiten`.
    """

    def __init__(self, trunk: nn.Module, head: Head, classes: int):
        super().__init__()
        self.trunk, self.head = trunk, head
        self.classify = nn.Linear(head.units, classes + 1)
        self.move = nn.Linear(head.units, 4 * classes)
        self.register_buffer("mean", torch.zeros(classes, 4))
        self.register_buffer("deviation", torch.ones(classes, 4))
        for layer, deviation in ((self.classify, 0.01), (self.move, 0.001)):
            nn.init.normal_(layer.weight, std=deviation)
            nn.init.zeros_(layer.bias)

    def train(self, mode: bool = True) -> Network:
        """Batches of two images are too small for new statistics: the trunk's batch norm keeps ImageNet's."""
        super().train(mode)
        self.trunk.eval()
        return self

    def forward(self, pooled: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Vectors ``(n, D)`` pooled from :meth:`maps` -> logits ``(n, K + 1)`` and shifts ``(n, K, 4)``."""
        hidden = self.head.of_scaled(pooled)
        return self.classify(hidden).float(), self.move(hidden).float().unflatten(1, (-1, 4))

    def maps(self, backbone: Backbone, pixels: torch.Tensor) -> torch.Tensor:
        """The trunk's output, float32, already of the head's scale: maps have fewer numbers than windows' vectors."""
        with torch.autocast(backbone.device.type, torch.bfloat16, enabled=backbone.half):
            return _maps(self.trunk, backbone, pixels) * self.head.scale

    def whitened(self, targets: np.ndarray, labels: torch.Tensor) -> torch.Tensor:
        """``(f, 4)`` shifts of windows of objects with labels ``(f,)``, as ``move`` learns them."""
        return (torch.from_numpy(targets).to(self.mean) - self.mean[labels]) / self.deviation[labels]

    @torch.no_grad()
    def unwhiten(self) -> None:
        """Let ``move`` give shifts themselves."""
        self.move.weight.mul_(self.deviation.flatten()[:, None])
        self.move.bias.mul_(self.deviation.flatten()).add_(self.mean.flatten())
        self.mean.zero_()
        self.deviation.fill_(1)


@dataclass(frozen=True, eq=False)
class TrainingImage:
    """What one image gives to a step: pixels, its windows and what they should become.

    Attributes:
        pixels: ``(1, 3, H, W)``, or the crops of its windows ``(n, 3, H, W)``.
        factor, size: the image's enlargement and its own ``(width, height)``.
        windows, labels: ``(n, 4)`` and ``(n,)``; background is label K.
        targets: ``(f, 4)`` shifts of the first f windows, the foreground.
    """

    pixels: torch.Tensor
    factor: float
    size: tuple[int, int]
    windows: np.ndarray
    labels: np.ndarray
    targets: np.ndarray

    def only(self, rows: np.ndarray) -> TrainingImage:
        """The same with the windows at ``rows``, which are in order."""
        front = rows[: np.searchsorted(rows, len(self.targets))]
        return replace(self, windows=self.windows[rows], labels=self.labels[rows], targets=self.targets[front])


def train(
    split: CachedSplit,
    backbone: Backbone,
    features: WindowFeatures,
    settings: EndToEndSettings,
    checkpoint: Path,
    key: str,
    seed: int,
    log: Callable[[str], None],
    start: Head | None = None,
) -> tuple[Network, float]:
    """Train from ``backbone``'s weights; returns the network and the mean loss of the last tenth of the steps.

    The fc layers begin as ``start``, and then learn at the trunk's rate, or with random weights.

    ``checkpoint`` is written now and then, and gone on from if it was left by an interrupted training of the same
    ``key``: the weights come out the same, because every step draws from a generator of its own.
    """
    torch.manual_seed(seed)
    useful = sum(len(sample.boxes) > 0 for sample in split.dataset)
    if not useful:
        raise SppdetError("end_to_end: there is no object in the training images; check data.root and data.classes")
    steps = math.ceil(settings.epochs * useful / settings.images_per_step)
    head = start or Head(
        features.pooled_dimension, settings.units, "fc7",
        _unit(split, backbone, features, settings, seed), settings.dropout,
    )  # fmt: skip
    network = Network(copy.deepcopy(backbone.trunk), head, len(split.dataset.classes)).to(backbone.device)
    mean, deviation = target_statistics(split, settings.flip)
    network.mean.copy_(torch.from_numpy(mean))
    network.deviation.copy_(torch.from_numpy(deviation))
    freeze(network.trunk, settings.frozen_stride)
    optimizer = make_optimizer(_groups(network, settings, ("trunk.", "head.") if start else ("trunk.",)), settings)
    left = checkpoints.restore(checkpoint, key, network, optimizer)
    losses = left[0]["losses"].tolist() if left else []
    rates = [group["lr"] for group in optimizer.param_groups]
    saved = time.monotonic()
    progress = tqdm(total=steps, initial=len(losses), desc="end to end", mininterval=1, unit="")
    with progress:
        for images in _steps(split, settings, backbone, features, len(losses), steps, seed):
            torch.manual_seed(seed + len(losses))  # dropout
            for group, rate in zip(optimizer.param_groups, rates):
                group["lr"] = rate * warm_cosine(len(losses), steps)
            optimizer.zero_grad()
            losses.append(learn(network.train(), backbone, features, images, settings))
            if not np.isfinite(losses[-1]).all():
                raise SppdetError("end_to_end: the loss is not finite; lower end_to_end.learning_rate")
            optimizer.step()
            progress.update()
            if len(losses) % _REPORT == 0:
                recent = np.mean(losses[-_REPORT:], axis=0).round(4).tolist()
                log(json.dumps({"step": len(losses), "class_loss": recent[0], "box_loss": recent[1]}))
            if time.monotonic() - saved > _SAVE and len(losses) < steps:
                more = {"losses": torch.tensor(losses, dtype=torch.float64)}
                checkpoints.save(checkpoint, key, network, optimizer, more)
                saved = time.monotonic()
    network.unwhiten()
    tail = losses[-max(1, steps // 10) :]
    return network.eval(), float(np.mean([one[0] for one in tail]))


def learn(
    network: Network,
    backbone: Backbone,
    features: WindowFeatures,
    images: list[TrainingImage],
    settings: EndToEndSettings,
) -> list[float]:
    """Add a step's gradients to ``network``'s; the parts of its multi-task loss, of classes and of boxes (section 2.3).

    As there, both are divided by the number of all windows. On a CPU each image goes through the trunk, and its
    gradient back, in one thread beside the others', as layers of small images are too little work to share. The sums
    are made in the order of the images on any number of cores.
    """
    workers = torch.get_num_threads() if backbone.device.type == "cpu" else 1
    maps = list(in_threads(lambda image: network.maps(backbone, image.pixels), images, workers))
    ends = [own.detach().requires_grad_(own.requires_grad) for own in maps]
    parts = _losses(network, backbone, features, images, ends, settings)
    (parts[0] + settings.box_weight * parts[1]).backward()

    layers = [parameter for parameter in network.trunk.parameters() if parameter.requires_grad]
    back = [(own, end.grad) for own, end in zip(maps, ends) if end.grad is not None]
    for gradients in in_threads(lambda pair: torch.autograd.grad(pair[0], layers, pair[1]), back, workers):
        for layer, gradient in zip(layers, gradients):
            layer.grad = gradient if layer.grad is None else layer.grad.add_(gradient)
    return [part.item() for part in parts]


def _losses(
    network: Network, backbone: Backbone, features: WindowFeatures, images: list[TrainingImage], maps: list[torch.Tensor],
    settings: EndToEndSettings,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Both parts of the loss, from the maps on."""

    def of_windows(images: list[TrainingImage]) -> tuple[torch.Tensor, torch.Tensor]:
        pooled = torch.cat([_pool(own, features, image) for own, image in zip(maps, images)])
        with torch.autocast(backbone.device.type, torch.bfloat16, enabled=backbone.half):
            return _window_losses(network, pooled, images, settings.focal)

    if settings.hard_of:
        with torch.no_grad():
            classification, moved = of_windows(images)
            hardness = classification + settings.box_weight * moved
        hardness = hardness.split([len(image.labels) for image in images])
        chosen = [_hardest(p, loss, settings.windows_per_image) for p, loss in zip(images, hardness)]
        images = [image.only(rows) for image, rows in zip(images, chosen)]
    classification, moved = of_windows(images)
    count = max(1, len(classification))
    return classification.sum() / count, moved.sum() / count


def _window_losses(
    network: Network, pooled: torch.Tensor, images: list[TrainingImage], focal: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both losses of every window: ``(n,)`` each, the second 0 for background."""
    logits, shifts = network(pooled)
    labels = torch.from_numpy(np.concatenate([image.labels for image in images])).to(logits.device)
    classification = functional.cross_entropy(logits, labels, reduction="none")
    if focal:  # arXiv 1708.02002, equation 4, of the softmax's probability
        classification = (1 - torch.exp(-classification)) ** focal * classification
    front = torch.nonzero(labels < shifts.shape[1])[:, 0]
    own = labels[front]
    wanted = network.whitened(np.concatenate([image.targets for image in images]), own)
    moved = functional.smooth_l1_loss(shifts[front, own], wanted, reduction="none").sum(dim=1)
    return classification, torch.zeros_like(classification).index_put((front,), moved)


def _hardest(image: TrainingImage, losses: torch.Tensor, count: int) -> np.ndarray:
    """Rows of the windows of highest loss, in order; of those that overlap by more than 0.7 only the highest.

    Online hard example mining (arXiv 1604.03540), section 4.2.
    """
    return np.sort(nms(image.windows, losses.cpu().numpy(), 0.7)[:count])


def _maps(trunk: nn.Module, backbone: Backbone, pixels: torch.Tensor) -> torch.Tensor:
    return trunk(pixels.to(backbone.device, memory_format=torch.channels_last)).float()


def _pool(maps: torch.Tensor, features: WindowFeatures, image: TrainingImage) -> torch.Tensor:
    return features.pool(maps, image.windows, image.size, image.factor)


def _groups(network: Network, settings: EndToEndSettings, given: tuple[str, ...]) -> list[dict]:
    """The parameters that learn; those that came with weights, whose names begin so, at a rate of their own."""
    names = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    old = [parameter for name, parameter in names.items() if name.startswith(given)]
    fresh = [parameter for name, parameter in names.items() if not name.startswith(given)]
    return [{"params": old, "lr": settings.learning_rate * settings.trunk_rate}, {"params": fresh}]


def _steps(
    split: CachedSplit,
    settings: EndToEndSettings,
    backbone: Backbone,
    features: WindowFeatures,
    first: int,
    last: int,
    seed: int,
) -> Iterator[list[TrainingImage]]:
    """The images of the steps from ``first`` on, read ahead; each image with objects comes once an epoch."""
    useful = np.flatnonzero([len(sample.boxes) for sample in split.dataset])

    def read(position: int) -> TrainingImage:
        epoch, number = divmod(position, len(useful))
        order = np.random.default_rng([seed, epoch]).permutation(useful)
        rng = np.random.default_rng([seed, epoch, number])
        return read_image(split, int(order[number]), settings, backbone, features, rng)

    count = settings.images_per_step
    images = in_threads(read, range(first * count, last * count), 1)
    for _ in range(first, last):
        yield list(islice(images, count))


def read_image(
    split: CachedSplit,
    i: int,
    settings: EndToEndSettings,
    backbone: Backbone,
    features: WindowFeatures,
    rng: np.random.Generator,
) -> TrainingImage:
    """TrainingImage ``i`` at a random one of the scales, mirrored every other time, and a draw of its windows."""
    image, (width, height) = split.dataset[i].read(), split.size(i)
    windows, labels, objects = _draw(split, i, settings, rng)
    scale = int(rng.choice(settings.scales))
    if settings.flip and rng.random() < 0.5:
        image, windows, objects = image[:, ::-1], geometry.mirror(windows, width), geometry.mirror(objects, width)
    targets = geometry.encode(windows[: len(objects)], objects)
    pixels, factor = features.trunk_input(backbone, image, windows, scale)
    return TrainingImage(pixels, factor, (width, height), windows, labels, targets)


def _draw(
    split: CachedSplit, i: int, settings: EndToEndSettings, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Windows, labels and objects; where hard ones are chosen among them, more, of any overlap and share."""
    if settings.hard_of:
        return sample_windows(split, i, settings.hard_of, 0.5, rng, lowest=0.0)
    return sample_windows(split, i, settings.windows_per_image, settings.foreground, rng, settings.background)


def target_statistics(split: CachedSplit, flip: bool) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of each class's targets, both float64 ``(K, 4)``.

    Of all windows that overlap an object by half or more, the objects themselves among them, and with ``flip`` of their
    mirror images, as roidb.py of py-faster-rcnn has it. A class with few such windows takes those of all classes.
    """
    labels, targets = [np.zeros(0, np.int64)], [np.zeros((0, 4))]
    for i, sample in enumerate(split.dataset):
        if len(sample.boxes):
            windows = np.concatenate([sample.boxes, split.proposals(i)])
            overlap = geometry.iou(windows, sample.boxes)
            near = overlap.max(axis=1) >= 0.5
            nearest = overlap[near].argmax(axis=1)
            labels.append(sample.labels[nearest])
            targets.append(geometry.encode(windows[near], sample.boxes[nearest]))
    labels, targets = np.concatenate(labels), np.concatenate(targets)
    if flip:
        labels, targets = np.tile(labels, 2), np.concatenate([targets, targets * (-1, 1, 1, 1)])
    every = range(len(split.dataset.classes))
    own = [targets[labels == k] if (labels == k).sum() >= _FEW else targets for k in every]
    return np.stack([t.mean(axis=0) for t in own]), np.stack([t.std(axis=0) for t in own]) + 1e-6


def _unit(
    split: CachedSplit, backbone: Backbone, features: WindowFeatures, settings: EndToEndSettings, seed: int
) -> float:
    """What brings pooled features to a mean square of 1."""
    images = (p for step in _steps(split, settings, backbone, features, 0, _SAMPLE, seed) for p in step)
    with torch.inference_mode():
        pooled = (_pool(_maps(backbone.trunk, backbone, p.pixels), features, p) for p in images)
        squares = [vectors.square().mean() for vectors in pooled]
    return float(torch.stack(squares).mean().rsqrt())
