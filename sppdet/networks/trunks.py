"""The conv layers of torchvision's networks up to stride 16, with the keys of its state_dicts.

They are written out here because to import torchvision takes longer than to import torch, and a detector in a fresh
process needs nothing else of it. The tests compare each with torchvision's.

A network is cut after its last conv block at stride 16: after a ReLU, or a block that ends in one, as conv5 of the
SPP-net paper; the pool after it is what the pyramid replaces.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn

from sppdet.utils import SppdetError


def names() -> list[str]:
    return sorted(_TRUNKS)


def build_trunk(name: str, seed: int = 0) -> nn.Sequential:
    """The trunk with random weights; its state_dict keeps the keys of the whole network."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        trunk = _empty(name)
        if name != "small":
            _initialise(trunk)
        return trunk


def restore_trunk(name: str, state: dict[str, torch.Tensor]) -> nn.Sequential:
    """The trunk with the weights of its own state_dict.

    Raises:
        RuntimeError: they are not those of this trunk.
    """
    with torch.random.fork_rng(devices=[]):
        trunk = _empty(name)
    trunk.load_state_dict(state)
    return trunk


def _empty(name: str) -> nn.Sequential:
    if name not in _TRUNKS:
        raise SppdetError(f"backbone.name: '{name}' is none of {', '.join(names())}")
    return _TRUNKS[name]()


def _initialise(trunk: nn.Sequential) -> None:
    """He et al. 2015, as torchvision begins most of its networks."""
    for layer in trunk.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def _small() -> nn.Sequential:
    """Five conv layers like AlexNet's, narrow enough to be trained from nothing on a CPU in a minute.

    Strided convolutions take the place of its pools: they cost a third.
    """
    layers = []
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
    layers, inputs = [], 3
    for block, outputs in enumerate((64, 128, 256, 512, 512)):
        layers += [nn.MaxPool2d(2)] if block else []
        for _ in range(2 if block < 2 else 3):
            layers += _conv(inputs, outputs)
            inputs = outputs
    return _features(layers)


def _squeezenet(first: tuple[int, ...], pools: Sequence[int]) -> nn.Sequential:
    """``first``: outputs, kernel and stride of the first layer; ``pools``: places of the pools among the layers."""
    layers, inputs = [*_conv(3, *first, 0)], first[0]
    squeezes = iter((16, 16, 32, 32, 48, 48, 64, 64))
    for place in range(2, 13):
        if place in pools:
            layers.append(nn.MaxPool2d(3, 2, ceil_mode=True))
        else:
            squeeze = next(squeezes)
            layers.append(_Fire(inputs, squeeze))
            inputs = 8 * squeeze
    return _features(layers)


class _Fire(nn.Module):
    """SqueezeNet's block: 1 x 1 to few channels, then 1 x 1 and 3 x 3 side by side, four times as many each."""

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
    """Up to layer3; ``counts``: blocks of each layer; ``growth``: a block's outputs over its inner channels."""
    children = OrderedDict(conv1=nn.Conv2d(3, 64, 7, 2, 3, bias=False), bn1=nn.BatchNorm2d(64))
    children |= {"relu": nn.ReLU(inplace=True), "maxpool": nn.MaxPool2d(3, 2, 1)}
    inputs = 64
    for layer, count in enumerate(counts):
        blocks, inner = [], 64 << layer
        for place in range(count):
            blocks.append(block(inputs, inner, 2 if layer and not place else 1))
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
        found = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(found + (x if self.downsample is None else self.downsample(x)))


class _Bottleneck(nn.Module):
    """ResNet's block of 1 x 1, 3 x 3 and 1 x 1; the stride is the middle layer's, as torchvision has it."""

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
        found = self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))))
        found = self.bn3(self.conv3(found))
        return self.relu(found + (x if self.downsample is None else self.downsample(x)))


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    if inputs == outputs and stride == 1:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


def _conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, padding: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, kernel, stride, padding), nn.ReLU(inplace=True)]


def _features(layers: list[nn.Module]) -> nn.Sequential:
    return nn.Sequential(OrderedDict(features=nn.Sequential(*layers)))


_TRUNKS = {
    "alexnet": _alexnet,
    "vgg16": _vgg16,
    "squeezenet1_0": partial(_squeezenet, (96, 7, 2), (2, 6, 11)),
    "squeezenet1_1": partial(_squeezenet, (64, 3, 2), (2, 5, 8)),
    "resnet18": partial(_resnet, _Basic, (2, 2, 2), 1),
    "resnet50": partial(_resnet, _Bottleneck, (3, 4, 6), 4),
    "small": _small,
}
