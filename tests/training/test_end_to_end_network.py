"""The network of end-to-end training: whitened shifts, the scale on the maps, and batch norm."""

from __future__ import annotations

import torch
from torch import nn

from sppdet.networks.backbone import Backbone
from sppdet.networks.fc_head import Head
from sppdet.training.end_to_end_network import EndToEndNetwork


def test_shifts_are_equal_before_and_after_unwhitening():
    network = EndToEndNetwork(nn.Identity(), Head(4, 4, "fc7", dropout=0.0), classes=2)
    network.mean.copy_(torch.randn(2, 4))
    network.deviation.copy_(torch.rand(2, 4) + 0.5)
    nn.init.normal_(network.move.weight)
    pooled = torch.randn(3, 4)
    _, whitened = network(pooled)
    expected = whitened * network.deviation + network.mean
    targets = expected[:, 1].detach().numpy()  # whitened shifts of class 1 are learned from plain ones
    torch.testing.assert_close(network.whitened(targets, torch.tensor([1, 1, 1])), whitened[:, 1])
    network.unwhiten()
    torch.testing.assert_close(network(pooled)[1], expected)


def test_maps_have_the_scale_of_the_head():
    backbone = Backbone.create("small", "random", "cpu", "float32")
    network = EndToEndNetwork(backbone.trunk, Head(128, 4, "fc7", scale=0.25), classes=2)
    pixels = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(network.maps(backbone, pixels), 0.25 * backbone.trunk(pixels))


def test_batch_norm_keeps_its_statistics_in_training():
    backbone = Backbone.create("small", "random", "cpu", "float32")
    network = EndToEndNetwork(backbone.trunk, Head(128, 4, "fc7"), classes=2).train()
    before = {name: value.clone() for name, value in network.trunk.state_dict().items()}
    network.maps(backbone, torch.rand(2, 3, 64, 64))
    assert all(torch.equal(value, before[name]) for name, value in network.trunk.state_dict().items())
    assert network.head.training  # dropout is on
