"""Training an SPP-net classifier at several sizes (He et al. 2014, section 3.1.2), and the images it is shown.

The pyramid's output does not depend on the image's size, so one set of weights is trained at several: each epoch
at one of them, in turn.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from sppdet.classification.classifier import SPPClassifier, resized
from sppdet.config import ClassifierConfig, PretrainSettings
from sppdet.data import LabelledImages, read_image
from sppdet.networks import MEAN, STD, Backbone
from sppdet.utils import SppdetError, checkpoints, in_threads, worker_count

_SAVE = 60  # seconds between two checkpoints
_READERS = 8  # at most this many threads read images: each keeps two batches

# (epoch, size, first) -> the batches of an epoch from number ``first`` on: pixels (B, 3, size, size), labels (B,)
Batches = Callable[[int, int, int], Iterator[tuple[torch.Tensor, torch.Tensor]]]


@dataclass(frozen=True)
class Checkpoint:
    """Where an interrupted training is gone on from, if ``key`` says that it is the same training."""

    path: Path
    key: str


def train_network(
    network: SPPClassifier,
    backbone: Backbone,
    batches: Batches,
    per_epoch: int,
    settings: PretrainSettings | ClassifierConfig,
    log: Callable[[str], None],
    section: str = "",
    trunk_rate: float = 1.0,
    checkpoint: Checkpoint | None = None,
    measured: Callable[[], dict] | None = None,
) -> list[dict]:
    """Train ``network``, whose trunk is ``backbone``'s; a record of every epoch, which is logged as well.

    With a checkpoint, an interrupted training ends with the same weights as one that was not.

    Args:
        per_epoch: batches of an epoch.
        section: what stands before ``settings``' keys in messages.
        trunk_rate: the trunk's learning rate as a share of the other layers'.
        measured: gives more entries of an epoch's record.
    """
    optimizer = _optimizer(network, settings, trunk_rate)
    rates = [group["lr"] for group in optimizer.param_groups]
    steps = settings.epochs * per_epoch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=steps)
    progress = _Progress(network, optimizer, schedule, backbone.device)
    if checkpoint:
        progress.resume(checkpoint)
    saved = time.monotonic()
    bar = tqdm(total=steps, initial=progress.steps, desc=section.rstrip(".") or "training", mininterval=0.5, unit="")
    with bar:
        for epoch in range(len(progress.history), settings.epochs):
            size = settings.sizes[epoch % len(settings.sizes)]
            network.train()
            for x, labels in batches(epoch, size, progress.steps - epoch * per_epoch):
                loss, right = _step(network, backbone, optimizer, x, labels)
                if not math.isfinite(loss):
                    raise SppdetError(f"the loss is not finite; lower {section}learning_rate")
                schedule.step()
                progress.add(loss, right, len(labels))
                bar.update()
                if checkpoint and time.monotonic() - saved > _SAVE:
                    progress.save(checkpoint)
                    saved = time.monotonic()
            network.eval()
            log(json.dumps(progress.close_epoch(epoch, size, measured() if measured else {})))
    return progress.history


def _step(
    network: SPPClassifier, backbone: Backbone, optimizer: torch.optim.Optimizer, x: torch.Tensor, labels: torch.Tensor
) -> tuple[float, int]:
    """Learn from a batch; its loss before that, and how many of its images were right."""
    x, labels = x.to(backbone.device, memory_format=torch.channels_last), labels.to(backbone.device)
    with torch.autocast(backbone.device.type, torch.bfloat16, enabled=backbone.half):
        logits = network(x).float()
    loss = nn.functional.cross_entropy(logits, labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item(), int((logits.argmax(1) == labels).sum())


class _Progress:
    """How far a training is: all that a checkpoint holds."""

    def __init__(self, network: nn.Module, optimizer, schedule, device: torch.device):
        self.network, self.optimizer, self.schedule, self.device = network, optimizer, schedule, device
        self.steps = 0
        self.history: list[dict] = []
        self._epoch = np.zeros(4)  # so far: batches, the sum of their losses, images, those that were right

    def add(self, loss: float, right: int, seen: int) -> None:
        self.steps += 1
        self._epoch += [1, loss, seen, right]

    def close_epoch(self, epoch: int, size: int, more: dict) -> dict:
        """The record of an epoch that has ended."""
        count, loss, seen, right = self._epoch
        record = {"epoch": epoch + 1, "size": size, "loss": round(loss / count, 4), "accuracy": round(right / seen, 3)}
        self.history.append(record | more)
        self._epoch[:] = 0
        return self.history[-1]

    def save(self, checkpoint: Checkpoint) -> None:
        more = {"epoch": torch.from_numpy(self._epoch), "random": torch.get_rng_state()}
        if self.device.type == "cuda":
            more["cuda_random"] = torch.cuda.get_rng_state(self.device)
        notes = {
            "steps": self.steps,
            "history": self.history,
            "schedule": self.schedule.state_dict(),
            "rates": [{"lr": group["lr"], "betas": group["betas"]} for group in self.optimizer.param_groups],
        }
        texts = {name: json.dumps(value) for name, value in notes.items()}
        checkpoints.save(checkpoint.path, checkpoint.key, self.network, self.optimizer, more, texts)

    def resume(self, checkpoint: Checkpoint) -> None:
        """Go on from the checkpoint, if it is there and of the same training."""
        left = checkpoints.restore(checkpoint.path, checkpoint.key, self.network, self.optimizer)
        if left is None:
            return
        tensors, notes = left[0], {name: json.loads(text) for name, text in left[1].items()}
        self.steps, self.history, self._epoch = notes["steps"], notes["history"], tensors["epoch"].numpy().copy()
        self.schedule.load_state_dict(notes["schedule"])
        for group, rates in zip(self.optimizer.param_groups, notes["rates"]):
            group.update(rates)
        torch.set_rng_state(tensors["random"])
        if self.device.type == "cuda" and "cuda_random" in tensors:
            torch.cuda.set_rng_state(tensors["cuda_random"], self.device)


def _optimizer(
    network: SPPClassifier, settings: PretrainSettings | ClassifierConfig, trunk_rate: float
) -> torch.optim.Optimizer:
    """AdamW on the parameters that learn, the trunk's at a rate of their own."""
    trunk = [parameter for parameter in network.trunk.parameters() if parameter.requires_grad]
    own = {id(parameter) for parameter in trunk}
    rest = [parameter for parameter in network.parameters() if parameter.requires_grad and id(parameter) not in own]
    rate = settings.learning_rate
    groups = [{"params": rest, "lr": rate}] + ([{"params": trunk, "lr": rate * trunk_rate}] if trunk else [])
    return torch.optim.AdamW(groups, rate, weight_decay=settings.weight_decay)


