"""Training of the whole network: trunk, pyramid, fc6, fc7, softmax and boxes (Fast R-CNN, arXiv 1504.08083).

SPP-net trained its fc layers only, because a window's receptive field is most of an image and windows were drawn
from many images. Fast R-CNN draws many windows from few images, so that one pass through the trunk serves them all, and
sends gradients through the pooling. With one pyramid level this is Fast R-CNN, with several SPP-net trained end to end.
Where windows are crops, each crop passes through the trunk: without the box loss this is R-CNN's fine-tuning.

The softmax and the boxes learned here can be the detector's (``classifier: softmax``, ``bbox.kind: joint``); otherwise
SVMs and ridge regression are fitted afterwards to the features of the trained trunk and fc layers.

Names: B images per step, n windows, f of them foreground, K classes, D features of the pooled vector.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR

from sppdet.config import EndToEndSettings
from sppdet.features import CachedSplit, WindowFeatures
from sppdet.networks import (
    Backbone,
    Head,
    add_gradients,
    add_over_ranks,
    copy_from_first_rank,
    freeze,
    make_optimizer,
    rank,
    rank_count,
    train_network,
    warm_cosine,
)
from sppdet.ops import nms
from sppdet.training.end_to_end_network import EndToEndNetwork, trunk_maps
from sppdet.training.training_images import TrainingImage, images_with_objects, read_steps
from sppdet.training.training_windows import target_statistics
from sppdet.utils import Execution, SppdetError, in_threads

_REPORT_EVERY = 50  # steps
_SCALE_STEPS = 25  # steps whose images tell the size of the pooled features
# Of windows that overlap by more than this only the hardest learns (arXiv 1604.03540, section 4.2).
_HARD_OVERLAP = 0.7
_RANK_SEEDS = 1_000_003  # between the seeds of processes that train together


def train(
    split: CachedSplit,
    backbone: Backbone,
    features: WindowFeatures,
    settings: EndToEndSettings,
    execution: Execution,
    start: Head | None = None,
) -> tuple[EndToEndNetwork, float]:
    """Train trunk, fc layers, classifier and box regression together.

    Args:
        split: the images, with their proposals.
        backbone: its weights are those the trunk starts with; they stay as they are.
        features: how windows are pooled.
        settings: of the training.
        execution: seed and checkpoint.
        start: fc layers to start from, which learn at the trunk's rate; None starts from random ones.

    Returns:
        The trained network, and the mean classification loss of the last tenth of the steps.

    Raises:
        SppdetError: there is no object in the images, the loss is not finite, or there are more processes than images
            in a step.
    """
    seed = execution.seed
    if rank_count() > settings.images_per_step:
        raise SppdetError(
            f"end_to_end.images_per_step: {settings.images_per_step} cannot be divided among {rank_count()} processes "
            "of torchrun; give more, or start fewer processes"
        )
    torch.manual_seed(seed)
    useful = len(images_with_objects(split))
    if not useful:
        raise SppdetError("end_to_end: there is no object in the training images; check data.root and data.classes")
    steps = math.ceil(settings.epochs * useful / settings.images_per_step)
    head = start or Head(
        features.pooled_dimension, settings.units, "fc7",
        _feature_scale(split, backbone, features, settings, seed), settings.dropout,
    )  # fmt: skip
    network = EndToEndNetwork(copy.deepcopy(backbone.trunk), head, len(split.dataset.classes)).to(backbone.device)
    means, deviations = target_statistics(split, settings.flip)
    network.mean.copy_(torch.from_numpy(means))
    network.deviation.copy_(torch.from_numpy(deviations))
    copy_from_first_rank(network)
    freeze(network.trunk, settings.frozen_stride)
    pretrained = ("trunk.", "head.") if start else ("trunk.",)
    optimizer = make_optimizer(_parameter_groups(network, settings, pretrained), settings)

    def batches(first: int) -> Iterator[list[TrainingImage]]:
        share = (rank(), rank_count())
        for step, images in enumerate(
            read_steps(split, settings, backbone, features, seed, first, steps, share), first
        ):
            torch.manual_seed(seed + step + _RANK_SEEDS * rank())  # of dropout
            yield images

    progress = train_network(
        network,
        optimizer,
        LambdaLR(optimizer, lambda step: warm_cosine(step, steps)),
        steps,
        batches,
        lambda images: learn(network, backbone, features, images, settings),
        name="end to end",
        rate_setting="end_to_end.learning_rate",
        report_every=_REPORT_EVERY,
        checkpoint=execution.checkpoint,
        curves=execution.curves,
    )
    network.unwhiten()
    return network, progress.final("class_loss")


def learn(
    network: EndToEndNetwork,
    backbone: Backbone,
    features: WindowFeatures,
    images: Sequence[TrainingImage],
    settings: EndToEndSettings,
) -> dict[str, float]:
    """Add the gradients of one step to those of the network's parameters.

    On a CPU each image passes through the trunk, and its gradient back, in one thread beside those of the other images,
    because layers of small images are too little work for several threads. The gradients are added in the order of the
    images, whatever the number of cores. Where several processes train together, ``images`` are a share of the step's.

    Returns:
        ``class_loss`` and ``box_loss``, the terms of the multi-task loss (Fast R-CNN, section 2.3), each divided by the
        number of all windows.
    """
    workers = torch.get_num_threads() if backbone.device.type == "cpu" else 1
    maps = list(in_threads(lambda image: network.maps(backbone, image.pixels), images, workers))
    # Cut off from the trunk's graph: their gradients are collected first, then handed back image by image.
    leaves = [image_maps.detach().requires_grad_(image_maps.requires_grad) for image_maps in maps]
    class_loss, box_loss = _losses(network, backbone, features, images, leaves, settings)
    (class_loss + settings.box_weight * box_loss).backward()

    parameters = [parameter for parameter in network.trunk.parameters() if parameter.requires_grad]
    backward = [(image_maps, leaf.grad) for image_maps, leaf in zip(maps, leaves) if leaf.grad is not None]
    of_images = in_threads(lambda pair: torch.autograd.grad(pair[0], parameters, pair[1]), backward, workers)
    for gradients in of_images:
        for parameter, gradient in zip(parameters, gradients):
            parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
    add_gradients(network)
    return dict(zip(("class_loss", "box_loss"), add_over_ranks(class_loss.item(), box_loss.item())))


def _losses(
    network: EndToEndNetwork,
    backbone: Backbone,
    features: WindowFeatures,
    images: Sequence[TrainingImage],
    maps: list[torch.Tensor],
    settings: EndToEndSettings,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return both terms of the loss as functions of the maps ``(1, C, H, W)`` of each image."""

    def of_windows(images: Sequence[TrainingImage]) -> tuple[torch.Tensor, torch.Tensor]:
        pooled = torch.cat([_pool(features, image_maps, image) for image_maps, image in zip(maps, images)])
        with torch.autocast(backbone.device.type, torch.bfloat16, enabled=backbone.half):
            return _window_losses(network, pooled, images, settings.focal)

    if settings.hard_of:
        with torch.no_grad():
            classification, regression = of_windows(images)
            hardness = classification + settings.box_weight * regression
        of_images = hardness.split([len(image.labels) for image in images])
        chosen = [_hardest(image, losses, settings.windows_per_image) for image, losses in zip(images, of_images)]
        images = [image.only(rows) for image, rows in zip(images, chosen)]
    classification, regression = of_windows(images)
    count = max(1, *add_over_ranks(len(classification)))
    return classification.sum() / count, regression.sum() / count


