"""The whole network learned together: trunk, pyramid, fc6, fc7, softmax and boxes (Fast R-CNN, arXiv 1504.08083).

SPP-net trained its fc layers only, because a window's receptive field is most of a picture and windows were drawn
from many of them. Fast R-CNN draws many windows from few pictures, so one pass through the trunk serves them all,
and gradients go through the pooling. With one level this is Fast R-CNN, with several SPP-net trained end to end.

The softmax and the boxes learned here can be the detector's own (``classifier: softmax``, ``bbox.kind: joint``), or
SVMs and ridge regression are fitted afterwards to what the trunk and the fc layers have become.

Names: B pictures a step, n windows of them, K classes, D features of the pooled vector.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from tqdm import tqdm

from sppdet import boxes as geometry
from sppdet import checkpoint as checkpoints
from sppdet.backbone import Backbone, freeze
from sppdet.config import EndToEnd
from sppdet.corpus import Corpus
from sppdet.errors import SppdetError
from sppdet.features import PyramidFeatures
from sppdet.finetune import make_optimizer, sample_windows, warm_cosine
from sppdet.head import Head
from sppdet.images import read_image
from sppdet.parallel import in_threads
from sppdet.pooling import pyramid_pool_batch
from sppdet.regions import project, scale_factor

_REPORT = 50  # steps between two lines of the log
_SAVE = 500  # and between two checkpoints
_SAMPLE = 25  # steps whose pictures tell the size of targets and features


class Network(nn.Module):
    """Trunk, head, and the two layers on fc7: ``classify`` (K + 1 logits) and ``move`` (4 K shifts)."""

    def __init__(self, trunk: nn.Module, head: Head, classes: int):
        super().__init__()
        self.trunk, self.head = trunk, head
        self.classify = nn.Linear(head.units, classes + 1)
        self.move = nn.Linear(head.units, 4 * classes)
        for layer, deviation in ((self.classify, 0.01), (self.move, 0.001)):
            nn.init.normal_(layer.weight, std=deviation)
            nn.init.zeros_(layer.bias)

    def train(self, mode: bool = True) -> Network:
        """Batches of two pictures are too small for new statistics: the trunk's batch norm keeps ImageNet's."""
        super().train(mode)
        self.trunk.eval()
        return self

    def forward(self, pooled: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Pooled vectors ``(n, D)`` -> logits ``(n, K + 1)`` and shifts ``(n, K, 4)``."""
        hidden = self.head(pooled)
        return self.classify(hidden).float(), self.move(hidden).float().unflatten(1, (-1, 4))

    @torch.no_grad()
    def unwhiten(self, mean: torch.Tensor, deviation: torch.Tensor) -> None:
        """Let ``move`` give shifts themselves, where it learned ``(shift - mean) / deviation``; both are ``(4,)``."""
        classes = self.move.out_features // 4
        mean, deviation = (value.to(self.move.weight).repeat(classes) for value in (mean, deviation))
        self.move.weight.mul_(deviation[:, None])
        self.move.bias.mul_(deviation).add_(mean)


@dataclass(frozen=True, eq=False)
class Picture:
    """What one picture gives to a step: pixels ``(1, 3, H, W)``, its windows and what they should become.

    Attributes:
        factor, size: the picture's enlargement and its own ``(width, height)``.
        windows, labels: ``(n, 4)`` and ``(n,)``; background is label K.
        targets: ``(f, 4)`` shifts of the first f windows, the foreground.
    """

    pixels: torch.Tensor
    factor: float
    size: tuple[int, int]
    windows: np.ndarray
    labels: np.ndarray
    targets: np.ndarray


