"""Networks that are not built in: those of torchvision, and of timm where it is installed.

A name is looked up in torchvision, then in timm; ``torchvision/NAME`` and ``timm/NAME`` say which. The libraries are
imported when they are asked for.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sppdet.networks.normalisation import IMAGENET, Normalisation
from sppdet.utils import SppdetError


@dataclass(frozen=True)
class LibraryNetwork:
    """A network of a library.

    Attributes:
        library: ``torchvision`` or ``timm``.
        name: as the library has it.
    """

    library: str
    name: str

    def build(self) -> nn.Module:
        """Build the whole network with the random weights that the library draws."""
        if self.library == "timm":
            return _timm().create_model(self.name, pretrained=False)
        from torchvision.models import get_model

        network = get_model(self.name, weights=None)
        if hasattr(network, "transform_input"):  # of GoogLeNet and Inception; set by torchvision with its weights
            network.transform_input = True
        return network

    def imagenet_state(self) -> dict[str, torch.Tensor]:
        """Return the library's ImageNet weights, which it downloads once.

        Raises:
            SppdetError: there are none, or the download failed.
        """
        try:
            if self.library == "timm":
                return _timm().create_model(self.name, pretrained=True).state_dict()
            from torchvision.models import get_model_weights  # takes longer to import than torch

            return get_model_weights(self.name).DEFAULT.get_state_dict(progress=True, check_hash=True)
        except Exception as error:  # those of several libraries that download
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise SppdetError(
                f"backbone.weights: the download of {self.library}'s {self.name} weights failed ({reason}); "
                "give a file: backbone.weights=PATH"
            ) from None

    @property
    def normalisation(self) -> Normalisation:
        """The normalisation of the input."""
        if self.library == "torchvision":
            from torchvision.models import get_model_weights

            values = get_model_weights(self.name).DEFAULT.transforms()
        else:
            values = _timm().get_pretrained_cfg(self.name)
        return IMAGENET if values is None else Normalisation(tuple(values.mean), tuple(values.std), divisor=255)


def library_network(name: str) -> LibraryNetwork | None:
    """Return the network of a name, from torchvision or else from timm; None where neither has it.

    Raises:
        SppdetError: a name of timm, which is not installed.
    """
    library, _, short = name.rpartition("/")
    if library == "timm" and not has_timm():
        raise SppdetError(f"backbone.name: {name} needs timm, which is not installed; run 'pip install sppdet[timm]'")
    if library in ("", "torchvision") and short in torchvision_names():
        return LibraryNetwork("torchvision", short)
    if library in ("", "timm") and has_timm() and _timm().is_model(short):
        return LibraryNetwork("timm", short)
    return None


def torchvision_names() -> Iterable[str]:
    """Return the names of torchvision's networks for classification."""
    from torchvision import models

    return models.list_models(module=models)


def has_timm() -> bool:
    """Whether timm is installed."""
    return importlib.util.find_spec("timm") is not None


def _timm() -> Any:
    import timm

    return timm
