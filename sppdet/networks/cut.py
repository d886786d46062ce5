"""Cutting a network at layers: only what they need is computed, in one pass, and their maps lie side by side.

A network is traced (`torch.fx`), so that any layer can be its last, whatever the code of the network looks like.
"""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from sppdet.config import BackboneSettings
from sppdet.networks.cell_grid import PADDING_LAYERS, UNKNOWN, CellGrid, cell_grids
from sppdet.utils import SppdetError

STRIDE = 16  # pixels between the cells of a whole network's trunk
_PROBE = (160, 192)  # height and width of an image on which networks are tried
_FUNCTIONS_WITH_KERNELS = {"conv2d", "max_pool2d", "avg_pool2d", "pad"}
_ALIASES = (nn.Identity, nn.Dropout, nn.Dropout2d)  # layers whose output may be their input itself


@dataclass(frozen=True)
class Cut:
    """Where a network ends.

    Attributes:
        layers: names of the layers whose outputs are concatenated along the channels, in this order; none is the
            network's last output.
        dilate: whether layers after stride 16 keep it: they are dilated instead of strided.
    """

    layers: tuple[str, ...] = ()
    dilate: bool = False

    def description(self) -> dict[str, Any]:
        """Return the fields that differ from their defaults; JSON-like, for model files and keys."""
        return ({"layers": list(self.layers)} if self.layers else {}) | ({"dilate": True} if self.dilate else {})

    @classmethod
    def of(cls, settings: BackboneSettings) -> Cut:
        """Return the cut that a configuration describes."""
        return cls(settings.layers, settings.dilate)

    @classmethod
    def restore(cls, description: dict[str, Any]) -> Cut:
        """Return the cut of a `description`, which may hold other entries.

        Raises:
            SppdetError: its layers or its dilation are of another type.
        """
        return cls.of(BackboneSettings(layers=description.get("layers", ()), dilate=description.get("dilate", False)))


WHOLE = Cut()  # to the network's last output


class _Tracer(fx.Tracer):
    """Records the step of the graph that computes each module's output, of modules at every depth."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: dict[str, fx.Node] = {}

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Trace a module; one that runs several times is known by its last output."""
        output = super().call_module(m, forward, args, kwargs)
        if isinstance(output, fx.Proxy):
            self.outputs[self.path_of_module(m)] = output.node
        return output


def cut_at(trunk: nn.Module, name: str, layers: Sequence[str]) -> fx.GraphModule:
    """Cut a trunk after layers: layers that none of them needs are gone, and are never computed.

    Args:
        trunk: built with its layers, which the result shares.
        name: of the network, for messages.
        layers: names of modules of ``trunk``.

    Returns:
        A module whose output is the concatenation of the layers' outputs along the channels. Its state_dict has the
        network's keys.

    Raises:
        SppdetError: a layer that the network does not have, or whose cells lie elsewhere than the network's last.

    Examples:
        >>> whole = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1), nn.Conv2d(5, 6, 1))
        >>> trunk = cut_at(whole, "three layers", ["1", "0"])
        >>> trunk(torch.zeros(1, 3, 2, 2)).shape, layer_channels(trunk, torch.zeros(1, 3, 2, 2))
        (torch.Size([1, 9, 2, 2]), (5, 4))
    """
    tracer = _Tracer()
    traced = fx.GraphModule(trunk, tracer.trace(trunk))
    last = next(node for node in traced.graph.nodes if node.op == "output").all_input_nodes[0]
    nodes = [_node_of(layer, tracer.outputs, name) for layer in layers]
    _check_cells(dict(zip(layers, nodes)), cell_grids(traced), last, name)
    return _ending_at(traced, nodes)


