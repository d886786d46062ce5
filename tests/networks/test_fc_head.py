"""fc6 and fc7: which layer the SVMs see, and what dropout does not do at test time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from sppdet.config.checks import FC_BINS, FC_UNITS
from sppdet.networks.fc_head import Head
from sppdet.ops.pooling import pyramid_pool
from sppdet.utils.errors import SppdetError


def known(layer: str) -> Head:
    """fc6 is (x0, -x0), fc7 is (2 h0 + 1, h1 - 1)."""
    head = Head(1, 2, layer, scale=3.0)
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


def test_beside_the_pooled_vector_fc7_is_balanced():
    head = known("pool5+fc7")
    head.balance = 0.5
    assert head.vectors(torch.tensor([[2.0]])).tolist() == [[6.5, 0]]
    assert head.concat_pooled and not known("fc7").concat_pooled


@pytest.mark.parametrize("layer", ["fc6", "fc7"])
def test_vectors_have_no_dropout_even_while_training(layer):
    head = Head(10, 40, layer, dropout=0.5).train()
    pooled = torch.rand(3, 10)
    first = head.vectors(pooled)
    assert first.shape == (3, 40) and first.dtype == torch.float32
    assert torch.equal(first, head.vectors(pooled))
    assert head.dimension == 40


@pytest.mark.parametrize("layer", ["fc6", "fc7"])
def test_half_precision_is_near_and_follows_the_weights(layer):
    torch.manual_seed(0)
    head, pooled = Head(300, 40, layer, scale=0.3).eval(), torch.rand(5, 300)
    expected = head.vectors(pooled)
    head.use_bfloat16 = True
    found = head.vectors(pooled)
    assert found.dtype == torch.float32 and not torch.equal(found, expected)
    np.testing.assert_allclose(found, expected, atol=0.02 * float(expected.max()))
    assert torch.equal(head.vectors(pooled.bfloat16()), found)
    head.train()
    torch.nn.init.zeros_(head.fc6.weight)
    torch.nn.init.zeros_(head.fc7.weight)
    assert not head.eval().vectors(pooled).any()


def test_forward_is_fc7_with_dropout_in_training_only():
    torch.manual_seed(0)
    head = Head(10, 200, "fc6", scale=2.0)
    pooled = torch.rand(4, 10)
    head.eval()
    expected = torch.relu(head.fc7(torch.relu(head.fc6(pooled * 2))))
    torch.testing.assert_close(head(pooled), expected)
    head.train()
    zeros = (head(pooled) == 0).float().mean() - (expected == 0).float().mean()
    assert zeros > 0.1


def network(name: str) -> tuple[nn.Module, list[int]]:
    """A torchvision network whose fc layers have 8 units in place of 4096, and where its fc6 and fc7 are."""
    with torch.device("meta"):  # the other layers are shapes only
        whole = torchvision.models.get_model(name, weights=None).eval()
    places = [i for i, layer in enumerate(whole.classifier) if isinstance(layer, nn.Linear)][:2]
    inputs = whole.classifier[places[0]].in_features
    assert [whole.classifier[i].out_features for i in places] == [FC_UNITS] * 2
    for place, width in zip(places, (inputs, 8)):
        whole.classifier[place] = nn.Linear(width, 8)
    return whole, places


@pytest.mark.parametrize(("name", "cut", "cells"), [("alexnet", 12, 13), ("vgg16", 30, 14)])
def test_the_fc_layers_of_a_network_give_what_they_give_in_it(name, cut, cells, monkeypatch):
    monkeypatch.setattr("sppdet.networks.fc_head.FC_UNITS", 8)
    torch.manual_seed(0)
    whole, places = network(name)
    level = FC_BINS[name]
    channels = whole.classifier[places[0]].in_features // level**2
    conv_map = torch.rand(channels, cells, cells)  # of a 224 x 224 image
    pooled = pyramid_pool(conv_map.permute(1, 2, 0).contiguous().numpy(), np.array([[0, 0, cells, cells]]), [level])
    inputs = whole.avgpool(whole.features[cut:](conv_map[None])).flatten(1)
    head = Head.of_network(name, whole.state_dict(), 0.5)
    for head.layer, place in zip(("fc6", "fc7"), places):
        expected = whole.classifier[: place + 2](inputs).detach()
        assert expected.any()
        np.testing.assert_allclose(head.vectors(torch.from_numpy(pooled).flatten(1)), expected, atol=1e-5)
    expected = {"units": 8, "layer": "fc7", "scale": 1.0, "dropout": 0.5, "ranks": (0, 0), "balance": 1.0}
    assert head.description() == expected


def test_weights_without_fc_layers_are_told(monkeypatch):
    monkeypatch.setattr("sppdet.networks.fc_head.FC_UNITS", 8)
    state = network("alexnet")[0].state_dict()
    for harm in (
        {key: value for key, value in state.items() if not key.startswith("classifier")},  # a trunk alone
        state | {"classifier.1.weight": torch.zeros(8, 100)},
        state | {"classifier.4.bias": torch.zeros(7)},
    ):
        with pytest.raises(SppdetError, match=r"backbone\.weights: holds no fc6 and fc7 of alexnet") as caught:
            Head.of_network("alexnet", harm, 0.5)
        assert "\n" not in str(caught.value)


def test_it_is_rebuilt_from_its_description():
    head = Head(10, 4, "fc6", scale=0.5, dropout=0.1)
    again = Head(10, **head.description())
    again.load_state_dict(head.state_dict())
    pooled = torch.ones(2, 10)
    assert torch.equal(head.vectors(pooled), again.vectors(pooled))
    assert again.description() == head.description()


def test_truncated_layers_are_those_of_the_singular_value_decomposition():
    torch.manual_seed(0)
    head, pooled = Head(30, 8, "fc7", scale=0.5).eval(), torch.rand(5, 30)
    torch.nn.init.normal_(head.fc6.bias)
    thin = head.truncated((3, 0))
    u, s, vt = np.linalg.svd(head.fc6.weight.detach().numpy())
    expected = Head(30, 8, "fc7", scale=0.5)
    expected.load_state_dict(head.state_dict())
    with torch.no_grad():
        expected.fc6.weight.copy_(torch.from_numpy(u[:, :3] * s[:3] @ vt[:3]))
    np.testing.assert_allclose(thin.vectors(pooled), expected.vectors(pooled), rtol=1e-4, atol=1e-5)
    assert sum(value.numel() for value in thin.fc6.parameters()) == 3 * 30 + 8 * 3 + 8
    np.testing.assert_allclose(head.truncated((8, 8)).vectors(pooled), head.vectors(pooled), rtol=1e-4, atol=1e-5)


def test_truncated_layers_in_half_precision_are_near():
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
