"""fc6 and fc7: which layer the SVMs see, dropout, the layers of torchvision's networks, and truncation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from sppdet.networks.fc_head import Head
from sppdet.networks.trunks import NETWORKS
from sppdet.ops.pooling import pyramid_pool
from sppdet.utils.errors import SppdetError


def known(layer: str, **changes) -> Head:
    """Return a head of one input x and two units: fc6 is (x, -x), fc7 is (2 h0 + 1, h1 - 1)."""
    head = Head(1, 2, layer, scale=3.0, **changes)
    with torch.no_grad():
        head.fc6.weight.copy_(torch.tensor([[1.0], [-1.0]]))
        head.fc7.weight.copy_(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
        head.fc7.bias.copy_(torch.tensor([1.0, -1.0]))
    return head


def test_layers_by_hand():
    # The input 2 is scaled to 6: fc6 gives relu(6, -6), fc7 relu(2 * 6 + 1, 0 - 1).
    pooled = torch.tensor([[2.0]])
    assert known("fc6").vectors(pooled).tolist() == [[6, 0]]
    assert known("fc7").vectors(pooled).tolist() == [[13, 0]]


def test_behind_the_pooled_vector_fc7_is_balanced():
    head = known("pool5+fc7", balance=0.5)
    assert head.vectors(torch.tensor([[2.0]])).tolist() == [[6.5, 0]]
    assert head.concat_pooled and not known("fc7").concat_pooled


@pytest.mark.parametrize("layer", ["fc6", "fc7"])
def test_vectors_have_no_dropout_even_in_training_mode(layer):
    head = Head(10, 40, layer, dropout=0.5).train()
    pooled = torch.rand(3, 10)
    assert torch.equal(head.vectors(pooled), head.eval().vectors(pooled))
    assert head.vectors(pooled).dtype == torch.float32 and head.vectors(pooled).shape == (3, head.dimension) == (3, 40)


@pytest.mark.parametrize("layer", ["fc6", "fc7"])
def test_bfloat16_is_near_and_follows_the_weights(layer):
    torch.manual_seed(0)
    head, pooled = Head(300, 40, layer, scale=0.3).eval(), torch.rand(5, 300)
    expected = head.vectors(pooled)
    head.use_bfloat16 = True
    rounded = head.vectors(pooled)
    assert rounded.dtype == torch.float32 and not torch.equal(rounded, expected)
    np.testing.assert_allclose(rounded, expected, atol=0.02 * float(expected.max()))
    assert torch.equal(head.vectors(pooled.bfloat16()), rounded)
    head.train()
    nn.init.zeros_(head.fc6.weight)
    nn.init.zeros_(head.fc7.weight)
    assert not head.eval().vectors(pooled).any()


def test_forward_is_fc7_and_drops_out_in_training_only():
    torch.manual_seed(0)
    head = Head(10, 2000, "fc6", scale=2.0, dropout=0.25).eval()
    pooled = torch.rand(4, 10)
    expected = torch.relu(head.fc7(torch.relu(head.fc6(pooled * 2))))
    torch.testing.assert_close(head(pooled), expected)
    # With fc6 at 0, fc7 is its biases: a quarter of the outputs is dropped and the others are 4 / 3 of the bias.
    nn.init.zeros_(head.fc6.weight)
    nn.init.ones_(head.fc7.bias)
    dropped = head.train()(pooled)
    values, counts = dropped.unique(return_counts=True)
    torch.testing.assert_close(values, torch.tensor([0, 4 / 3]))
    assert counts[0] / 8000 == pytest.approx(0.25, abs=0.02)


@pytest.fixture
def eight_units(monkeypatch):
    """Let the fc layers of torchvision's networks have 8 units in place of 4096."""
    for name, entry in NETWORKS.items():
        if entry.fc_layers:
            monkeypatch.setitem(NETWORKS, name, replace(entry, fc_layers=replace(entry.fc_layers, units=8)))


def torchvision_network(name: str) -> tuple[nn.Module, list[int]]:
    """Return a torchvision network whose fc layers have 8 units, and the positions of fc6 and fc7 in its classifier."""
    with torch.device("meta"):  # the other layers are shapes only
        whole = torchvision.models.get_model(name, weights=None).eval()
    positions = [i for i, layer in enumerate(whole.classifier) if isinstance(layer, nn.Linear)][:2]
    inputs = whole.classifier[positions[0]].in_features
    for position, width in zip(positions, (inputs, 8)):
        whole.classifier[position] = nn.Linear(width, 8)
    return whole, positions


