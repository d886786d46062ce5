"""Fine-tuning of the fc layers on pooled windows, conv layers fixed (He et al. 2014, section 4.2).

Windows are drawn 25% with IoU >= 0.5 to an object, the rest from [0.1, 0.5), and classified into K + 1 classes;
fc8 is thrown away afterwards, because the SVMs replace it.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from sppdet.config import EndToEndSettings, FinetuneSettings
from sppdet.features import CachedSplit, WindowFeatures
from sppdet.networks import Head
from sppdet.ops import boxes as geometry
from sppdet.utils import SppdetError, checkpoints, in_threads, worker_count

_PICTURES_AT_ONCE = 256  # whose windows are shuffled together: 256 x 64 windows x 25,600 float16 are 0.8 GB
_REPORT = 100  # steps
_SAVE = 60  # seconds between checkpoints


def train(
    split: CachedSplit,
    features: WindowFeatures,
    settings: FinetuneSettings,
    scale: float,
    half: bool,
    checkpoint: Path,
    key: str,
    seed: int,
    workers: int,
    log: Callable[[str], None],
    start: Head | None = None,
) -> tuple[Head, float | None]:
    """Train a head; returns it and the mean loss of the last tenth of the steps (None if there are none).

    It begins as ``start``, or with random weights; then ``scale``, which brings the pooled vectors to a mean norm of
    1, lets one learning rate fit every backbone. With ``half`` products are of bfloat16, weights of float32.

    ``checkpoint`` is written now and then, and gone on from if it was left by an interrupted training of the same
    ``key``: the weights come out the same, because all that is random is drawn anew for each draw of images.
    """
    torch.manual_seed(seed)
    # A norm of 1 over D features makes inputs far smaller than the unit variance that initialisations expect.
    unit = scale * math.sqrt(features.pooled_dimension)
    head = start or Head(features.pooled_dimension, settings.units, "fc7", unit, settings.dropout)
    if not settings.steps:  # the given layers as they are
        return head.eval(), None
    fc8 = nn.Linear(settings.units, len(split.dataset.classes) + 1)
    nn.init.normal_(fc8.weight, std=0.01)
    nn.init.zeros_(fc8.bias)
    network = nn.Sequential(head, fc8).train()
    optimizer = make_optimizer(network.parameters(), settings)
    share = {"cosine": warm_cosine, "step": step_decay}[settings.schedule]
    left = checkpoints.restore(checkpoint, key, network, optimizer)
    losses, draws = (left[0]["losses"].tolist(), int(left[0]["draws"])) if left else ([], 0)
    saved = time.monotonic()
    with tqdm(total=settings.steps, initial=len(losses), desc="fine-tuning", mininterval=1, unit="") as progress:
        while len(losses) < settings.steps:
            torch.manual_seed(seed + draws)  # dropout
            for x, labels in _batches(split, features, settings, [seed, draws], workers):
                if len(losses) == settings.steps:
                    break
                optimizer.param_groups[0]["lr"] = settings.learning_rate * share(len(losses), settings.steps)
                losses.append(_learn(network, optimizer, x, labels, half))
                progress.update()
                if len(losses) % _REPORT == 0:
                    log(json.dumps({"step": len(losses), "loss": round(float(np.mean(losses[-_REPORT:])), 4)}))
            draws += 1
            if time.monotonic() - saved > _SAVE and len(losses) < settings.steps:
                more = {"losses": torch.tensor(losses, dtype=torch.float64), "draws": torch.tensor(draws)}
                checkpoints.save(checkpoint, key, network, optimizer, more)
                saved = time.monotonic()
    tail = losses[-max(1, len(losses) // 10) :]
    return head.eval(), float(np.mean(tail))


def _learn(
    network: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, labels: torch.Tensor, half: bool
) -> float:
    """Learn from a batch; its loss before that."""
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        logits = network(x).float()
    loss = nn.functional.cross_entropy(logits, labels)
    if not torch.isfinite(loss):
        raise SppdetError("finetune: the loss is not finite; lower finetune.learning_rate")
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def warm_cosine(step: int, steps: int) -> float:
    """The share of the learning rate: up in the first twentieth, then down along a cosine."""
    return min(20 * (step + 1) / steps, (1 + math.cos(math.pi * step / steps)) / 2)


def step_decay(step: int, steps: int) -> float:
    """The paper's: a tenth of the rate in the last sixth (250k mini-batches at 1e-4, then 50k at 1e-5)."""
    return 1.0 if 6 * step < 5 * steps else 0.1