def _window_losses(
    network: EndToEndNetwork, pooled: torch.Tensor, images: Sequence[TrainingImage], focal: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the classification and the box loss of every window, both ``(n,)``; the box loss of background is 0."""
    logits, shifts = network(pooled)
    labels = torch.from_numpy(np.concatenate([image.labels for image in images])).to(logits.device)
    classification = functional.cross_entropy(logits, labels, reduction="none")
    if focal:  # arXiv 1708.02002, equation 4, with the probability of the softmax
        classification = (1 - torch.exp(-classification)) ** focal * classification
    foreground = torch.nonzero(labels < shifts.shape[1])[:, 0]
    classes = labels[foreground]
    targets = network.whitened(np.concatenate([image.targets for image in images]), classes)
    regression = functional.smooth_l1_loss(shifts[foreground, classes], targets, reduction="none").sum(dim=1)
    return classification, torch.zeros_like(classification).index_put((foreground,), regression)


def _hardest(image: TrainingImage, losses: torch.Tensor, count: int) -> np.ndarray:
    """Return the rows of the ``count`` windows of highest loss, ascending, without near duplicates of harder ones."""
    return np.sort(nms(image.windows, losses.cpu().numpy(), _HARD_OVERLAP)[:count])


def _pool(features: WindowFeatures, maps: torch.Tensor, image: TrainingImage) -> torch.Tensor:
    """Return the pooled vectors ``(n, D)`` of an image's windows."""
    return features.pool(maps, image.windows, image.size, image.factor)


def _parameter_groups(
    network: EndToEndNetwork, settings: EndToEndSettings, pretrained: tuple[str, ...]
) -> list[dict[str, Any]]:
    """Return the parameters that learn: those of names that begin with ``pretrained`` at the trunk's rate, the rest."""
    parameters = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    slow = [parameter for name, parameter in parameters.items() if name.startswith(pretrained)]
    fast = [parameter for name, parameter in parameters.items() if not name.startswith(pretrained)]
    return [{"params": slow, "lr": settings.learning_rate * settings.trunk_rate}, {"params": fast}]


def _feature_scale(
    split: CachedSplit, backbone: Backbone, features: WindowFeatures, settings: EndToEndSettings, seed: int
) -> float:
    """Return the factor that scales pooled features to a mean square of 1, measured in the first steps."""
    squares = []
    with torch.inference_mode():
        for images in read_steps(split, settings, backbone, features, seed, 0, _SCALE_STEPS):
            for image in images:
                maps = trunk_maps(backbone.trunk, backbone, image.pixels)
                squares.append(_pool(features, maps, image).square().mean())
    return float(torch.stack(squares).mean().rsqrt())
