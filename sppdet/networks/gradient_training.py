"""Training by gradient: one loop for all networks, with its learning rates, its log and its checkpoint.

The caller knows what a batch is and computes the gradients of its loss. `train_network` does the rest: optimizer
steps, learning rates, a progress bar, log lines, and checkpoints from which an interrupted training resumes.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from sppdet.config import EndToEndSettings, FinetuneSettings
from sppdet.networks.ranks import rank
from sppdet.utils import Checkpoint, Curves, SppdetError, bar, checkpoints, entries_under, errors_naming

logger = logging.getLogger(__name__)

Batch = TypeVar("Batch")

# Seconds between two checkpoints, and how much longer where writing one takes a second, such as VGG16's fc layers (1.4
# GB): a twentieth of the time at most is spent on writing.
_CHECKPOINT_SECONDS, _LONGER = 5.0, 4
_TAIL = 10  # the loss of a training is the mean over its last tenth of the steps
_MOMENTUM = 0.9  # of SGD, as in both papers' programs


@dataclass
class Progress:
    """What a training has done so far.

    Attributes:
        losses: the values of every step, by name.
        reports: the records that were logged.
    """

    losses: dict[str, list[float]] = field(default_factory=dict)
    reports: list[dict[str, Any]] = field(default_factory=list)

    @property
    def step(self) -> int:
        """The number of finished steps."""
        return max(map(len, self.losses.values()), default=0)

    def add(self, losses: dict[str, float]) -> None:
        """Append the values of one step."""
        for name, value in losses.items():
            self.losses.setdefault(name, []).append(value)

    def last(self, steps: int) -> dict[str, list[float]]:
        """Return the values of the last ``steps`` steps, by name."""
        return {name: values[-steps:] for name, values in self.losses.items()}

    def final(self, name: str) -> float:
        """Return the mean of one value over the last tenth of the steps."""
        return float(np.mean(self.losses[name][-max(1, self.step // _TAIL) :]))


def mean_losses(step: int, losses: dict[str, list[float]]) -> dict[str, Any]:
    """Return a log record: the number of finished steps and the means of the values since the last record."""
    return {"step": step, **{name: round(float(np.mean(values)), 4) for name, values in losses.items()}}


def as_text(record: dict[str, Any]) -> str:
    """Return a record as a line for people.

    Examples:
        >>> as_text({"epoch": 3, "loss": 0.25})
        'epoch 3, loss 0.25'
    """
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in record.items())


def train_network(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: LRScheduler,
    steps: int,
    batches: Callable[[int], Iterable[Batch]],
    learn: Callable[[Batch], dict[str, float]],
    *,
    name: str,
    rate_setting: str,
    report_every: int,
    report: Callable[[int, dict[str, list[float]]], dict[str, Any]] = mean_losses,
    checkpoint: Checkpoint | None = None,
    curves: Curves | None = None,
) -> Progress:
    """Train ``network`` for ``steps`` steps; it is left in evaluation mode.

    An interrupted training that resumes from its checkpoint ends with exactly the weights of an uninterrupted one,
    if ``batches`` does not depend on how a step was reached. The state of torch's random generator, from which dropout
    draws, is part of the checkpoint.

    Args:
        network: the module to train.
        optimizer: steps after every batch.
        schedule: sets the optimizer's learning rates; steps after every batch.
        steps: number of batches to train on.
        batches: given the number n of finished steps, returns the batches of step n and of those after it.
        learn: computes the gradients of a batch and returns its losses and other numbers, by name.
        name: of the training, beside the progress bar.
        rate_setting: the setting to lower where the loss is not finite, such as ``finetune.learning_rate``.
        report_every: steps between two records in the log, each one line.
        report: returns the record, from the number of finished steps and the values since the last record.
        checkpoint: the file to resume from, and to write every few seconds where this is the only process or the first
            one; None writes none.
        curves: where the first process writes the records, too.

    Raises:
        SppdetError: a number that ``learn`` returned is not finite.
    """
    progress = Progress()
    if checkpoint:
        _resume(checkpoint, network, optimizer, schedule, progress)
    saved, interval = time.monotonic(), _CHECKPOINT_SECONDS
    with bar(steps, name, progress.step) as count:
        for batch in islice(batches(progress.step), steps - progress.step):
            network.train()
            optimizer.zero_grad()
            losses = learn(batch)
            if not all(map(math.isfinite, losses.values())):
                raise SppdetError(f"the loss is not finite; lower {rate_setting}")
            optimizer.step()
            schedule.step()
            progress.add(losses)
            count()
            if progress.step % report_every == 0:
                progress.reports.append(report(progress.step, progress.last(report_every)))
                logger.info("%s: %s", name, as_text(progress.reports[-1]))
                if curves and rank() == 0:
                    curves.write(name, progress.reports)
            if checkpoint and rank() == 0 and progress.step < steps and time.monotonic() - saved > interval:
                begun = time.monotonic()
                _save(checkpoint, network, optimizer, schedule, progress)
                saved = time.monotonic()
                interval = _CHECKPOINT_SECONDS * max(1, _LONGER * (saved - begun))
    network.eval()
    return progress


def _save(
    checkpoint: Checkpoint,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: LRScheduler,
    progress: Progress,
) -> None:
    """Write all that `_resume` needs."""
    tensors = {f"losses.{name}": torch.tensor(values, dtype=torch.float64) for name, values in progress.losses.items()}
    tensors["random"] = torch.get_rng_state()
    device = next(network.parameters()).device
    if device.type == "cuda":
        tensors["cuda_random"] = torch.cuda.get_rng_state(device)
    notes = {"schedule": schedule.state_dict(), "reports": progress.reports}
    checkpoints.save(checkpoint, network, optimizer, tensors, notes)


def _resume(
    checkpoint: Checkpoint,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: LRScheduler,
    progress: Progress,
) -> None:
    """Restore the state that `_save` wrote, if there is a file of this training."""
    saved = checkpoints.restore(checkpoint, network, optimizer)
    if saved is None:
        return
    tensors, notes = saved
    with errors_naming(checkpoint.path, "delete it, and training starts from the beginning"):
        schedule.load_state_dict(notes["schedule"])
        progress.losses = {name: values.tolist() for name, values in entries_under(tensors, "losses.").items()}
        progress.reports = notes["reports"]
        torch.set_rng_state(tensors["random"])
        device = next(network.parameters()).device
        if device.type == "cuda" and "cuda_random" in tensors:
            torch.cuda.set_rng_state(tensors["cuda_random"], device)


def warm_cosine(step: int, steps: int) -> float:
    """Return the share of the learning rate in a step: a warm-up in the first twentieth, then a cosine down to 0.

    Examples:
        >>> [round(warm_cosine(step, 100), 2) for step in (0, 2, 4, 50, 99)]
        [0.2, 0.6, 1.0, 0.5, 0.0]
    """
    return min(20 * (step + 1) / steps, (1 + math.cos(math.pi * step / steps)) / 2)


def step_decay(step: int, steps: int) -> float:
    """Return the share of the learning rate in a step: 1, and a tenth in the last sixth of the steps.

    It is the schedule of He et al. 2014, section 4.2: 250k mini-batches at a rate of 1e-4, then 50k at 1e-5.

    Examples:
        >>> [step_decay(step, 6) for step in range(6)]
        [1.0, 1.0, 1.0, 1.0, 1.0, 0.1]
    """
    return 1.0 if 6 * step < 5 * steps else 0.1


def make_optimizer(
    parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]], settings: FinetuneSettings | EndToEndSettings
) -> torch.optim.Optimizer:
    """Return the optimizer that ``settings`` name.

    Args:
        parameters: parameters or groups of them; a group's ``lr`` takes precedence over the settings' rate.
        settings: optimizer, learning rate and weight decay.
    """
    rate, decay = settings.learning_rate, settings.weight_decay
    if settings.optimizer == "sgd":
        return torch.optim.SGD(parameters, rate, momentum=_MOMENTUM, weight_decay=decay)
    # Fused: one pass over the memory that limits the update takes a tenth of the time.
    return torch.optim.AdamW(parameters, rate, weight_decay=decay, fused=True)
