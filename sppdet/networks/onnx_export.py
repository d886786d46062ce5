"""Trunks as ONNX files, written without the packages onnx and onnxscript, which PyTorch's exporter would need.

Batch norm is folded into the convolution before it, in float64. The same trunk always gives the same bytes.

To support another layer, add a function to `_LAYERS` or `_FUNCTIONS`, at the end of this file.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import fx, nn

from sppdet.networks.efficientnet import PadToMultiple
from sppdet.networks.onnx_file import Graph


class UnsupportedLayer(ValueError):
    """A layer that `onnx_model` cannot write; the message names it."""


def onnx_model(trunk: nn.Module, description: Mapping[str, object]) -> bytes:
    """Return a trunk in evaluation mode as an ONNX model.

    The model's input ``image`` is float32 ``(N, 3, H, W)``, its output ``map`` ``(N, C, h, w)``, of any N, H and W.

    Args:
        trunk: the conv layers; they stay as they are.
        description: JSON-like, stored as the model's metadata under the key ``sppdet``.

    Raises:
        UnsupportedLayer: a layer is none of those that can be written.

    Examples:
        >>> model = onnx_model(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), {"name": "two layers"})
        >>> b"two layers" in model
        True
    """
    graph, traced = Graph(), trace(trunk)
    modules, names = dict(trunk.named_modules()), dict[fx.Node, str]()
    for node in traced.nodes:
        if node.op == "output":
            graph.add("Identity", [names[node.all_input_nodes[0]]], output="map")
        else:
            add_step(graph, node, modules, names)
    return graph.model(description)


def trace(trunk: nn.Module) -> fx.Graph:
    """Return the steps of a trunk.

    Raises:
        UnsupportedLayer: its code depends on the values of tensors.
    """
    try:
        return _Tracer().trace(trunk)
    except Exception as error:  # fx raises many kinds
        raise UnsupportedLayer(f"its code cannot be traced ({str(error).splitlines()[0]})") from None


def add_step(graph: Graph, node: fx.Node, modules: Mapping[str, nn.Module], names: dict[fx.Node, str]) -> None:
    """Add a step of a trunk to a graph, in float32, and the name of its output to ``names``.

    Raises:
        UnsupportedLayer: the step is none of those that can be written.
    """
    inputs = [names[parent] for parent in node.all_input_nodes]
    if node.op == "placeholder":
        names[node] = "image"
    elif node.op != "call_module":
        names[node] = _entry(_FUNCTIONS, node.target)(graph, node, inputs)
    elif _folded_norm(node.all_input_nodes[0], modules) == node:
        names[node] = inputs[0]  # written with its convolution
    elif (norm := _folded_norm(node, modules)) is not None:
        names[node] = _conv(graph, layer_of(node, modules), inputs, layer_of(norm, modules))
    else:
        layer = layer_of(node, modules)
        names[node] = _entry(_LAYERS, type(layer))(graph, layer, inputs)


def _entry(table: Mapping[Any, Callable[..., str]], key: Any) -> Callable[..., str]:
    if key not in table:
        raise UnsupportedLayer(f"{getattr(key, '__name__', key)} has no ONNX form here")
    return table[key]


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) in _LAYERS or super().is_leaf_module(m, module_qualified_name)


def _folded_norm(node: fx.Node, modules: Mapping[str, nn.Module]) -> fx.Node | None:
    """Return the batch norm that alone reads the output of a convolution, and so is folded into it; else None."""
    user = next(iter(node.users), None)
    if type(layer_of(node, modules)) is not nn.Conv2d or len(node.users) != 1 or user is None:
        return None
    return user if type(layer_of(user, modules)) is nn.BatchNorm2d else None


def layer_of(node: fx.Node, modules: Mapping[str, nn.Module]) -> Any:
    """Return the layer that a node calls; None for other nodes."""
    return modules[str(node.target)] if node.op == "call_module" else None


# Layers and functions


def convolution(conv: nn.Conv2d, norm: nn.BatchNorm2d | None = None) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Return weight and bias in float64, with the batch norm that follows, and the attributes of an ONNX convolution.

    Raises:
        UnsupportedLayer: padding that ONNX's convolutions do not have, or batch norm without statistics.
    """
    if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        raise UnsupportedLayer(f"convolution with padding {conv.padding} and {conv.padding_mode}")
    weight = conv.weight.detach().cpu().double().numpy()
    bias = np.zeros(len(weight)) if conv.bias is None else conv.bias.detach().cpu().double().numpy()
    if norm is not None:
        factor, shift = _factor_and_shift(norm)
        weight, bias = weight * factor[:, None, None, None], bias * factor + shift
    attributes = {
        "group": conv.groups, "kernel_shape": list(conv.kernel_size), "strides": list(conv.stride),
        "pads": [*conv.padding, *conv.padding], "dilations": list(conv.dilation),
    }  # fmt: skip
    return weight, bias, attributes


