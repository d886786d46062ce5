"""Trunks against torchvision's networks: the same layers under the same names."""

from __future__ import annotations

import pytest
import torch
import torchvision

from sppdet.networks.trunks import build_trunk, names, restore_trunk

LAST = {"resnet18": "layer3", "resnet50": "layer3"}  # the others' layers are all in `features`


@pytest.mark.parametrize("name", [name for name in names() if name != "small"])
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
    seen = {}
    children = dict(whole.named_children())
    layer = children[LAST[name]] if name in LAST else children["features"][len(trunk.features) - 1]
    layer.register_forward_hook(lambda layer, inputs, output: seen.update(found=output.clone()))
    pixels = torch.rand(1, 3, 97, 130)
    with torch.inference_mode():
        whole(pixels)
        torch.testing.assert_close(trunk(pixels), seen["found"], rtol=0, atol=0)


@pytest.mark.parametrize("name", ["squeezenet1_0", "resnet18", "small"])
def test_a_restored_trunk_is_the_one_that_was_saved(name):
    trunk = build_trunk(name, seed=4).eval()
    restored = restore_trunk(name, trunk.state_dict()).eval()
    pixels = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(restored(pixels), trunk(pixels), rtol=0, atol=0)
    with pytest.raises(RuntimeError):
        restore_trunk(name, {})
