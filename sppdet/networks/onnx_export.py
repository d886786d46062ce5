"""Trunks as ONNX files, written without the packages onnx and onnxscript, which PyTorch's exporter would need.

An ONNX file is a protocol buffer (https://onnx.ai/onnx/repo-docs/IR.html). The few messages of a feed-forward network
are encoded here by hand. Batch norm is folded into the convolution before it, in float64. The same trunk always gives
the same bytes.

To support another layer, add a function to `_LAYERS` or `_FUNCTIONS`, at the end of this file.
"""

from __future__ import annotations

import json
import operator
import struct
from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import fx, nn

from sppdet.networks.efficientnet import PadToMultiple

_OPSET, _IR_VERSION = 17, 8
_ELEMENT_TYPES = {np.dtype(np.float32): 1, np.dtype(np.int64): 7}  # TensorProto.DataType
_VARINT, _BYTES, _FIXED32 = 0, 2, 5  # wire types


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
    graph = _Graph()
    try:
        traced = _Tracer().trace(trunk)
    except Exception as error:  # fx raises many kinds where code depends on the values of tensors
        raise UnsupportedLayer(f"its code cannot be traced ({str(error).splitlines()[0]})") from None
    modules = dict(trunk.named_modules())
    names: dict[fx.Node, str] = {}
    for node in traced.nodes:
        if node.op == "placeholder":
            names[node] = "image"
            continue
        inputs = [names[parent] for parent in node.all_input_nodes]
        if node.op == "output":
            graph.add("Identity", inputs, output="map")
        elif node.op != "call_module":
            names[node] = _entry(_FUNCTIONS, node.target)(graph, node, inputs)
        elif _folded_norm(node.all_input_nodes[0], modules) == node:
            names[node] = inputs[0]  # written with its convolution
        elif (norm := _folded_norm(node, modules)) is not None:
            names[node] = _conv(graph, _layer(node, modules), inputs, _layer(norm, modules))
        else:
            layer = _layer(node, modules)
            names[node] = _entry(_LAYERS, type(layer))(graph, layer, inputs)
    return graph.model(description)


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
    if type(_layer(node, modules)) is not nn.Conv2d or len(node.users) != 1 or user is None:
        return None
    return user if type(_layer(user, modules)) is nn.BatchNorm2d else None


def _layer(node: fx.Node, modules: Mapping[str, nn.Module]) -> Any:
    """Return the layer that a node calls; None for other nodes."""
    return modules[str(node.target)] if node.op == "call_module" else None


class _Graph:
    """The nodes and weights of a model in the making."""

    def __init__(self) -> None:
        self._nodes: list[bytes] = []
        self._weights: list[bytes] = []

    def add(self, kind: str, inputs: list[str], output: str = "", **attributes: int | list[int] | str) -> str:
        """Add a node and return the name of its output."""
        output = output or f"t{len(self._nodes)}"
        fields = [_bytes(1, name.encode()) for name in inputs] + [_bytes(2, output.encode()), _bytes(4, kind.encode())]
        self._nodes.append(b"".join([*fields, *(_bytes(5, _attribute(*item)) for item in attributes.items())]))
        return output

    def weight(self, values: np.ndarray) -> str:
        """Add constant values and return their name."""
        name = f"w{len(self._weights)}"
        dimensions = [_integer(1, size) for size in values.shape]
        content = _bytes(9, np.ascontiguousarray(values).tobytes())
        kind = _integer(2, _ELEMENT_TYPES[values.dtype])
        self._weights.append(b"".join([*dimensions, kind, _bytes(8, name.encode()), content]))
        return name

    def integers(self, *values: int) -> str:
        return self.weight(np.array(values, np.int64))

    def model(self, description: Mapping[str, object]) -> bytes:
        """Return the whole model: a ModelProto."""
        graph = [_bytes(1, node) for node in self._nodes] + [_bytes(2, b"trunk")]
        graph += [_bytes(5, weight) for weight in self._weights]
        graph += [_bytes(11, _value("image", "N", 3, "H", "W")), _bytes(12, _value("map", "N", "C", "h", "w"))]
        metadata = _bytes(1, b"sppdet") + _bytes(2, json.dumps(description, sort_keys=True).encode())
        return b"".join(
            [
                _integer(1, _IR_VERSION),
                _bytes(2, b"sppdet"),
                _bytes(7, b"".join(graph)),
                _bytes(8, _integer(2, _OPSET)),
                _bytes(14, metadata),
            ]
        )


def _key(field: int, wire: int) -> bytes:
    return _varint(field << 3 | wire)


def _varint(value: int) -> bytes:
    """Encode an integer in groups of seven bits, lowest first; negative ones as 64-bit two's complement."""
    value &= (1 << 64) - 1
    groups = []
    while value > 127:
        groups.append(value & 127 | 128)
        value >>= 7
    return bytes([*groups, value])