def _conv(graph: Graph, conv: nn.Conv2d, inputs: list[str], norm: nn.BatchNorm2d | None = None) -> str:
    weight, bias, attributes = convolution(conv, norm)
    tensors = [graph.weight(values.astype(np.float32)) for values in (weight, bias)]
    return graph.add("Conv", [*inputs, *tensors], **attributes)


def _factor_and_shift(norm: nn.BatchNorm2d) -> tuple[np.ndarray, np.ndarray]:
    """Return what a batch norm in evaluation mode multiplies each channel by and adds to it, in float64."""
    if norm.running_mean is None or norm.running_var is None or not norm.affine:
        raise UnsupportedLayer("batch norm without statistics or weights has no ONNX form here")
    mean, variance, weight, bias = (
        value.detach().cpu().double().numpy() for value in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    with np.errstate(invalid="ignore"):  # as PyTorch, which gives NaN for statistics that are no variances
        factor = weight / np.sqrt(variance + norm.eps)
    return factor, bias - mean * factor


def _batch_norm(graph: Graph, norm: nn.BatchNorm2d, inputs: list[str]) -> str:
    factor, shift = (graph.weight(v.astype(np.float32)[:, None, None]) for v in _factor_and_shift(norm))
    return graph.add("Add", [graph.add("Mul", [*inputs, factor]), shift])


def _max_pool(graph: Graph, pool: nn.MaxPool2d, inputs: list[str]) -> str:
    kernel, stride, padding, dilation = (
        list(value) if isinstance(value, tuple) else [value, value]
        for value in (pool.kernel_size, pool.stride, pool.padding, pool.dilation)
    )
    return graph.add(
        "MaxPool", inputs, kernel_shape=kernel, strides=stride, pads=padding * 2, dilations=dilation,
        ceil_mode=int(pool.ceil_mode),
    )  # fmt: skip


def _zero_pad(graph: Graph, pad: nn.ZeroPad2d, inputs: list[str]) -> str:
    left, right, top, bottom = pad.padding
    return graph.add("Pad", [*inputs, graph.integers(0, 0, top, left, 0, 0, bottom, right)])


def _pad_to_multiple(graph: Graph, pad: PadToMultiple, inputs: list[str]) -> str:
    sides = graph.add("Shape", inputs, start=2)
    after = graph.add("Mod", [graph.add("Neg", [sides]), graph.integers(pad.multiple)])  # of the divisor's sign: >= 0
    pads = graph.add("Concat", [graph.integers(0, 0, 0, 0, 0, 0), after], axis=0)
    return graph.add("Pad", [*inputs, pads])


def _relu6(graph: Graph, layer: nn.ReLU6, inputs: list[str]) -> str:
    return graph.add("Clip", [*inputs, *(graph.weight(np.array(bound, np.float32)) for bound in (0, 6))])


def _simple(kind: str) -> Callable[..., str]:
    return lambda graph, layer, inputs: graph.add(kind, inputs)


def _same(graph: Graph, layer: object, inputs: list[str]) -> str:
    return inputs[0]


def _two_tensors(kind: str) -> Callable[..., str]:
    def write(graph: Graph, node: fx.Node, inputs: list[str]) -> str:
        if not all(isinstance(argument, fx.Node) for argument in node.args) or len(node.args) != 2 or node.kwargs:
            raise UnsupportedLayer(f"{kind.lower()} of a tensor and a number")
        return graph.add(kind, inputs if len(inputs) == 2 else inputs * 2)

    return write


def _cat(graph: Graph, node: fx.Node, inputs: list[str]) -> str:
    axis = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
    if len(cast(list, node.args[0])) != len(inputs):
        raise UnsupportedLayer("concatenation of a tensor with itself")
    return graph.add("Concat", inputs, axis=cast(int, axis))


_LAYERS: dict[type[nn.Module], Callable[..., str]] = {
    nn.Conv2d: _conv,
    nn.BatchNorm2d: _batch_norm,
    nn.MaxPool2d: _max_pool,
    nn.ZeroPad2d: _zero_pad,
    PadToMultiple: _pad_to_multiple,
    nn.ReLU: _simple("Relu"),
    nn.ReLU6: _relu6,
    nn.Sigmoid: _simple("Sigmoid"),
    nn.Hardswish: _simple("HardSwish"),
    nn.SiLU: lambda graph, layer, inputs: graph.add("Mul", [inputs[0], graph.add("Sigmoid", inputs)]),
    nn.Identity: _same,
    nn.Dropout: _same,
}
_FUNCTIONS: dict[Any, Callable[..., str]] = {
    operator.add: _two_tensors("Add"),
    operator.iadd: _two_tensors("Add"),
    operator.mul: _two_tensors("Mul"),
    torch.add: _two_tensors("Add"),
    torch.cat: _cat,
}
