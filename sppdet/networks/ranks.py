"""Training by gradient in several processes, which ``torchrun`` starts: each learns from its share of every batch.

As in DistributedDataParallel every process, a rank, has the whole network, and gradients are exchanged before each
step. They are added here, not averaged, since a loss is divided by the windows of all ranks together; and without
DistributedDataParallel's hooks, since `sppdet.training.end_to_end` passes gradients through the trunk image by image.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import distributed, nn

_LONGEST_WAIT = timedelta(days=7)  # while the first rank alone computes proposals


@contextmanager
def process_group() -> Iterator[None]:
    """Connect the processes of ``torchrun`` for the block; does nothing in a process that was started alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "MASTER_ADDR" not in os.environ or _connected():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    distributed.init_process_group(timeout=_LONGEST_WAIT)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def _connected() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def rank() -> int:
    """Return the number of this process among those that train together; 0 in a process that was started alone."""
    return distributed.get_rank() if _connected() else 0


def rank_count() -> int:
    """Return how many processes train together."""
    return distributed.get_world_size() if _connected() else 1


def wait_for_ranks() -> None:
    """Wait until every rank has called this."""
    if _connected():
        distributed.barrier()


def add_over_ranks(*values: float) -> list[float]:
    """Return the sum over all ranks of each value.

    Examples:
        >>> add_over_ranks(3, 0.5)
        [3, 0.5]
    """
    if not _connected():
        return [*values]
    total = torch.tensor(values, dtype=torch.float64, device="cuda" if torch.cuda.is_available() else "cpu")
    distributed.all_reduce(total)
    return total.tolist()


def add_gradients(network: nn.Module) -> None:
    """Replace the gradient of every parameter that learns by the sum over all ranks."""
    if not _connected():
        return
    for parameter in network.parameters():
        if parameter.requires_grad:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            distributed.all_reduce(parameter.grad)


def copy_from_first_rank(network: nn.Module) -> None:
    """Give the network of every rank the weights of the first one."""
    if _connected():
        for tensor in network.state_dict().values():
            distributed.broadcast(tensor, 0)