def train(
    corpus: Corpus,
    backbone: Backbone,
    features: PyramidFeatures,
    settings: EndToEnd,
    checkpoint: Path,
    key: str,
    seed: int,
    log: Callable[[str], None],
) -> tuple[Network, float]:
    """Train from ``backbone``'s weights; returns the network and the mean loss of the last tenth of the steps.

    ``checkpoint`` is written now and then, and gone on from if it was left by an interrupted training of the same
    ``key``: the weights come out the same, because every step draws from a generator of its own.
    """
    torch.manual_seed(seed)
    useful = sum(len(sample.boxes) > 0 for sample in corpus.dataset)
    if not useful:
        raise SppdetError("end_to_end: there is no object in the training pictures; check data.root and data.classes")
    steps = math.ceil(settings.epochs * useful / settings.pictures_per_step)
    mean, deviation, unit = _statistics(corpus, backbone, features, settings, seed)
    head = Head(features.pooled_dimension, settings.units, "fc7", unit, settings.dropout)
    network = Network(copy.deepcopy(backbone.trunk), head, len(corpus.dataset.classes)).to(backbone.device)
    freeze(network.trunk, settings.frozen_stride)
    optimizer = make_optimizer(_groups(network, settings), settings)
    left = checkpoints.restore(checkpoint, key, network, optimizer)
    losses = left[0]["losses"].tolist() if left else []
    rates = [group["lr"] for group in optimizer.param_groups]
    progress = tqdm(total=steps, initial=len(losses), desc="end to end", mininterval=1, unit="")
    with progress:
        for pictures in _steps(corpus, settings, backbone, features.max_side, len(losses), steps, seed):
            torch.manual_seed(seed + len(losses))  # dropout
            for group, rate in zip(optimizer.param_groups, rates):
                group["lr"] = rate * warm_cosine(len(losses), steps)
            parts = loss_of(network.train(), backbone, features, pictures, mean, deviation)
            loss = parts["class"] + settings.box_weight * parts["box"]
            if not torch.isfinite(loss):
                raise SppdetError("end_to_end: the loss is not finite; lower end_to_end.learning_rate")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append([parts[name].item() for name in ("class", "box")])
            progress.update()
            if len(losses) % _REPORT == 0:
                recent = np.mean(losses[-_REPORT:], axis=0).round(4).tolist()
                log(json.dumps({"step": len(losses), "class_loss": recent[0], "box_loss": recent[1]}))
            if len(losses) % _SAVE == 0 and len(losses) < steps:
                more = {"losses": torch.tensor(losses, dtype=torch.float64)}
                checkpoints.save(checkpoint, key, network, optimizer, more)
    network.unwhiten(torch.from_numpy(mean), torch.from_numpy(deviation))
    tail = losses[-max(1, steps // 10) :]
    return network.eval(), float(np.mean([one[0] for one in tail]))


def loss_of(
    network: Network, backbone: Backbone, features: PyramidFeatures, pictures: list[Picture],
    mean: np.ndarray, deviation: np.ndarray,
) -> dict[str, torch.Tensor]:  # fmt: skip
    """The two parts of the multi-task loss: softmax's ``class``, and the foreground's smooth-L1 ``box`` (section 2.3).

    As there, both are divided by the number of all windows; targets are whitened by ``mean`` and ``deviation``.
    """
    with torch.autocast(backbone.device.type, torch.bfloat16, enabled=backbone.half):
        pooled = torch.cat([_pool(network.trunk, backbone, features, picture) for picture in pictures])
        logits, shifts = network(pooled)
    labels = torch.from_numpy(np.concatenate([picture.labels for picture in pictures])).to(logits.device)
    classification = functional.cross_entropy(logits, labels)
    front = torch.nonzero(labels < shifts.shape[1])[:, 0]
    targets = np.concatenate([picture.targets for picture in pictures])
    wanted = torch.from_numpy((targets - mean) / deviation).to(shifts)
    moved = functional.smooth_l1_loss(shifts[front, labels[front]], wanted, reduction="sum") / max(1, len(labels))
    return {"class": classification, "box": moved}


def _pool(trunk: nn.Module, backbone: Backbone, features: PyramidFeatures, picture: Picture) -> torch.Tensor:
    pixels = picture.pixels.to(backbone.device, memory_format=torch.channels_last)
    conv_map = trunk(pixels)[0].float()
    map_size = (conv_map.shape[2], conv_map.shape[1])
    cells = project(picture.windows, picture.size, picture.factor, backbone.grid, map_size, features.shrink)
    return pyramid_pool_batch(conv_map, cells, features.levels).flatten(1)


def _groups(network: Network, settings: EndToEnd) -> list[dict]:
    """The parameters that learn, the trunk's at a rate of their own."""
    trunk = [parameter for parameter in network.trunk.parameters() if parameter.requires_grad]
    fresh = [parameter for name, parameter in network.named_parameters() if not name.startswith("trunk.")]
    return [{"params": trunk, "lr": settings.learning_rate * settings.trunk_rate}, {"params": fresh}]


def _steps(
    corpus: Corpus, settings: EndToEnd, backbone: Backbone, max_side: int, first: int, last: int, seed: int
) -> Iterator[list[Picture]]:
    """The pictures of the steps from ``first`` on, read ahead; each picture with objects comes once an epoch."""
    useful = np.flatnonzero([len(sample.boxes) for sample in corpus.dataset])

    def read(position: int) -> Picture:
        epoch, number = divmod(position, len(useful))
        order = np.random.default_rng([seed, epoch]).permutation(useful)
        rng = np.random.default_rng([seed, epoch, number])
        return read_picture(corpus, int(order[number]), settings, backbone, max_side, rng)

    count = settings.pictures_per_step
    pictures = in_threads(read, range(first * count, last * count), 1)
    for _ in range(first, last):
        yield list(islice(pictures, count))


def read_picture(
    corpus: Corpus, i: int, settings: EndToEnd, backbone: Backbone, max_side: int, rng: np.random.Generator
) -> Picture:
    """Picture ``i`` at a random one of the scales, mirrored every other time, and a draw of its windows."""
    image, (width, height) = read_image(corpus.dataset[i].path), corpus.size(i)
    windows, labels, objects = sample_windows(corpus, i, settings.windows_per_picture, settings.foreground, rng)
    factor = scale_factor(width, height, int(rng.choice(settings.scales)), max_side)
    if settings.flip and rng.random() < 0.5:
        image, windows, objects = image[:, ::-1], geometry.mirror(windows, width), geometry.mirror(objects, width)
    targets = geometry.encode(windows[: len(objects)], objects)
    return Picture(backbone.pixels(image, factor), factor, (width, height), windows, labels, targets)


def _statistics(
    corpus: Corpus, backbone: Backbone, features: PyramidFeatures, settings: EndToEnd, seed: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """Mean and deviation of the targets (section 2.3), and what brings pooled features to a mean square of 1."""
    pictures = [p for step in _steps(corpus, settings, backbone, features.max_side, 0, _SAMPLE, seed) for p in step]
    targets = np.concatenate([picture.targets for picture in pictures])
    with torch.inference_mode():
        squares = [_pool(backbone.trunk, backbone, features, picture).square().mean() for picture in pictures]
    return targets.mean(axis=0), targets.std(axis=0) + 1e-6, float(torch.stack(squares).mean().rsqrt())
