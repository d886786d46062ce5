"""Checkpoint files: the state that an interrupted training resumes from, in one safetensors file.

A file holds the tensors of the network (``network.NAME``), of the optimizer (``optimizer.PARAMETER.NAME``) and of the
caller (``extra.NAME``); its metadata hold the format, the key of the training, the optimizer's settings per group of
parameters and the caller's notes, as JSON.
"""

from __future__ import annotations

import json
import logging
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from sppdet.utils.execution import Checkpoint
from sppdet.utils.files import entries_under
from sppdet.utils.tensor_files import verify_tensors, write_tensors

logger = logging.getLogger(__name__)

_FORMAT = "2"  # files of earlier versions have none, and are not resumed from


def save(
    checkpoint: Checkpoint,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    tensors: dict[str, torch.Tensor],
    notes: dict[str, Any],
) -> None:
    """Write the state of a training to ``checkpoint.path``.

    Args:
        checkpoint: the file, and the key of the training.
        network: saved with its buffers.
        optimizer: saved with its settings per group of parameters, such as the learning rate.
        tensors: other tensors of the training, by name.
        notes: other values of the training, of types that JSON has.
    """
    state = optimizer.state_dict()
    named = {f"network.{name}": value for name, value in network.state_dict().items()}
    for number, entries in state["state"].items():
        values = {name: value for name, value in entries.items() if value is not None}
        named |= {f"optimizer.{number}.{name}": torch.as_tensor(value) for name, value in values.items()}
    named |= {f"extra.{name}": value for name, value in tensors.items()}
    named = {name: value.contiguous() for name, value in named.items()}
    groups = [{name: value for name, value in group.items() if name != "params"} for group in state["param_groups"]]
    metadata = {"format": _FORMAT, "key": checkpoint.key, "groups": json.dumps(groups), "notes": json.dumps(notes)}
    write_tensors(checkpoint.path, named, metadata)


def restore(
    checkpoint: Checkpoint, network: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
    """Give ``network`` and ``optimizer`` the state that `save` wrote.

    A damaged file is reported as a warning and otherwise treated as absent.

    Returns:
        The caller's tensors and notes. None, and nothing is changed, where there is no file, or one of another key
        or of an older format.
    """
    content = _read(checkpoint)
    if content is None:
        return None
    tensors, metadata = content
    weights, before = entries_under(tensors, "network."), optimizer.state_dict()
    try:
        notes = json.loads(metadata["notes"])
        state, groups = _optimizer_state(tensors, metadata, optimizer)
        current = {name: value.shape for name, value in network.state_dict().items()}
        fits = {name: value.shape for name, value in weights.items()} == current and isinstance(notes, dict)
        if fits:
            optimizer.load_state_dict({"state": state, "param_groups": groups})
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, RecursionError):
        fits = False
    if not fits:
        optimizer.load_state_dict(before)
        logger.warning(f"{checkpoint.path}: damaged checkpoint; training starts from the beginning")
        return None
    network.load_state_dict(weights)
    for parameter, entries in optimizer.state.items():
        for entry, value in entries.items():
            if value.shape == parameter.shape:
                # In the parameter's memory order, which the fused kernels take for granted.
                entries[entry] = torch.empty_like(parameter, requires_grad=False).copy_(value)
    return entries_under(tensors, "extra."), notes


def _optimizer_state(
    tensors: dict[str, torch.Tensor], metadata: dict[str, str], optimizer: torch.optim.Optimizer
) -> tuple[dict[int, dict[str, torch.Tensor]], list[dict[str, Any]]]:
    """Return the optimizer's state by parameter, and its settings per group of parameters.

    Raises:
        ValueError: the file holds other parameters than the optimizer; or KeyError, TypeError, AttributeError.
    """
    groups = optimizer.state_dict()["param_groups"]
    known = {number for group in groups for number in group["params"]}
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in entries_under(tensors, "optimizer.").items():
        number, entry = name.split(".", 1)
        state.setdefault(int(number), {})[entry] = value
    saved_groups = json.loads(metadata["groups"])
    if not state.keys() <= known or len(saved_groups) != len(groups):
        raise ValueError("the checkpoint holds other parameters than the optimizer")
    for group, saved in zip(groups, saved_groups):
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in saved.items()}
        if any(type(value) is not type(group.get(name, value)) for name, value in values.items()):
            raise ValueError("the checkpoint holds other settings than the optimizer")
        group |= values
    return state, groups


def _read(checkpoint: Checkpoint) -> tuple[dict[str, torch.Tensor], dict[str, str]] | None:
    """Return the tensors and the metadata of the file, None where it cannot be resumed from."""
    if not checkpoint.path.exists():
        return None
    try:
        with safe_open(checkpoint.path, "pt") as stored:
            metadata = stored.metadata() or {}
            if metadata.get("format") != _FORMAT or metadata.get("key") != checkpoint.key:
                return None
            verify_tensors(checkpoint.path)
            return {name: stored.get_tensor(name) for name in stored.keys()}, metadata  # noqa: SIM118
    except (SafetensorError, OSError):
        logger.warning(f"{checkpoint.path}: damaged checkpoint; training starts from the beginning")
        return None
