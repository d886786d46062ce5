"""ONNX files of feed-forward networks, written without the package onnx.

An ONNX file is a protocol buffer (https://onnx.ai/onnx/repo-docs/IR.html). The few messages of a feed-forward network
are encoded here by hand. The same graph always gives the same bytes.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping

import numpy as np

_OPSET, _IR_VERSION = 17, 8
_ELEMENT_TYPES = {  # TensorProto.DataType
    np.dtype(np.float32): 1, np.dtype(np.uint8): 2, np.dtype(np.int8): 3, np.dtype(np.int32): 6, np.dtype(np.int64): 7,
}  # fmt: skip
_VARINT, _BYTES, _FIXED32 = 0, 2, 5  # wire types


class Graph:
    """The nodes and weights of a model in the making. Its input is ``image``, its output must be named ``map``."""

    MICROSOFT = "com.microsoft"  # domain of operators that ONNX Runtime has beyond ONNX's own

    def __init__(self) -> None:
        self._nodes: list[bytes] = []
        self._weights: list[bytes] = []
        self._domains: list[str] = []

    def add(
        self, kind: str, inputs: list[str], output: str = "", domain: str = "", **attributes: int | list[int] | str
    ) -> str:
        """Add a node and return the name of its output."""
        output = output or f"t{len(self._nodes)}"
        fields = [_bytes(1, name.encode()) for name in inputs] + [_bytes(2, output.encode()), _bytes(4, kind.encode())]
        fields += [_bytes(5, _attribute(*item)) for item in attributes.items()]
        if domain:
            fields.append(_bytes(7, domain.encode()))
            self._domains += [domain] * (domain not in self._domains)
        self._nodes.append(b"".join(fields))
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
        """Add constant integers ``(n,)`` and return their name."""
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
                *(_bytes(8, _bytes(1, domain.encode()) + _integer(2, 1)) for domain in self._domains),
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