def make_optimizer(parameters, settings: FinetuneSettings | EndToEndSettings) -> torch.optim.Optimizer:
    """What ``settings`` name, for parameters or for groups of them; a group's own rate goes before the settings'."""
    if settings.optimizer == "sgd":
        return torch.optim.SGD(parameters, settings.learning_rate, momentum=0.9, weight_decay=settings.weight_decay)
    # Fused: one pass over the memory that the update is bound by, a tenth of the time.
    return torch.optim.AdamW(parameters, settings.learning_rate, weight_decay=settings.weight_decay, fused=True)


def _batches(
    split: CachedSplit, features: WindowFeatures, settings: FinetuneSettings, seed: list[int], workers: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Vectors ``(batch_size, D)`` and labels of windows from many images, shuffled; background is label K."""
    rng = np.random.default_rng(seed)
    least = -(-settings.batch_size // settings.windows_per_image)
    count = min(max(_PICTURES_AT_ONCE, 2 * least), 4 * max(len(split), least))
    images = rng.integers(0, len(split), count)
    jobs = [(int(i), int(own)) for i, own in zip(images, rng.integers(0, 2**31, count))]

    def sample(job: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        i, own = job
        rng = np.random.default_rng(own)
        boxes, labels, _ = sample_windows(split, i, settings.windows_per_image, settings.foreground, rng)
        if not len(boxes):
            return np.zeros((0, features.dimension), np.float16), labels
        return features.of_boxes(split.maps(i), boxes, split.size(i), np.float16), labels

    parts = list(in_threads(sample, jobs, worker_count(workers)))
    vectors, labels = (np.concatenate(part) for part in zip(*parts))
    del parts  # they are as large again
    if len(labels) < settings.batch_size:
        raise SppdetError(
            f"finetune: only {len(labels)} windows in {count} images overlap an object by 0.1 or more; "
            "lower finetune.batch_size or use features=pool5"
        )
    order = rng.permutation(len(labels))
    for first in range(0, len(order) - settings.batch_size + 1, settings.batch_size):
        batch = order[first : first + settings.batch_size]
        yield torch.from_numpy(vectors[batch]).float(), torch.from_numpy(labels[batch])


def sample_windows(
    split: CachedSplit, i: int, count: int, foreground_share: float, rng: np.random.Generator, lowest: float = 0.1
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Windows ``(n, 4)`` of image ``i``, their labels ``(n,)``, background = K, and the objects they are nearest.

    At most ``count``, at most the foreground share of them (or one) with IoU >= 0.5 (objects included), the rest from
    [lowest, 0.5). Fewer where an image has fewer, as in Fast R-CNN's minibatch.py: no resampling. Foreground comes
    first, and only for it are there nearest objects, ``(f, 4)``.
    """
    sample = split.dataset[i]
    boxes = np.concatenate([sample.boxes, split.proposals(i)])
    overlap = geometry.iou(boxes, sample.boxes)
    best = overlap.max(axis=1, initial=0)
    most = max(1, round(count * foreground_share))
    foreground = rng.permutation(np.flatnonzero(best >= 0.5))[:most]
    rest = np.flatnonzero((best >= lowest) & (best < 0.5))
    background = rng.permutation(rest)[: count - len(foreground)]
    nearest = overlap[foreground].argmax(axis=1) if len(foreground) else np.zeros(0, np.int64)
    labels = np.concatenate([sample.labels[nearest], np.full(len(background), len(split.dataset.classes))])
    return boxes[np.concatenate([foreground, background])], labels.astype(np.int64), sample.boxes[nearest]
