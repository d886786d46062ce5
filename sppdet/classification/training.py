"""Training of an SPP-net classifier at several sizes (He et al. 2014, section 3.1.2), and the views it learns from.

The pyramid's output does not depend on the size of an image, so one set of weights is trained at several sizes, each
epoch at one of them, in turn.

Names: B images of a batch, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

from sppdet.classification.classifier import SPPClassifier, resized
from sppdet.config import ClassifierConfig, PretrainSettings
from sppdet.data import LabelledImages, read_image
from sppdet.networks import Backbone, Normalisation, normalisation_of, train_network
from sppdet.utils import Checkpoint, Curves, in_threads, worker_count

_MAX_READERS = 8  # threads that read images; each holds two batches
_MIN_SQUARE = 1e-12  # mean square of the pyramid's vectors below which they count as 0 everywhere

# Pixels (B, 3, size, size) and labels (B,).
Batch = tuple[torch.Tensor, torch.Tensor]

# Called with an epoch, a size and a number n, returns the batches of the epoch at that size without the first n.
EpochBatches = Callable[[int, int, int], Iterator[Batch]]


def train_classifier(
    network: SPPClassifier,
    backbone: Backbone,
    batches: EpochBatches,
    per_epoch: int,
    settings: PretrainSettings | ClassifierConfig,
    *,
    name: str = "training",
    section: str = "",
    trunk_rate: float = 1.0,
    checkpoint: Checkpoint | None = None,
    curves: Curves | None = None,
    measure: Callable[[], dict[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """Train a classifier, each epoch at the next of ``settings.sizes``.

    Args:
        network: the classifier; its trunk is the backbone's. It is left in evaluation mode.
        backbone: says device and precision.
        batches: the batches of an epoch; they depend on nothing but its arguments.
        per_epoch: number of batches in an epoch.
        settings: sizes, epochs, learning rate and weight decay.
        name: of the training, beside the progress bar.
        section: prefix of the settings' keys in messages, such as ``pretrain.``.
        trunk_rate: the trunk's learning rate as a share of the other layers'.
        checkpoint: the file to resume from and to write once a minute; None writes none.
        curves: where the records are written, too.
        measure: called after each epoch, returns further entries of its record.

    Returns:
        The record of each epoch, as it is logged: ``epoch`` (from 1), ``size``, ``loss``, ``accuracy`` of the training
        views and the entries of ``measure``.

    Raises:
        SppdetError: the loss is not finite.
    """
    optimizer = _optimizer(network, settings, trunk_rate)
    steps = settings.epochs * per_epoch
    schedule = OneCycleLR(optimizer, [group["lr"] for group in optimizer.param_groups], total_steps=steps)

    def size_of(epoch: int) -> int:
        return settings.sizes[epoch % len(settings.sizes)]

    def from_step(first: int) -> Iterator[Batch]:
        begun, finished = divmod(first, per_epoch)
        for epoch in range(begun, settings.epochs):
            yield from batches(epoch, size_of(epoch), finished if epoch == begun else 0)

    def record(step: int, values: dict[str, list[float]]) -> dict[str, Any]:
        epoch = step // per_epoch
        loss, accuracy = sum(values["loss"]) / per_epoch, sum(values["correct"]) / (per_epoch * settings.batch_size)
        means = {"epoch": epoch, "size": size_of(epoch - 1), "loss": round(loss, 4), "accuracy": round(accuracy, 3)}
        network.eval()
        return means | (measure() if measure else {})

    progress = train_network(
        network,
        optimizer,
        schedule,
        steps,
        from_step,
        lambda batch: _learn(network, backbone, *batch),
        name=name,
        rate_setting=f"{section}learning_rate",
        report_every=per_epoch,
        report=record,
        checkpoint=checkpoint,
        curves=curves,
    )
    return progress.reports


def _learn(network: SPPClassifier, backbone: Backbone, pixels: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Compute the gradients of a batch; return its loss and the number of images that were classified correctly."""
    pixels, labels = pixels.to(backbone.device, memory_format=torch.channels_last), labels.to(backbone.device)
    with torch.autocast(backbone.device.type, torch.bfloat16, enabled=backbone.half_in_training):
        logits = network(pixels).float()
    loss = nn.functional.cross_entropy(logits, labels)
    loss.backward()
    return {"loss": loss.item(), "correct": int((logits.argmax(1) == labels).sum())}


