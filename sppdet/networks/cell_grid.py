"""Where a network's cells lie in its input: stride and first centre, derived from its layers.

Another network, or another cut, needs no table.
"""

from __future__ import annotations

from torch import fx, nn

from sppdet.networks.trunk_output import CellGrid

UNKNOWN = CellGrid(0, 0.0)  # after a step that leaves no cells in even rows and columns

_GLOBAL = {"mean", "amax", "adaptive_avg_pool2d", "adaptive_max_pool2d"}  # functions that read the whole map
# Functions and layers after which a cell is no longer centred on a place of the image, or on another one.
_MIXING = {
    "roll", "flip", "unfold", "matmul", "bmm", "baddbmm", "einsum", "scaled_dot_product_attention", "interpolate",
    "grid_sample", "pixel_shuffle", "pixel_unshuffle", "conv_transpose2d", "upsample",
}  # fmt: skip
_MIXING_LAYERS = (nn.MultiheadAttention, nn.ConvTranspose2d, nn.Upsample, nn.PixelShuffle, nn.PixelUnshuffle, nn.Unfold)
PADDING_LAYERS = (nn.ZeroPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.ConstantPad2d)


def cell_grid(trunk: nn.Module) -> CellGrid:
    """Derive the grid of a trunk's output from its conv and pool layers.

    A layer of kernel k, stride s, padding p and dilation d moves the first centre by ``(k - 1) * d / 2 - p`` strides of
    its input and multiplies the stride by s. Pixels that a layer such as `nn.ZeroPad2d` adds on the left, and as many
    at the top, move it back by their number.

    Raises:
        ValueError: branches of different grids meet, in a residual sum or a concatenation, or cells are mixed.

    Examples:
        >>> cell_grid(nn.Sequential(nn.Conv2d(3, 8, kernel_size=7, stride=2), nn.ReLU(), nn.MaxPool2d(2)))
        CellGrid(stride=4, centre=4.0)
    """
    grid = list(cell_grids(fx.symbolic_trace(trunk)).values())[-1]
    if grid is None:
        raise ValueError("the output has no cells")
    return grid


def cell_grids(traced: fx.GraphModule, problems: list[str] | None = None) -> dict[fx.Node, CellGrid | None]:
    """Return the grid after every step of a traced network, in the order they run.

    The grid of what belongs to no place of the image is None, such as that of weights, or of the mean of a map.

    Args:
        traced: the network.
        problems: where a step has no grid, the grid is `UNKNOWN`, and the reason is appended; None raises an error.

    Raises:
        ValueError: as `cell_grid`.
    """
    grids: dict[fx.Node, CellGrid | None] = {}
    for node in traced.graph.nodes:
        layer = traced.get_submodule(str(node.target)) if node.op == "call_module" else None
        try:
            grids[node] = _grid_after(node, layer, {grids[parent] for parent in node.all_input_nodes} - {None})
        except ValueError as error:
            if problems is None:
                raise
            problems.append(str(error))
            grids[node] = UNKNOWN
    return grids


def _grid_after(node: fx.Node, layer: nn.Module | None, inputs: set[CellGrid | None]) -> CellGrid | None:
    """Return the grid after one step, which runs ``layer`` or a function, from the grids of what it reads."""
    if node.op == "placeholder":
        return CellGrid(1, 0.0)
    if not inputs:
        return None
    if len(inputs) != 1:
        raise ValueError(f"branches of different stride or centre meet at {node.name}: {inputs}")
    grid = inputs.pop()
    function = getattr(node.target, "__name__", node.target) if layer is None else ""
    if grid is None or grid == UNKNOWN:
        return grid
    if function in _GLOBAL or isinstance(layer, (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)):
        return None
    if function in _MIXING or isinstance(layer, _MIXING_LAYERS):
        raise ValueError(f"{node.name} mixes cells or moves them")
    if isinstance(layer, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)):
        (stride, offset), across = (_geometry(layer, axis) for axis in (0, 1))
        if (stride, offset) != across:
            raise ValueError(f"{node.name} moves rows otherwise than columns")
        return CellGrid(grid.stride * stride, grid.centre + grid.stride * offset)
    if isinstance(layer, PADDING_LAYERS) or function == "pad":
        widths = layer.padding if layer else node.kwargs.get("pad") or node.args[1]
        left, _, top, _ = (*widths, 0, 0)[:4]  # type: ignore[misc]
        if isinstance(left, fx.Node) or isinstance(top, fx.Node):
            raise ValueError(f"{node.name} pads on the left by a number that depends on the size of the image")
        if left != top:
            raise ValueError(f"{node.name} pads {left} columns on the left but {top} rows at the top")
        return CellGrid(grid.stride, grid.centre - grid.stride * left)
    return grid


def _geometry(layer: nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d, axis: int) -> tuple[int, float]:
    """Return the stride of a layer, and how many cells of its input lie before the centre of its first output."""
    kernel, stride, dilation = (
        number[axis] if isinstance(number, tuple) else number
        for number in (layer.kernel_size, layer.stride, getattr(layer, "dilation", 1))
    )
    span = (int(kernel) - 1) * int(dilation)
    if layer.padding == "same":
        return int(stride), span % 2 / 2
    padding = 0 if layer.padding == "valid" else layer.padding
    padding = padding[axis] if isinstance(padding, tuple) else padding
    return int(stride), span / 2 - int(padding)


def freeze(trunk: nn.Module, stride: int) -> None:
    """Fix the layers whose output cells are at most ``stride`` pixels apart, and let all others train.

    Fast R-CNN (arXiv 1504.08083, section 4.5) fixes conv1 and conv2 of VGG16, its layers up to stride 2, and learns
    nearly as well as without.

    Args:
        trunk: its parameters' ``requires_grad`` is set.
        stride: in pixels of the trunk's input; 0 lets every layer train.
    """
    grids = cell_grids(fx.symbolic_trace(trunk))
    strides = {str(node.target): _stride(node, grids) for node in grids}
    for name, parameter in trunk.named_parameters():
        layer = name.rpartition(".")[0]
        parameter.requires_grad_(strides[layer if layer in strides else name] > stride)


def _stride(node: fx.Node, grids: dict[fx.Node, CellGrid | None]) -> int:
    """Return the stride of the cells that a step computes, or that the numbers it computes are for."""
    while (grid := grids[node]) is None and node.users:
        node = next(iter(node.users))
    return grid.stride if grid else 0