def cut_network(network: nn.Module, name: str, cut: Cut) -> fx.GraphModule:
    """Cut a whole network at stride 16, wherever its code comes from.

    Without ``cut.layers`` it ends in the last layer with a cell per 16 pixels that all later ones are computed from.

    Args:
        network: for the classification of images; its layers are changed by ``cut.dilate``, and shared by the result.
        name: of the network, for messages.
        cut: where it ends.

    Raises:
        SppdetError: the network cannot be cut, or has no such layer; the message says why.
    """
    network.eval()
    tracer, problems = _Tracer(), list[str]()
    try:
        traced = fx.GraphModule(network, tracer.trace(network))
    except Exception as error:  # whatever the code of the network raises on a stand-in for an image
        raise _uncut(name, f"its layers cannot be traced ({_first_line(error)})") from None
    if cut.dilate:
        try:
            _dilate(traced)
        except ValueError as error:
            raise _undilated(name, str(error)) from None
    shapes = _Shapes(traced)
    try:
        with torch.inference_mode():
            shapes.run(torch.zeros(1, 3, *_PROBE, device=next(network.parameters()).device))
    except Exception as error:
        reason = f"it does not run on {_PROBE[1]} x {_PROBE[0]} pixels ({_first_line(error)})"
        raise _undilated(name, reason) if cut.dilate else _uncut(name, reason) from None
    grids = cell_grids(traced, problems)
    usable = [node for node in _bottlenecks(traced.graph) if _is_map(shapes.shapes[node], grids[node])]
    if not usable:
        raise _uncut(name, problems[0] if problems else f"no layer has a cell per {STRIDE} pixels")
    nodes = [_node_of(layer, tracer.outputs, name) for layer in cut.layers] or usable[-1:]
    _check_cells(dict(zip(cut.layers, nodes)), grids, usable[-1], name)
    for layer, node in zip(cut.layers, nodes):
        if not _is_map(shapes.shapes[node], grids[node]):
            raise SppdetError(f"backbone.layers: the output of {layer} of {name} is no feature map; name another layer")
    return _ending_at(traced, nodes)


def _uncut(name: str, reason: str) -> SppdetError:
    return SppdetError(f"backbone.name: {name} cannot be cut at stride {STRIDE}: {reason}; choose another network")


def _undilated(name: str, reason: str) -> SppdetError:
    return SppdetError(f"backbone.dilate: {name} cannot be dilated: {reason}; set it to false")


def _first_line(error: Exception) -> str:
    line = (str(error).splitlines() or [type(error).__name__])[0][:120]
    return re.sub(r"Proxy\(\w+\)", "another", line)  # what stands for an image's size while a network is traced


def _ending_at(traced: fx.GraphModule, nodes: list[fx.Node]) -> fx.GraphModule:
    """Make the outputs of ``nodes`` those of the module, and drop all that they do not need."""
    output = next(node for node in traced.graph.nodes if node.op == "output")
    with traced.graph.inserting_before(output):
        output.args = (traced.graph.call_function(torch.cat, (nodes, 1)) if len(nodes) > 1 else nodes[0],)
    for node in reversed(traced.graph.nodes):
        if node.target is torch._assert:  # would keep the layers alive whose outputs it checks
            traced.graph.erase_node(node)
    traced.graph.eliminate_dead_code()
    traced.delete_all_unused_submodules()
    for node in nodes:
        _keep_output(traced, node)
    return fx.GraphModule(traced, traced.graph)  # without weights that belong to no layer that is left


def _check_cells(layers: dict[str, fx.Node], grids: dict[fx.Node, CellGrid | None], last: fx.Node, name: str) -> None:
    """Refuse layers of another stride than that of ``last``, or whose cells are centred otherwise than the first's."""
    first = None
    for layer, node in layers.items():
        grid, wanted = grids[node], grids[last]
        first = first or grid
        if grid is None or wanted is None or grid.stride != wanted.stride or grid != first:
            others = _in_words(wanted if first is None or first == grid else first)
            raise SppdetError(
                f"backbone.layers: {layer} of {name} has {_in_words(grid)} where {others} is needed; name layers that "
                "have the same cells"
            )


