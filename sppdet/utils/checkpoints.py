"""What an interrupted training goes on from: a network and its optimizer in one safetensors file."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from sppdet.utils.files import atomic_write, entries_under


def save(
    path: Path,
    key: str,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    more: dict[str, torch.Tensor],
    notes: dict[str, str] | None = None,
) -> None:
    """Write ``path``, with ``more`` tensors and ``notes`` beside the two; ``key`` says what training it is of."""
    tensors = {f"network.{name}": value for name, value in network.state_dict().items()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": torch.as_tensor(value) for name, value in state.items()}
    tensors |= {f"more.{name}": value for name, value in more.items()}
    tensors = {name: value.contiguous() for name, value in tensors.items()}
    metadata = {"key": key, **(notes or {})}
    atomic_write(path, lambda temporary: save_file(tensors, temporary, metadata=metadata))


def restore(
    path: Path, key: str, network: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, torch.Tensor], dict[str, str]] | None:
    """Take over what :func:`save` wrote; its ``more`` and ``notes``, or None if there is none of this ``key``.

    Of the optimizer only what it has gathered for each parameter: learning rates are the caller's.
    """
    if not path.exists():
        return None
    with safe_open(path, "pt") as stored:
        notes = stored.metadata()
        if notes.pop("key", None) != key:
            return None
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    network.load_state_dict(entries_under(tensors, "network."))
    state: dict[int, dict] = {}
    for name, value in entries_under(tensors, "optimizer.").items():
        number, entry = name.split(".", 1)
        state.setdefault(int(number), {})[entry] = value
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
    for parameter, entries in optimizer.state.items():
        for entry, value in entries.items():
            if value.shape == parameter.shape:
                # In the parameter's own order of memory, which the fused kernels take for granted.
                entries[entry] = torch.empty_like(parameter, requires_grad=False).copy_(value)
    return entries_under(tensors, "more."), notes