def set_scale(network: SPPClassifier, backbone: Backbone, x: torch.Tensor) -> None:
    """Set what brings the pyramid's vectors to a mean square of 1, on images ``x`` ``(B, 3, H, W)``."""
    network.train()  # batch norm as it will be
    with torch.no_grad(), torch.autocast(backbone.device.type, torch.bfloat16, enabled=backbone.half):
        x = x.to(backbone.device, memory_format=torch.channels_last)
        pooled = network.pool(network.trunk(x)).float()
        network.scale.copy_(pooled.square().mean().clamp_min(1e-12).rsqrt())


def folder_batches(images: LabelledImages, settings: ClassifierConfig) -> Batches:
    """The batches of images in folders, shuffled, read ahead; the incomplete last one of an epoch is left out.

    Each image of each epoch has a generator of its own, so that an epoch can be begun anywhere.
    """
    count, seed = settings.batch_size, settings.run.seed

    def batches(epoch: int, size: int, first: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        order = np.random.default_rng([seed, epoch]).permutation(len(images))

        def one(i: int) -> np.ndarray:
            rng = np.random.default_rng([seed, epoch, i])
            return random_view(read_image(images.paths[i]), settings, size, rng)

        def batch(number: int) -> tuple[torch.Tensor, torch.Tensor]:
            rows = order[number * count : (number + 1) * count]
            return to_pixels(np.stack([one(int(i)) for i in rows])), torch.from_numpy(images.labels[rows])

        return in_threads(batch, range(first, len(images) // count), min(worker_count(settings.workers), _READERS))

    return batches


def random_view(image: np.ndarray, settings: ClassifierConfig, size: int, rng: np.random.Generator) -> np.ndarray:
    """A random part of the image at its ``shorter_side``, ``crop`` pixels a side, brought to ``size`` x ``size``.

    So a view shows the same at every size (section 3.1.2); mirrored every other time.
    """
    image, crop = resized(image, settings.shorter_side), settings.crop
    top, left = (int(rng.integers(length - crop + 1)) for length in image.shape[:2])
    view = image[top : top + crop, left : left + crop]
    if size != crop:
        view = cv2.resize(view, (size, size), interpolation=cv2.INTER_AREA)
    return view[:, ::-1] if settings.flip and rng.random() < 0.5 else view


def to_pixels(images: np.ndarray) -> torch.Tensor:
    """RGB uint8 images ``(B, H, W, 3)`` as the trunk sees them: float32 ``(B, 3, H, W)``."""
    return torch.from_numpy((images * (1 / 255 / STD) - MEAN / STD).astype(np.float32)).permute(0, 3, 1, 2)
