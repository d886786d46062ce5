"""Trunks against torchvision's networks: the same layers under the same names."""

from __future__ import annotations

import pytest
import torch
import torchvision

from sppdet.networks.trunks import NETWORKS, build_trunk, restore_trunk
from sppdet.networks.weights import weights_digest
from sppdet.utils.errors import SppdetError

LAST = {"resnet18": "layer3", "resnet50": "layer3"}  # the layers of the others are all in `features`


@pytest.mark.parametrize("name", [name for name, entry in NETWORKS.items() if entry.imagenet == "torchvision"])
def test_a_trunk_is_torchvisions_network_up_to_stride_16(name):
    trunk = build_trunk(name).eval()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        whole = torchvision.models.get_model(name, weights=None).eval()
        for layer in whole.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):  # so that forgotten statistics show
                torch.nn.init.uniform_(layer.running_mean, -0.1, 0.1)
                torch.nn.init.uniform_(layer.running_var, 0.5, 2)
    state = whole.state_dict()
    trunk.load_state_dict({key: state[key] for key in trunk.state_dict()})
    outputs = []
    children = dict(whole.named_children())
    layer = children[LAST[name]] if name in LAST else children["features"][len(trunk.features) - 1]
    layer.register_forward_hook(lambda layer, inputs, output: outputs.append(output.clone()))
    pixels = torch.rand(1, 3, 97, 130)
    with torch.inference_mode():
        whole(pixels)
        torch.testing.assert_close(trunk(pixels), outputs[0], rtol=0, atol=0)


@pytest.mark.parametrize("name", [name for name, entry in NETWORKS.items() if entry.fc_layers])
def test_the_table_names_the_fc_layers_of_torchvision(name):
    layers = NETWORKS[name].fc_layers
    with torch.device("meta"):
        state = torchvision.models.get_model(name, weights=None).state_dict()
        channels = build_trunk(name)(torch.zeros(1, 3, 64, 64)).shape[1]
    assert state[f"{layers.fc6}.weight"].shape == (layers.units, channels * layers.bins**2)
    assert state[f"{layers.fc7}.weight"].shape == (layers.units, layers.units)


@pytest.mark.parametrize("name", ["squeezenet1_0", "resnet18", "efficientnet_lite0", "small"])
def test_a_restored_trunk_is_the_one_that_was_saved(name):
    trunk = build_trunk(name, seed=4).eval()
    restored = restore_trunk(name, trunk.state_dict()).eval()
    pixels = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(restored(pixels), trunk(pixels), rtol=0, atol=0)
    with pytest.raises(RuntimeError):
        restore_trunk(name, {})


def test_random_weights_depend_on_the_seed_alone():
    assert weights_digest(build_trunk("small", 1)) == weights_digest(build_trunk("small", 1))
    before = torch.random.get_rng_state()
    build_trunk("small", 3)
    assert torch.equal(before, torch.random.get_rng_state())


def test_an_unknown_network_is_refused_with_the_nearest_name():
    with pytest.raises(SppdetError, match=r"backbone\.name: 'resnet19' is none of alexnet.*; did you mean 'resnet18'"):
        build_trunk("resnet19")
