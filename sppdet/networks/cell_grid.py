"""Where a network's cells lie in its input: stride and first centre, derived from its layers.

Another network, or another cut, needs no table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import fx, nn


@dataclass(frozen=True)
class CellGrid:
    """Where a trunk's cells lie in its input: cell i is centred on pixel ``centre + stride * i`` (0-based).

    Attributes:
        stride: pixels between the centres of neighbouring cells.
        centre: pixel on which cell 0 is centred.
    """

    stride: int
    centre: float


def cell_grid(trunk: nn.Module) -> CellGrid:
    """Derive the grid of a trunk's output from its conv and pool layers.

    A layer of kernel k, stride s, padding p and dilation d moves the first centre by ``(k - 1) * d / 2 - p`` strides of
    its input and multiplies the stride by s. Zeros that `nn.ZeroPad2d` adds on the left, and as many at the top, move
    it back by their number.

    Raises:
        ValueError: branches of different grids meet, in a residual sum or a concatenation.

    Examples:
        >>> from torch import nn
        >>> cell_grid(nn.Sequential(nn.Conv2d(3, 8, kernel_size=7, stride=2), nn.ReLU(), nn.MaxPool2d(2)))
        CellGrid(stride=4, centre=4.0)
    """
    return list(_cell_grids(trunk).values())[-1]


def _cell_grids(trunk: nn.Module) -> dict[str, CellGrid]:
    """Return the grid after every step of a trunk, in the order they run; the step of a layer has the layer's name."""
    from torch import fx, nn  # late: the grid of a trunk in ONNX form is known without torch

    grids: dict[fx.Node, CellGrid] = {}
    traced = fx.symbolic_trace(trunk)
    modules = dict(traced.named_modules())
    for node in traced.graph.nodes:
        inputs = {grids[parent] for parent in node.all_input_nodes} or {CellGrid(1, 0.0)}
        if len(inputs) != 1:
            raise ValueError(f"branches of different stride or centre meet at {node.name}: {inputs}")
        grid = inputs.pop()
        stride, centre = grid.stride, grid.centre
        layer = modules.get(node.target) if node.op == "call_module" else None
        if isinstance(layer, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)):
            kernel, step, padding, dilation = (
                int(value[0] if isinstance(value, tuple) else value)
                for value in (layer.kernel_size, layer.stride, layer.padding, getattr(layer, "dilation", 1))
            )
            centre += stride * ((kernel - 1) * dilation / 2 - padding)
            stride *= step
        elif isinstance(layer, nn.ZeroPad2d):
            left, _, top, _ = layer.padding
            if left != top:
                raise ValueError(f"{node.name} pads {left} columns on the left but {top} rows at the top")
            centre -= stride * left
        grids[node] = CellGrid(stride, centre)
    return {str(node.target): grid for node, grid in grids.items()}


def freeze(trunk: nn.Module, stride: int) -> None:
    """Fix the layers whose output cells are at most ``stride`` pixels apart, and let all others train.

    Fast R-CNN (arXiv 1504.08083, section 4.5) fixes conv1 and conv2 of VGG16, its layers up to stride 2, and learns
    nearly as well as without.

    Args:
        trunk: its parameters' ``requires_grad`` is set.
        stride: in pixels of the trunk's input; 0 lets every layer train.
    """
    grids = _cell_grids(trunk)
    for name, layer in trunk.named_modules():
        for parameter in layer.parameters(recurse=False):
            parameter.requires_grad_(grids[name].stride > stride)
