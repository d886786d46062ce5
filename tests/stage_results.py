"""Results of training stages written by hand, whose tensors are the same on every machine."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from sppdet.networks.fc_head import Head
from sppdet.networks.trunks import build_trunk
from sppdet.training.cached_result import Key, write_result
from sppdet.training.stage_inputs import StageInputs

UNITS = 8  # of fc6 and fc7
_ANY_KEY = Key("written by hand", "written by hand")


def exact_weights(module: nn.Module, shift: int = 0) -> dict[str, torch.Tensor]:
    """Return a state_dict of eighths, which floating-point numbers of every machine hold exactly."""
    return {
        name: ((torch.arange(value.numel()) + shift) % 13 - 6).reshape(value.shape).to(value.dtype) / 8
        for name, value in module.state_dict().items()
        if value.is_floating_point()  # not the counters of batch norm
    } | {name: value for name, value in module.state_dict().items() if not value.is_floating_point()}


def write_trunk(path: Path, shift: int = 0) -> Path:
    """Write weights of the network `small`, for the setting backbone.weights."""
    save_file(exact_weights(build_trunk("small", 0), shift), path)
    return path


def write_networks(inputs: StageInputs, shift: int = 0, units: int = UNITS) -> None:
    """Write what stages `finetune` and `end_to_end` would have learned for the run of ``inputs``."""
    head = Head(inputs.pooled_features.pooled_dimension, units, "fc7")
    tensors = {f"head.{name}": value for name, value in exact_weights(head, shift).items()}
    write_result(inputs.files.fine_tuned, _ANY_KEY, tensors, head=head.description())
    trunk = exact_weights(build_trunk("small", 0), shift + 1)
    tensors |= {f"trunk.{name}": value for name, value in trunk.items()}
    write_result(inputs.files.end_to_end, _ANY_KEY, tensors, head=head.description())