def _integer(field: int, value: int) -> bytes:
    return _key(field, _VARINT) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _key(field, _BYTES) + _varint(len(value)) + value


def _attribute(name: str, value: int | float | list[int] | str) -> bytes:
    """Return an AttributeProto; its last field is the type."""
    start = _bytes(1, name.encode())
    if isinstance(value, str):
        return start + _bytes(4, value.encode()) + _integer(20, 3)
    if isinstance(value, list):
        return start + b"".join(_integer(8, number) for number in value) + _integer(20, 7)
    if isinstance(value, float):
        return start + _key(2, _FIXED32) + struct.pack("<f", value) + _integer(20, 1)
    return start + _integer(3, value) + _integer(20, 2)


def _value(name: str, *sizes: int | str) -> bytes:
    """Return a ValueInfoProto of float32; a size that is a string may have any value."""
    dimensions = [_integer(1, size) if isinstance(size, int) else _bytes(2, size.encode()) for size in sizes]
    shape = b"".join(_bytes(1, dimension) for dimension in dimensions)
    return _bytes(1, name.encode()) + _bytes(2, _bytes(1, _integer(1, 1) + _bytes(2, shape)))


# Layers and functions


def _conv(graph: _Graph, conv: nn.Conv2d, inputs: list[str], norm: nn.BatchNorm2d | None = None) -> str:
    if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        raise UnsupportedLayer(f"convolution with padding {conv.padding} and {conv.padding_mode}")
    weight = conv.weight.detach().cpu().double().numpy()
    bias = np.zeros(len(weight)) if conv.bias is None else conv.bias.detach().cpu().double().numpy()
    if norm is not None:
        factor, shift = _factor_and_shift(norm)
        weight, bias = weight * factor[:, None, None, None], bias * factor + shift
    tensors = [graph.weight(values.astype(np.float32)) for values in (weight, bias)]
    return graph.add(
        "Conv", [*inputs, *tensors], group=conv.groups, kernel_shape=list(conv.kernel_size),
        strides=list(conv.stride), pads=[*conv.padding, *conv.padding], dilations=list(conv.dilation),
    )  # fmt: skip


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


def _batch_norm(graph: _Graph, norm: nn.BatchNorm2d, inputs: list[str]) -> str:
    factor, shift = (graph.weight(v.astype(np.float32)[:, None, None]) for v in _factor_and_shift(norm))
    return graph.add("Add", [graph.add("Mul", [*inputs, factor]), shift])


def _max_pool(graph: _Graph, pool: nn.MaxPool2d, inputs: list[str]) -> str:
    kernel, stride, padding, dilation = (
        list(value) if isinstance(value, tuple) else [value, value]
        for value in (pool.kernel_size, pool.stride, pool.padding, pool.dilation)
    )
    return graph.add(
        "MaxPool", inputs, kernel_shape=kernel, strides=stride, pads=padding * 2, dilations=dilation,
        ceil_mode=int(pool.ceil_mode),
    )  # fmt: skip


def _zero_pad(graph: _Graph, pad: nn.ZeroPad2d, inputs: list[str]) -> str:
    left, right, top, bottom = pad.padding
    return graph.add("Pad", [*inputs, graph.integers(0, 0, top, left, 0, 0, bottom, right)])


def _pad_to_multiple(graph: _Graph, pad: PadToMultiple, inputs: list[str]) -> str:
    sides = graph.add("Shape", inputs, start=2)
    after = graph.add("Mod", [graph.add("Neg", [sides]), graph.integers(pad.multiple)])  # of the divisor's sign: >= 0
    pads = graph.add("Concat", [graph.integers(0, 0, 0, 0, 0, 0), after], axis=0)
    return graph.add("Pad", [*inputs, pads])


def _relu6(graph: _Graph, layer: nn.ReLU6, inputs: list[str]) -> str:
    return graph.add("Clip", [*inputs, *(graph.weight(np.array(bound, np.float32)) for bound in (0, 6))])


def _simple(kind: str) -> Callable[..., str]:
    return lambda graph, layer, inputs: graph.add(kind, inputs)


def _same(graph: _Graph, layer: object, inputs: list[str]) -> str:
    return inputs[0]


def _two_tensors(kind: str) -> Callable[..., str]:
    def write(graph: _Graph, node: fx.Node, inputs: list[str]) -> str:
        if not all(isinstance(argument, fx.Node) for argument in node.args) or len(node.args) != 2 or node.kwargs:
            raise UnsupportedLayer(f"{kind.lower()} of a tensor and a number")
        return graph.add(kind, inputs if len(inputs) == 2 else inputs * 2)

    return write


def _cat(graph: _Graph, node: fx.Node, inputs: list[str]) -> str:
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
