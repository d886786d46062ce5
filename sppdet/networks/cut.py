"""Cutting a network at layers: only what they need is computed, in one pass, and their maps lie side by side."""

from __future__ import annotations

import difflib
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from sppdet.config import BackboneSettings
from sppdet.networks.cell_grid import CellGrid, cell_grids
from sppdet.utils import SppdetError

_ALIASES = (nn.Identity, nn.Dropout, nn.Dropout2d)  # layers whose output may be their input itself


@dataclass(frozen=True)
class Cut:
    """Where a network ends.

    Attributes:
        layers: names of the layers whose outputs are concatenated along the channels, in this order; none is the
            network's last output.
    """

    layers: tuple[str, ...] = ()

    def description(self) -> dict[str, Any]:
        """Return the fields that differ from their defaults; JSON-like, for model files and keys."""
        return {"layers": list(self.layers)} if self.layers else {}

    @classmethod
    def of(cls, settings: BackboneSettings) -> Cut:
        """Return the cut that a configuration describes."""
        return cls(settings.layers)

    @classmethod
    def restore(cls, description: dict[str, Any]) -> Cut:
        """Return the cut of a `description`, which may hold other entries."""
        return cls(tuple(description.get("layers", ())))


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


def cut_at(network: nn.Module, name: str, layers: Sequence[str]) -> fx.GraphModule:
    """Cut a network after layers: layers that none of them needs are gone, and are never computed.

    Args:
        network: built with its layers, which the result shares.
        name: of the network, for messages.
        layers: names of modules of ``network``.

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
    traced = fx.GraphModule(network, tracer.trace(network))
    nodes = [_node_of(layer, tracer.outputs, name) for layer in layers]
    output = next(node for node in traced.graph.nodes if node.op == "output")
    grids = cell_grids(traced)
    for layer, node in zip(layers, nodes):
        if grids[node] != grids[output]:
            raise SppdetError(
                f"backbone.layers: {layer} has {_in_words(grids[node])}, but {name} {_in_words(grids[output])}; name "
                "layers that have the same cells"
            )
    with traced.graph.inserting_before(output):
        output.args = (traced.graph.call_function(torch.cat, (nodes, 1)) if len(nodes) > 1 else nodes[0],)
    traced.graph.eliminate_dead_code()
    traced.delete_all_unused_submodules()
    for node in nodes:
        _keep_output(traced, node)
    traced.recompile()
    return traced


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


def _in_words(grid: CellGrid) -> str:
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
