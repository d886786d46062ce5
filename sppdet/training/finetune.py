"""Fine-tuning of the fc layers on pooled windows, with fixed conv layers (He et al. 2014, section 4.2).

A quarter of the windows are foreground, the rest background, and they are classified into K + 1 classes. The classifier
fc8 is dropped afterwards, because the SVMs replace it.

Names: D features of the pooled vector, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import count, islice

import numpy as np
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from sppdet.config import FinetuneSettings
from sppdet.features import FeatureSplit, WindowFeatures
from sppdet.networks import Head, make_optimizer, step_decay, train_network, warm_cosine
from sppdet.training.training_windows import sample_windows
from sppdet.utils import Execution, SppdetError, in_threads, worker_count

_IMAGES_PER_DRAW = 256  # whose windows are shuffled together: 256 x 64 windows x 25,600 float16 are 0.8 GB
_MAX_REPEATS = 4  # a draw from a small split takes each image this many times on average
_MIN_BATCHES = 2  # a draw has images enough for this many batches: some images have few windows
_REPORT_EVERY = 100  # steps
_FC8_DEVIATION = 0.01  # standard deviation of the initial weights of fc8, as Fast R-CNN's (section 3.1)

Batch = tuple[torch.Tensor, torch.Tensor]


def train(
    split: FeatureSplit,
    features: WindowFeatures,
    settings: FinetuneSettings,
    scale: float,
    bfloat16: bool,
    execution: Execution,
    start: Head | None = None,
) -> tuple[Head, float | None]:
    """Train fc6 and fc7.

    Args:
        split: the images, with their proposals and feature maps.
        features: how windows are pooled.
        settings: of the training.
        scale: factor that brings the pooled vectors to a mean norm of 1, so that one learning rate fits all backbones.
        bfloat16: whether products are computed in bfloat16; weights stay float32.
        execution: seed, workers and checkpoint.
        start: fc layers to start from, which ``scale`` does not change; None starts from random ones.

    Returns:
        The head, and the mean loss of the last tenth of the steps; the loss is None for ``finetune.steps=0``, which
        leaves the layers as they are.

    Raises:
        SppdetError: the images have too few windows for one batch, or the loss is not finite.
    """
    torch.manual_seed(execution.seed)
    # A norm of 1 over D features makes inputs far smaller than the unit variance that initialisations expect.
    unit_variance = scale * math.sqrt(features.pooled_dimension)
    head = start or Head(features.pooled_dimension, settings.units, "fc7", unit_variance, settings.dropout)
    if not settings.steps:
        return head.eval(), None
    fc8 = nn.Linear(settings.units, len(split.dataset.classes) + 1)
    nn.init.normal_(fc8.weight, std=_FC8_DEVIATION)
    nn.init.zeros_(fc8.bias)
    device = features.device or "cpu"
    network = nn.Sequential(head, fc8).to(device)
    optimizer = make_optimizer(network.parameters(), settings)
    share = {"cosine": warm_cosine, "step": step_decay}[settings.schedule]

    def learn(batch: Batch) -> dict[str, float]:
        vectors, labels = (each.to(device) for each in batch)
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bfloat16):
            logits = network(vectors).float()
        loss = nn.functional.cross_entropy(logits, labels)
        loss.backward()
        return {"loss": loss.item()}

    progress = train_network(
        network,
        optimizer,
        LambdaLR(optimizer, lambda step: share(step, settings.steps)),
        settings.steps,
        lambda first: _batches(split, features, settings, execution, first),
        learn,
        name="fine-tuning",
        rate_setting="finetune.learning_rate",
        report_every=_REPORT_EVERY,
        checkpoint=execution.checkpoint,
        curves=execution.curves,
    )
    return head.cpu(), progress.final("loss")


def _batches(
    split: FeatureSplit, features: WindowFeatures, settings: FinetuneSettings, execution: Execution, first: int
) -> Iterator[Batch]:
    """Yield the batches of step ``first`` and of those after it, draw by draw."""
    workers = worker_count(execution.workers)
    finished = first  # batches of the draw at hand
    for number in count():
        draw = _Draw(split, settings, execution.seed, number)
        if finished and finished >= (batches := draw.count_batches(workers)):
            finished -= batches
            continue
        if not finished:  # in the middle of a draw dropout goes on with the random state of the checkpoint
            torch.manual_seed(execution.seed + number)
        yield from islice(draw.batches(features, workers), finished, None)
        finished = 0


class _Draw:
    """Many images, drawn with repetition, whose windows are shuffled together.

    Args:
        split: the images.
        settings: sizes of the draw.
        seed: of the training.
        number: of the draw; with the seed it determines the windows.
    """

    def __init__(self, split: FeatureSplit, settings: FinetuneSettings, seed: int, number: int):
        self._split, self._settings = split, settings
        self._rng = np.random.default_rng([seed, number])
        least = -(-settings.batch_size // settings.windows_per_image)  # rounded up
        size = min(max(_IMAGES_PER_DRAW, _MIN_BATCHES * least), _MAX_REPEATS * max(len(split), least))
        self._images = self._rng.integers(0, len(split), size)
        self._seeds = self._rng.integers(0, 2**31, size)

    def windows(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Return boxes ``(n, 4)`` and labels ``(n,)`` of windows of the draw's image ``i``; background is label K."""
        rng = np.random.default_rng(int(self._seeds[i]))
        per_image, foreground = self._settings.windows_per_image, self._settings.foreground
        return sample_windows(self._split, int(self._images[i]), per_image, foreground, rng)[:2]

    def count_batches(self, workers: int) -> int:
        """Return the number of batches that `batches` yields, without reading feature maps."""
        counts = in_threads(lambda i: len(self.windows(i)[1]), range(len(self._images)), workers)
        return sum(counts) // self._settings.batch_size

    def batches(self, features: WindowFeatures, workers: int) -> Iterator[Batch]:
        """Yield pooled vectors ``(batch_size, D)`` and labels ``(batch_size,)``, shuffled; may be called once."""
        batch_size = self._settings.batch_size

        def sample(i: int) -> tuple[np.ndarray, np.ndarray]:
            boxes, labels = self.windows(i)
            if not len(boxes):
                return np.zeros((0, features.dimension), np.float16), labels
            image = int(self._images[i])
            size = self._split.size(image)
            return features.of_boxes(self._split.maps(image), boxes, size, np.float16), labels

        of_images = list(in_threads(sample, range(len(self._images)), workers))
        vectors, labels = (np.concatenate(arrays) for arrays in zip(*of_images))
        del of_images  # as large again
        if len(labels) < batch_size:
            raise SppdetError(
                f"finetune: only {len(labels)} windows in {len(self._images)} images overlap an object by 0.1 or more; "
                "lower finetune.batch_size or use features=pool5"
            )
        order = self._rng.permutation(len(labels))
        for start in range(0, len(order) - batch_size + 1, batch_size):
            rows = order[start : start + batch_size]
            yield torch.from_numpy(vectors[rows]).float(), torch.from_numpy(labels[rows])