@pytest.mark.parametrize(("name", "cut", "cells"), [("alexnet", 12, 13), ("vgg16", 30, 14)])
def test_the_fc_layers_of_a_network_give_what_they_give_in_it(name, cut, cells, eight_units):
    torch.manual_seed(0)
    whole, positions = torchvision_network(name)
    level = NETWORKS[name].fc_layers.bins
    channels = whole.classifier[positions[0]].in_features // level**2
    feature_map = torch.rand(channels, cells, cells)  # of a 224 x 224 image
    pooled = pyramid_pool(feature_map.permute(1, 2, 0).contiguous().numpy(), np.array([[0, 0, cells, cells]]), [level])
    inputs = whole.avgpool(whole.features[cut:](feature_map[None])).flatten(1)
    head = Head.of_network(name, whole.state_dict(), 0.5)
    for head.layer, position in zip(("fc6", "fc7"), positions):
        expected = whole.classifier[: position + 2](inputs).detach()
        assert expected.any()
        np.testing.assert_allclose(head.vectors(torch.from_numpy(pooled).flatten(1)), expected, atol=1e-5)
    description = {"units": 8, "layer": "fc7", "scale": 1.0, "dropout": 0.5, "ranks": (0, 0), "balance": 1.0}
    assert head.description() == description


def test_weights_without_fc_layers_are_refused(eight_units):
    state = torchvision_network("alexnet")[0].state_dict()
    for wrong in (
        {key: value for key, value in state.items() if not key.startswith("classifier")},  # a trunk alone
        state | {"classifier.1.weight": torch.zeros(8, 100)},
        state | {"classifier.4.bias": torch.zeros(7)},
    ):
        with pytest.raises(SppdetError, match=r"backbone\.weights: holds no fc6 and fc7 of alexnet") as caught:
            Head.of_network("alexnet", wrong, 0.5)
        assert "\n" not in str(caught.value)


def test_a_network_without_fc_layers_is_refused():
    with pytest.raises(
        SppdetError, match=r"resnet18 brings no fc6 and fc7; set backbone.name to one of alexnet, vgg16"
    ):
        Head.of_network("resnet18", {}, 0.5)


def test_a_head_is_rebuilt_from_its_description():
    head = Head(10, 4, "fc6", scale=0.5, dropout=0.1)
    again = Head(10, **head.description())
    again.load_state_dict(head.state_dict())
    pooled = torch.ones(2, 10)
    assert torch.equal(head.vectors(pooled), again.vectors(pooled))
    assert again.description() == head.description()


def test_truncated_layers_are_those_of_the_singular_value_decomposition():
    torch.manual_seed(0)
    head, pooled = Head(30, 8, "fc7", scale=0.5).eval(), torch.rand(5, 30)
    nn.init.normal_(head.fc6.bias)
    thin = head.truncated((3, 0))
    u, s, vt = np.linalg.svd(head.fc6.weight.detach().numpy())
    expected = Head(30, 8, "fc7", scale=0.5)
    expected.load_state_dict(head.state_dict())
    with torch.no_grad():
        expected.fc6.weight.copy_(torch.from_numpy(u[:, :3] * s[:3] @ vt[:3]))
    np.testing.assert_allclose(thin.vectors(pooled), expected.vectors(pooled), rtol=1e-4, atol=1e-5)
    assert sum(value.numel() for value in thin.fc6.parameters()) == 3 * 30 + 8 * 3 + 8
    np.testing.assert_allclose(head.truncated((8, 8)).vectors(pooled), head.vectors(pooled), rtol=1e-4, atol=1e-5)


def test_truncated_layers_in_bfloat16_are_near():
    torch.manual_seed(0)
    thin, pooled = Head(300, 40, "fc7", scale=0.3).eval().truncated((30, 20)), torch.rand(5, 300)
    expected = thin.vectors(pooled)
    thin.use_bfloat16 = True
    np.testing.assert_allclose(thin.vectors(pooled), expected, atol=0.02 * float(expected.max()))


def test_truncated_layers_are_restored():
    whole = Head(30, 8, "pool5+fc7", balance=2.0).eval()
    head, pooled = whole.truncated((3, 2)), torch.ones(1, 30)
    assert head.concat_pooled and head.balance == 2
    again = Head.restore(30, head.description(), head.state_dict(), use_bfloat16=False)
    np.testing.assert_array_equal(again.vectors(pooled), head.vectors(pooled))
