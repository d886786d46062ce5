"""Trunks that end in named layers, several side by side."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from sppdet.networks.backbone import Backbone
from sppdet.networks.cell_grid import cell_grid
from sppdet.networks.cut import cut_at
from sppdet.networks.trunk_output import Cut
from sppdet.networks.trunks import build_trunk, restore_trunk
from sppdet.utils.errors import SppdetError

LITE = "efficientnet_lite0"


def outputs_of(trunk: nn.Module, names: list[str], x: torch.Tensor) -> list[torch.Tensor]:
    """Return the outputs of modules in one run of a whole trunk, copied before another layer writes into them."""
    outputs: dict[str, torch.Tensor] = {}
    for name in names:
        trunk.get_submodule(name).register_forward_hook(
            lambda *call, name=name: outputs.update({name: call[2].clone()})
        )
    trunk(x)
    return [outputs[name] for name in names]


@pytest.mark.parametrize(
    ("network", "layers"),
    [
        (LITE, ["_blocks.10", "_blocks.15"]),
        (LITE, ["_blocks.15", "_blocks.11.expansion", "_blocks.11._bn0"]),  # ReLU6 writes into its input elsewhere
        ("vgg16", ["features.28", "features.29"]),
        ("resnet18", ["layer3.0", "layer3.1.bn2", "layer3.1"]),
        ("squeezenet1_0", ["features.12"]),
    ],
)
def test_the_map_holds_the_outputs_of_the_layers_in_the_order_of_their_names(network, layers):
    whole, trunk = (build_trunk(network, 1, cut).eval() for cut in (Cut(), Cut(tuple(layers))))
    x = torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(trunk(x), torch.cat(outputs_of(whole, layers, x), 1), rtol=0, atol=0)
    assert cell_grid(trunk) == cell_grid(whole)


def test_layers_after_the_last_one_are_gone():
    trunk = build_trunk(LITE, cut=Cut(("_blocks.8", "_blocks.10")))
    assert set(build_trunk(LITE).state_dict()) > set(trunk.state_dict())
    assert {key.split(".")[1] for key in trunk.state_dict() if key.startswith("_blocks.")} == {*map(str, range(11))}
    expansion = build_trunk(LITE, cut=Cut(("_blocks.11.expansion",)))
    assert {key for key in expansion.state_dict() if key.startswith("_blocks.11.") and key.endswith("weight")} == {
        "_blocks.11._expand_conv.weight",
        "_blocks.11._bn0.weight",
    }


def test_a_backbone_knows_the_channels_of_its_layers():
    cut = Cut(("_blocks.11.expansion", "_blocks.10"))
    backbone = Backbone.create(LITE, "random", "cpu", "float32", cut=cut)
    assert backbone.layer_channels == (672, 112) and backbone.channels == 784
    assert backbone(np.zeros((100, 64, 3), np.uint8), 1.0).shape == (7, 4, 784)
    plain = Backbone.create(LITE, "random", "cpu", "float32")
    assert backbone.settings()["layers"] == [*cut.layers] and "layers" not in plain.settings()
    assert plain.description() == {"name": LITE, "precision": "float32"}
    assert Cut.restore(backbone.description()) == cut


def test_weights_restore_the_trunk():
    cut = Cut(("_blocks.10", "_blocks.11"))
    trunk = build_trunk(LITE, 1, cut).eval()
    again = restore_trunk(LITE, trunk.state_dict(), cut).eval()
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(again(x), trunk(x), rtol=0, atol=0)
    with pytest.raises(RuntimeError):
        restore_trunk(LITE, trunk.state_dict())


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (["_blocks.11.expansio"], "no layer '_blocks.11.expansio'; did you mean '_blocks.11.expansion'?"),
        (["zzz"], "no layer 'zzz'; its last is '_blocks'"),
        (
            ["_blocks.10", "_blocks.3"],
            "_blocks.3 of efficientnet_lite0 has a cell per 8 pixels from pixel 7 on where a cell per 16 pixels from",
        ),
    ],
)
def test_layers_that_do_not_fit_are_refused(layers, message):
    with pytest.raises(SppdetError) as caught:
        build_trunk(LITE, cut=Cut(tuple(layers)))
    assert str(caught.value).startswith("backbone.layers: ") and message in str(caught.value)


def test_a_layer_that_another_adds_to_keeps_its_output():
    class Adds(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.same = nn.Conv2d(3, 4, 1), nn.Identity()

        def forward(self, x):
            y = self.conv(x)
            y += 1
            return torch.nn.functional.relu(self.same(y), inplace=True)

    whole, x = Adds(), torch.randn(1, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(cut_at(whole, "adds", ["conv"])(x), whole.conv(x))
