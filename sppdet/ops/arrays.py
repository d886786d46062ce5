"""Arrays of NumPy, and tensors of torch on any device: steps that both go through are written once."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = Any  # np.ndarray or torch.Tensor, of which no type tells what both can do


def is_tensor(array: Array) -> bool:
    """Whether an array is a tensor of torch; does not load torch."""
    return not isinstance(array, np.ndarray)


def like(array: Array, other: Array) -> Array:
    """Return an array as a tensor on the device of ``other``, if that is a tensor, and else as it is.

    Examples:
        >>> import torch
        >>> like(np.arange(2), torch.zeros(1))
        tensor([0, 1])
    """
    if is_tensor(array) or not is_tensor(other):
        return array
    import torch

    return torch.from_numpy(np.ascontiguousarray(array)).to(other.device)


def on_host(array: Array) -> np.ndarray:
    """Return an array or tensor as an array.

    Examples:
        >>> import torch
        >>> on_host(torch.arange(2))
        array([0, 1])
    """
    return array.cpu().numpy() if is_tensor(array) else array