class _Shapes(fx.Interpreter):
    """Runs a network and records the shape of every step's output; None for what is no tensor."""

    def __init__(self, traced: fx.GraphModule):
        super().__init__(traced)
        self.shapes: dict[fx.Node, tuple[int, ...] | None] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run a step."""
        result = super().run_node(n)
        self.shapes[n] = tuple(result.shape) if isinstance(result, torch.Tensor) else None
        return result


def _is_map(shape: tuple[int, ...] | None, grid: CellGrid | None) -> bool:
    """Whether an output has a cell per 16 pixels, and as many as an image of `_PROBE` pixels has of them."""
    if grid is None or grid.stride != STRIDE or shape is None or len(shape) != 4:
        return False
    # The cells lie evenly between the borders, but for the pixels that a stride leaves over.
    spans = ((cells - 1) * STRIDE + 2 * grid.centre for cells in shape[2:])
    return all(abs(span - (side - 1)) < 2 * STRIDE for span, side in zip(spans, _PROBE))


def _bottlenecks(graph: fx.Graph) -> list[fx.Node]:
    """Return the steps whose output is all that the later steps read, weights apart."""
    steps = [node for node in graph.nodes if node.op != "get_attr"]
    position = {node: i for i, node in enumerate(steps)}
    bottlenecks, needed = [], 0  # `needed`: the last step that reads an output of the steps before this one
    for i, node in enumerate(steps):
        if needed <= i and node.op != "placeholder" and node.op != "output":
            bottlenecks.append(node)
        needed = max([needed, *(position[user] for user in node.users)])
    return bottlenecks


def _dilate(traced: fx.GraphModule) -> None:
    """Give the layers that would have a stride beyond 16 the stride 1, and dilate those that follow.

    Far from the borders each cell is then one that the network, as it was, has on an image moved by a multiple of 16
    pixels.

    Raises:
        ValueError: a layer cannot be dilated.
    """
    reached: dict[fx.Node, tuple[int, int]] = {}  # stride and dilation after each step
    changed: set[nn.Module] = set()
    for node in traced.graph.nodes:
        stride = max((reached[parent][0] for parent in node.all_input_nodes), default=1)
        dilation = max((reached[parent][1] for parent in node.all_input_nodes), default=1)
        layer = traced.get_submodule(str(node.target)) if node.op == "call_module" else None
        step = 1
        if isinstance(layer, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)):
            step = layer.stride[0] if isinstance(layer.stride, tuple) else layer.stride
            if dilation > 1 or stride * step > STRIDE:
                if layer in changed:
                    raise ValueError(f"{node.name} runs several times")
                changed.add(layer)
                _set_geometry(layer, 1 if stride * step > STRIDE else step, dilation, node.name)
        elif dilation > 1 and (
            isinstance(layer, PADDING_LAYERS) or getattr(node.target, "__name__", "") in _FUNCTIONS_WITH_KERNELS
        ):
            raise ValueError(f"{node.name} reads or adds neighbouring cells")
        reached[node] = (stride, dilation * step) if stride * step > STRIDE else (stride * step, dilation)


def _set_geometry(layer: nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d, stride: int, dilation: int, name: str) -> None:
    """Set the stride of a layer and multiply its dilation."""
    conv = isinstance(layer, nn.Conv2d)
    layer.stride = (stride, stride) if conv else stride
    if dilation == 1:
        return
    if isinstance(layer, nn.AvgPool2d) or isinstance(layer.padding, str) or (conv and layer.padding_mode != "zeros"):
        raise ValueError(f"{name} has no dilation")
    layer.dilation = _times(layer.dilation, dilation)
    layer.padding = _times(layer.padding, dilation)


def _times(number: int | tuple[int, ...], factor: int) -> int | tuple[int, ...]:
    return tuple(factor * n for n in number) if isinstance(number, tuple) else factor * number


def layer_channels(trunk: nn.Module, x: torch.Tensor) -> tuple[int, ...]:
    """Return the channels of each of two or more layers of a trunk of `cut_at`, which is run on ``x``."""
    channels: tuple[int, ...] = ()

    class Watch(fx.Interpreter):
        def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            nonlocal channels
            if target is torch.cat:  # the last one is that of the layers
                channels = tuple(layer.shape[1] for layer in args[0])
            return super().call_function(target, args, kwargs)

    Watch(trunk).run(x)
    return channels


def _node_of(layer: str, outputs: dict[str, fx.Node], name: str) -> fx.Node:
    """Return the step that computes the output of a layer."""
    if layer in outputs:
        return outputs[layer]
    nearest = difflib.get_close_matches(layer, outputs, n=1)
    hint = f"did you mean '{nearest[0]}'?" if nearest else f"its last is '{[*outputs][-1]}'"
    raise SppdetError(f"backbone.layers: {name} has no layer '{layer}'; {hint}")


def _in_words(grid: CellGrid | None) -> str:
    if grid is None or grid == UNKNOWN:
        return "no cells"
    return f"a cell per {grid.stride} pixels from pixel {grid.centre:g} on"


def _keep_output(traced: fx.GraphModule, node: fx.Node) -> None:
    """Keep the layers that read the output of ``node`` from writing into it."""
    for user in [*node.users]:
        layer = traced.get_submodule(str(user.target)) if user.op == "call_module" else None
        if getattr(layer, "inplace", False):
            layer.inplace = False  # type: ignore[union-attr]
        elif user.kwargs.get("inplace"):
            user.kwargs = {**user.kwargs, "inplace": False}
        elif user.target is operator.iadd:
            user.target = operator.add
        if isinstance(layer, _ALIASES):
            _keep_output(traced, user)
