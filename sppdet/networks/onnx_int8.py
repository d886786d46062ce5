"""Trunks in 8-bit integers, as ONNX files: of convolutions with batch norm, with ReLU6 or without one, and sums.

EfficientNet-Lite runs so in 0.4 of the time of float32 on CPUs that multiply four pairs of bytes at a time (VNNI), in
0.6 on others (docs/experiments/engines.md), and computes the same to the last bit. No image is needed to choose the
steps between codes:

- Up to the first map without ReLU6, that of EfficientNet's first block, all stays in float32: of the error that 8 bits
  make, a third comes from there.
- Every channel has steps of its own, between the layers, too. Integer convolutions know one step per input, but in
  these networks a convolution or a sum is all that reads a map, and steps per channel can be folded into its weights.
- ReLU6 leaves 0..6. Without ReLU6 a map is what batch norm makes of it: ``bias`` on average with a deviation of
  ``weight``; about so after end-to-end training, too, in which batch norm is fixed. Maps that are added need steps in
  the same proportion, so all sums of a stage share the proportions of the widest.
- What the rounding of weights adds to an output on average is known from the average of the input, and is subtracted
  from the bias (Nagel et al. 2019, arXiv 1906.04721, section 4.2). Kernels keep their sum when they are rounded, as
  neighbouring pixels are alike: depthwise kernels, many of which sum up to almost nothing, would lose most.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import fx, nn

from sppdet.networks.onnx_export import UnsupportedLayer, add_step, convolution, layer_of, trace
from sppdet.networks.onnx_file import Graph

_SUMS = (operator.add, operator.iadd, torch.add)
_MIDDLE = 128  # the code of the average of a map without ReLU6
# Deviations from the average to the last code. 3.5 to 5 differ little for EfficientNet-Lite0 and 2; at 3 too much is
# cut off (docs/experiments/engines.md).
_DEVIATIONS = 4.0
# CPUs without VNNI add two products of bytes in 16 bits: 2 * 255 * 63 fits, twice 255 * 127 does not. So maps are the
# same on all of them, at a little more rounding.
_LARGEST_WEIGHT = 63


def int8_model(trunk: nn.Module, description: Mapping[str, object]) -> bytes:
    """Return a trunk in evaluation mode as an ONNX model that computes in 8-bit integers.

    Input and output are those of `sppdet.networks.onnx_export.onnx_model`: float32, the output rounded to 256 values
    per channel.

    Args:
        trunk: the conv layers; they stay as they are.
        description: JSON-like, stored as the model's metadata under the key ``sppdet``.

    Raises:
        UnsupportedLayer: a layer is none of those named above.
    """
    writer = _Writer(trunk)
    for node in writer.nodes:
        writer.write(node)
    return writer.graph.model(description)


@dataclass(frozen=True)
class _Codes:
    """A map of codes: uint8 ``(N, C, h, w)`` that stand for ``offset + step * (code - zero)``.

    Attributes:
        name: in the graph.
        step: ``(C,)``.
        offset: ``(C,)``.
        zero: the code of ``offset``, and of the pixels that padding adds.
        mean: ``(C,)`` what the map is on average.
        padding: pixels to be added at the top, left, bottom and right by the convolution that reads the map.
    """

    name: str
    step: np.ndarray
    offset: np.ndarray
    zero: int
    mean: np.ndarray
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)


@dataclass(frozen=True)
class _Spread:
    """What batch norm makes of a map: mean and standard deviation ``(C,)`` of each channel."""

    mean: np.ndarray
    deviation: np.ndarray

    def plus(self, other: _Spread) -> _Spread:
        """Return the spread of a sum of independent maps."""
        return _Spread(self.mean + other.mean, np.hypot(self.deviation, other.deviation))


class _Writer:
    """A graph in the making, and what stands in it for each step of the network."""

    def __init__(self, trunk: nn.Module):
        self.graph = Graph()
        self.nodes = list(trace(trunk).nodes)
        self._modules = dict(trunk.named_modules())
        self._names: dict[fx.Node, str] = {}  # maps in float32
        self._codes: dict[fx.Node, _Codes] = {}
        self._spreads: dict[fx.Node, _Spread] = {}
        self._proportions: dict[fx.Node, np.ndarray] = {}  # of the steps of maps without ReLU6
        self._survey()

    def write(self, node: fx.Node) -> None:
        """Add a step of the network to the graph."""
        layer = self._layer(node)
        inputs = [self._codes[parent] for parent in node.all_input_nodes if parent in self._codes]
        if node.op == "output":
            if not self._codes:
                raise UnsupportedLayer("no layer is a convolution with batch norm and without ReLU")
            last = node.all_input_nodes[0]
            layers = cast(list[fx.Node], last.args[0]) if last.target is torch.cat else [last]
            self.graph.add("Concat", [self._numbers(one) for one in layers], output="map", axis=1)
        elif node.target is torch.cat and all(user.op == "output" for user in node.users):
            pass  # written with the output
        elif not self._codes:
            add_step(self.graph, node, self._modules, self._names)
            if self._is_norm(node) and not self._has_relu6(node):
                self._codes[node] = self._rounded(node)
        elif len(inputs) < len(node.all_input_nodes) and not self._is_norm(node):
            raise UnsupportedLayer(f"{node.name} reads a map of the layers that stay in float32")
        elif node.target in _SUMS and len(inputs) == 2:
            self._codes[node] = self._sum(node, *inputs)
        elif isinstance(layer, nn.ZeroPad2d) and not inputs[0].offset.any():
            left, right, top, bottom = layer.padding
            self._codes[node] = replace(inputs[0], padding=(top, left, bottom, right))
        elif isinstance(layer, (nn.Identity, nn.Dropout)) or self._is_relu6_after_norm(node):
            self._codes[node] = inputs[0]
        elif isinstance(layer, nn.BatchNorm2d):
            self._codes[node] = self._convolution(node, layer)
        elif not (isinstance(layer, nn.Conv2d) and all(self._is_norm(user) for user in node.users)):
            raise UnsupportedLayer(f"{node.name} has no form in 8-bit integers here")

    # What values maps have

    def _survey(self) -> None:
        """Find the spread of every map without ReLU6, and the proportions of steps of those that are added."""
        group: dict[fx.Node, fx.Node] = {}  # of each such map another of its stage, or itself
        for node in self.nodes:
            layer = self._layer(node)
            parents = [self._behind(parent) for parent in node.all_input_nodes]
            if isinstance(layer, nn.BatchNorm2d):
                if not layer.affine:
                    raise UnsupportedLayer(f"{node.name} is batch norm without weights")
                weight, bias = (values.detach().cpu().double().numpy() for values in (layer.weight, layer.bias))
                self._spreads[node] = _Spread(bias, np.abs(weight))
                group[node] = node
            elif node.target in _SUMS and len(parents) == 2 and all(parent in group for parent in parents):
                self._spreads[node] = self._spreads[parents[0]].plus(self._spreads[parents[1]])
                group[node] = node
                for parent in parents:
                    group[_root(group, parent)] = node
        widest: dict[fx.Node, np.ndarray] = {}
        for node, spread in self._spreads.items():
            root = _root(group, node)
            widest[root] = np.maximum(widest.get(root, 0.0), spread.deviation)
        for node in self._spreads:
            proportions = widest[_root(group, node)]
            least = max(1e-6 * proportions.max(), 1e-12)  # of channels that never change
            self._proportions[node] = np.maximum(proportions, least)

    def _behind(self, node: fx.Node) -> fx.Node:
        """Return the step whose output a step passes on."""
        while isinstance(self._layer(node), (nn.Identity, nn.Dropout)):
            node = node.all_input_nodes[0]
        return node

    def _steps(self, node: fx.Node) -> np.ndarray:
        """Return the steps ``(C,)`` of a map without ReLU6."""
        proportions = self._proportions[node]
        return proportions * (self._spreads[node].deviation / proportions).max() * (_DEVIATIONS / (255 - _MIDDLE))

    # Steps of the network

    def _rounded(self, node: fx.Node) -> _Codes:
        """Round a map without ReLU6 that was computed in float32."""
        step, mean = self._steps(node), self._spreads[node].mean
        centred = self.graph.add("Sub", [self._names[node], self.graph.weight(mean.astype(np.float32)[:, None, None])])
        codes = self.graph.add("QuantizeLinear", [centred, *self._scale(step, _MIDDLE)], axis=1)
        return _Codes(codes, step, mean, _MIDDLE, mean)

    def _convolution(self, node: fx.Node, norm: nn.BatchNorm2d) -> _Codes:
        """Add a convolution with its batch norm, and the ReLU6 that may follow: codes end where it does."""
        before = node.all_input_nodes[0]
        conv = self._layer(before)
        if not isinstance(conv, nn.Conv2d) or len(before.users) != 1:
            raise UnsupportedLayer(f"{node.name} is batch norm that follows no convolution")
        if conv.groups not in (1, conv.in_channels) or (conv.groups > 1 and conv.out_channels != conv.groups):
            raise UnsupportedLayer(f"{before.name} has several groups and is not depthwise")
        codes = self._codes[before.all_input_nodes[0]]
        weight, bias, geometry = convolution(conv, norm)
        if any(geometry["pads"]) and codes.offset.any():
            raise UnsupportedLayer(f"{before.name} pads a map without ReLU6")
        geometry["pads"] = [a + b for a, b in zip(geometry["pads"], codes.padding)]
        if self._has_relu6(node):
            step, offset, zero = np.full(len(bias), 6 / 255), np.zeros(len(bias)), 0
            mean = _mean_after_relu6(self._spreads[node])
        else:
            step, offset, zero = self._steps(node), self._spreads[node].mean, _MIDDLE
            mean = offset
        per_input = (slice(None), None) if conv.groups > 1 else (None, slice(None))  # the axis of inputs in a kernel
        bias = bias - offset + (weight.sum((2, 3)) * codes.offset[per_input]).sum(1)
        weight = weight * codes.step[per_input][:, :, None, None] / step[:, None, None, None]
        rounded, weight_step = _round_kernels(weight)
        error = (rounded * weight_step[:, None, None, None] - weight).sum((2, 3))
        bias = bias / step - (error * ((codes.mean - codes.offset) / codes.step)[per_input]).sum(1)
        names = [
            codes.name, self._number(1), self._byte(codes.zero),
            self.graph.weight(rounded), self.graph.weight(weight_step.astype(np.float32)),
            self.graph.weight(np.zeros(len(weight), np.int8)), self._number(1), self._byte(zero),
            self.graph.weight(np.round(bias / weight_step).clip(-(2**31), 2**31 - 1).astype(np.int32)),
        ]  # fmt: skip
        return _Codes(self.graph.add("QLinearConv", names, **geometry), step, offset, zero, mean)

    def _sum(self, node: fx.Node, first: _Codes, second: _Codes) -> _Codes:
        """Add two maps whose steps are in the same proportion."""
        if node not in self._spreads:
            raise UnsupportedLayer(f"{node.name} adds a map that batch norm has not made")
        step, mean = self._steps(node), self._spreads[node].mean
        names: list[str] = []
        for codes in (first, second):
            ratio = float(np.median(codes.step / step))  # the same for all channels
            names += [codes.name, self._number(ratio), self._byte(codes.zero)]
        names += [self._number(1), self._byte(_MIDDLE)]
        added = self.graph.add("QLinearAdd", names, domain=Graph.MICROSOFT)
        return _Codes(added, step, mean, _MIDDLE, mean)

    def _numbers(self, node: fx.Node) -> str:
        """Add the numbers that the codes of a map stand for."""
        codes = self._codes.get(node)
        if codes is None:
            return self._names[node]
        numbers = self.graph.add("DequantizeLinear", [codes.name, *self._scale(codes.step, codes.zero)], axis=1)
        if not codes.offset.any():
            return numbers
        return self.graph.add("Add", [numbers, self.graph.weight(codes.offset.astype(np.float32)[:, None, None])])

    def _scale(self, step: np.ndarray, zero: int) -> list[str]:
        """Add the steps ``(C,)`` between codes, and the code of 0 of every channel."""
        return [self.graph.weight(step.astype(np.float32)), self.graph.weight(np.full(len(step), zero, np.uint8))]

    def _number(self, value: float) -> str:
        return self.graph.weight(np.array(value, np.float32))

    def _byte(self, value: int) -> str:
        return self.graph.weight(np.array(value, np.uint8))

    def _layer(self, node: fx.Node) -> Any:
        return layer_of(node, self._modules)

    def _is_norm(self, node: fx.Node) -> bool:
        return isinstance(self._layer(node), nn.BatchNorm2d)

    def _has_relu6(self, node: fx.Node) -> bool:
        """Whether ReLU6 is all that reads the output of a batch norm."""
        return all(isinstance(self._layer(user), nn.ReLU6) for user in node.users)

    def _is_relu6_after_norm(self, node: fx.Node) -> bool:
        parent = node.all_input_nodes[0]
        return isinstance(self._layer(node), nn.ReLU6) and self._is_norm(parent) and self._has_relu6(parent)


def _root(group: dict[fx.Node, fx.Node], node: fx.Node) -> fx.Node:
    while group[node] is not node:
        node = group[node]
    return node


def _mean_after_relu6(spread: _Spread) -> np.ndarray:
    """Return the mean of a normal distribution that is cut at 0 and 6, elementwise."""
    mean, deviation = spread.mean, np.maximum(spread.deviation, 1e-9)
    low, high = -mean / deviation, (6 - mean) / deviation

    def below(x: np.ndarray) -> np.ndarray:
        return torch.special.ndtr(torch.from_numpy(x)).numpy()

    def density(x: np.ndarray) -> np.ndarray:
        return np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)

    between = below(high) - below(low)
    return mean * between + deviation * (density(low) - density(high)) + 6 * (1 - below(high))


def _round_kernels(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Round kernels ``(O, I, kh, kw)`` to 7 bits, with a step for each output; the sum of each k x k stays what it is.

    Of the numbers of a kernel that lie between two codes, as many are rounded up as the sum asks for: those that are
    nearest to the higher code.

    Examples:
        >>> kernel = np.array([63.0, -12.6, -12.6, -12.6, -12.6, -12.6, 0.0, 0.0, 0.0]).reshape(1, 1, 3, 3)
        >>> rounded, step = _round_kernels(kernel)
        >>> rounded.ravel().tolist(), step.tolist()
        ([63, -12, -12, -13, -13, -13, 0, 0, 0], [1.0])
    """
    step = np.maximum(np.abs(weight).reshape(len(weight), -1).max(1), 1e-12) / _LARGEST_WEIGHT
    kernels = (weight / step[:, None, None, None]).reshape(*weight.shape[:2], -1)
    lower = np.floor(kernels)
    up = np.round(kernels.sum(-1)) - lower.sum(-1)
    rank = np.argsort(np.argsort(lower - kernels, axis=-1, kind="stable"), axis=-1, kind="stable")
    rounded = (lower + (rank < up[..., None])).clip(-_LARGEST_WEIGHT, _LARGEST_WEIGHT)
    return rounded.reshape(weight.shape).astype(np.int8), step