def _optimizer(
    network: SPPClassifier, settings: PretrainSettings | ClassifierConfig, trunk_rate: float
) -> torch.optim.Optimizer:
    """Return AdamW on the parameters that learn; the trunk's form a group with its learning rate."""
    learning = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    trunk = [parameter for name, parameter in learning.items() if name.startswith("trunk.")]
    others = [parameter for name, parameter in learning.items() if not name.startswith("trunk.")]
    rate = settings.learning_rate
    groups = [{"params": others, "lr": rate}] + ([{"params": trunk, "lr": rate * trunk_rate}] if trunk else [])
    return torch.optim.AdamW(groups, rate, weight_decay=settings.weight_decay)


def set_scale(network: SPPClassifier, backbone: Backbone, pixels: torch.Tensor) -> None:
    """Set the buffer ``scale`` so that the pyramid's vectors have a mean square of 1 on ``pixels`` ``(B, 3, H, W)``."""
    network.train()  # as training will see batch norm
    with torch.no_grad(), torch.autocast(backbone.device.type, torch.bfloat16, enabled=backbone.half):
        pixels = pixels.to(backbone.device, memory_format=torch.channels_last)
        pooled = network.pool(network.trunk(pixels)).float()
        network.scale.copy_(pooled.square().mean().clamp_min(_MIN_SQUARE).rsqrt())


def folder_batches(images: LabelledImages, settings: ClassifierConfig) -> EpochBatches:
    """Return the batches of images in folders: shuffled, read ahead, without the incomplete last batch of an epoch.

    The random draws for an image depend on the seed, the epoch and the image alone, so that an epoch can start at any
    batch.
    """
    batch_size, seed = settings.batch_size, settings.run.seed
    normalisation = normalisation_of(settings.backbone.name)
    readers = min(worker_count(settings.workers), _MAX_READERS)

    def batches(epoch: int, size: int, first: int) -> Iterator[Batch]:
        order = np.random.default_rng([seed, epoch]).permutation(len(images))

        def view(i: int) -> np.ndarray:
            rng = np.random.default_rng([seed, epoch, i])
            return random_view(read_image(images.paths[i]), settings, size, rng)

        def batch(number: int) -> Batch:
            rows = order[number * batch_size : (number + 1) * batch_size]
            return to_pixels(np.stack([view(int(i)) for i in rows]), normalisation), torch.from_numpy(
                images.labels[rows]
            )

        return in_threads(batch, range(first, len(images) // batch_size), readers)

    return batches


def random_view(image: np.ndarray, settings: ClassifierConfig, size: int, rng: np.random.Generator) -> np.ndarray:
    """Cut a random square from an image.

    The square has ``crop`` pixels a side in the image at its ``shorter_side``, so that a view shows the same at every
    size (section 3.1.2). It is mirrored with a probability of 1/2 where ``settings.flip`` allows.

    Args:
        image: RGB ``(H, W, 3)``.
        settings: ``crop``, ``shorter_side`` and ``flip``.
        size: pixels a side of the view.
        rng: source of the draws.

    Returns:
        The view ``(size, size, 3)``.
    """
    image, crop = resized(image, settings.shorter_side), settings.crop
    top, left = (int(rng.integers(length - crop + 1)) for length in image.shape[:2])
    view = image[top : top + crop, left : left + crop]
    if size != crop:
        view = cv2.resize(view, (size, size), interpolation=cv2.INTER_AREA)
    return view[:, ::-1] if settings.flip and rng.random() < 0.5 else view


def to_pixels(images: np.ndarray, normalisation: Normalisation) -> torch.Tensor:
    """Return RGB uint8 images ``(B, H, W, 3)`` as the trunk reads them: normalised float32 ``(B, 3, H, W)``."""
    return torch.from_numpy(normalisation.normalise(images)).permute(0, 3, 1, 2)
