"""Where the cells of networks lie in their input, and which layers are fixed in training."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from sppdet.networks.cell_grid import cell_grid, freeze
from sppdet.networks.trunk_output import CellGrid
from sppdet.networks.trunks import build_trunk


@pytest.mark.parametrize(
    ("name", "stride", "centre", "cells"),
    [
        # Centre of the first cell and cells of a 224 x 224 image, as published for these networks at this cut.
        ("alexnet", 16, 15.0, 13),
        ("vgg16", 16, 7.5, 14),
        ("resnet18", 16, 0.0, 14),
        ("resnet50", 16, 0.0, 14),
        # SqueezeNet 1.0: conv 7/2 without padding: centre 3; three pools 3/2 without padding add 1 x 2, 1 x 4, 1 x 8.
        ("squeezenet1_0", 16, 17.0, 13),
        ("squeezenet1_1", 16, 15.0, 13),  # conv 3/2: centre 1, then the pools of 1.0
        ("small", 16, 0.0, 14),
        # SAME padding of even sides at stride 2 has no zeros before kernel 3, one before kernel 5: 1 + 2 + 4 + 8.
        ("efficientnet_lite0", 16, 15.0, 14),
        ("efficientnet_lite1", 16, 15.0, 14),
        ("efficientnet_lite2", 16, 15.0, 14),
    ],
)
def test_cells_of_known_networks(name, stride, centre, cells):
    with torch.device("meta"):  # shapes only: no weights are drawn
        trunk = build_trunk(name)
        assert trunk(torch.zeros(1, 3, 224, 224)).shape[2:] == (cells, cells)
    assert cell_grid(trunk) == CellGrid(stride, centre)


def averaging(trunk: nn.Module) -> nn.Module:
    """Return a trunk of the same geometry whose output depends on all pixels: mean for max, weights all positive."""
    trunk = copy.deepcopy(trunk).double().eval()
    for parent in list(trunk.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.MaxPool2d):
                pool = nn.AvgPool2d(child.kernel_size, child.stride, child.padding, child.ceil_mode)
                setattr(parent, name, pool)
            elif isinstance(child, nn.Conv2d):
                nn.init.constant_(child.weight, 1 / child.weight[0].numel())
                if child.bias is not None:
                    nn.init.zeros_(child.bias)
    return trunk


@pytest.mark.parametrize("name", ["squeezenet1_0", "resnet18", "small"])
def test_the_receptive_field_of_a_cell_is_centred_where_the_grid_says(name):
    trunk = build_trunk(name)
    grid = cell_grid(trunk)
    x = torch.ones(1, 3, 320, 320, dtype=torch.float64, requires_grad=True)
    row, column = 10, 9  # far enough from the borders for the whole receptive field
    averaging(trunk)(x)[0, :, row, column].sum().backward()
    seen = x.grad[0].sum(0) > 0
    for axis, cell in ((0, row), (1, column)):
        pixels = seen.any(1 - axis).nonzero()
        first, last = pixels.min().item(), pixels.max().item()
        assert first > 0 and last < 319
        assert (first + last) / 2 == grid.centre + grid.stride * cell


def test_branches_of_different_centre_are_refused():
    class Crooked(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, padding=0)

        def forward(self, x):
            return self.a(x) + self.b(x)

    with pytest.raises(ValueError, match="branches of different stride or centre meet at add"):
        cell_grid(Crooked())


def test_zeros_on_the_left_move_the_centre_back():
    trunk = nn.Sequential(nn.Conv2d(3, 4, 1, stride=2), nn.ZeroPad2d((1, 2, 1, 2)), nn.Conv2d(4, 4, 5, stride=2))
    assert cell_grid(trunk) == CellGrid(4, 2 * (2 - 1))
    with pytest.raises(ValueError, match="pads 1 columns on the left but 0 rows at the top"):
        cell_grid(nn.Sequential(nn.ZeroPad2d((1, 0, 0, 0))))


def test_dilation_moves_the_centre():
    # (3 - 1) * 2 / 2 - 0 = 2 pixels of stride 1; then (5 - 1) / 2 - 1 = 1 step of stride 3.
    trunk = nn.Sequential(nn.Conv2d(3, 4, 3, stride=3, dilation=2), nn.Conv2d(4, 4, 5, padding=1))
    assert cell_grid(trunk) == CellGrid(3, 2 + 3)


@pytest.mark.parametrize(
    ("name", "stride", "fixed"),
    [
        ("vgg16", 2, {"features.0", "features.2", "features.5", "features.7"}),  # conv1 and conv2, as in Fast R-CNN
        ("alexnet", 4, {"features.0"}),
        ("small", 0, set()),
        (
            "efficientnet_lite0",
            2,
            {"_conv_stem", "_bn0", "_blocks.1._expand_conv", "_blocks.1._bn0"}
            | {f"_blocks.0.{layer}" for layer in ("_depthwise_conv", "_bn1", "_project_conv", "_bn2")},
        ),
    ],
)
def test_layers_up_to_a_stride_are_fixed(name, stride, fixed):
    with torch.device("meta"):
        trunk = build_trunk(name)
    freeze(trunk, stride)
    frozen = {key.rpartition(".")[0] for key, value in trunk.named_parameters() if not value.requires_grad}
    assert frozen == fixed
    freeze(trunk, 0)
    assert all(value.requires_grad for value in trunk.parameters())
