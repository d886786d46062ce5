"""Trunks: where their cells lie, what weights they take, and what maps they give."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from sppdet.networks import backbone as module
from sppdet.networks.backbone import Backbone
from sppdet.networks.cell_grid import cell_grid, freeze
from sppdet.networks.trunks import build_trunk
from sppdet.networks.weights import load_weights, weights_digest
from sppdet.utils.errors import SppdetError


@pytest.fixture(scope="module")
def small() -> Backbone:
    return Backbone.create("small", "random", "cpu", "float32")


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
        ("squeezenet1_1", 16, 15.0, 13),  # conv 3/2: centre 1, then the same pools
        ("small", 16, 0.0, 14),
    ],
)
def test_cells_of_known_networks(name, stride, centre, cells):
    with torch.device("meta"):  # shapes only: the larger networks' weights are never made
        trunk = build_trunk(name)
        assert trunk(torch.zeros(1, 3, 224, 224)).shape[2:] == (cells, cells)
    grid = cell_grid(trunk)
    assert (grid.stride, grid.centre) == (stride, centre)


def averaging(trunk: nn.Module) -> nn.Module:
    """The same geometry without any choice in it: max becomes mean, every weight is positive."""
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
def test_an_impulse_at_a_cell_comes_from_where_the_grid_says(name):
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


def test_branches_of_different_stride_are_refused():
    class Crooked(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, padding=0)

        def forward(self, x):
            return self.a(x) + self.b(x)

    with pytest.raises(ValueError, match="branches"):
        cell_grid(Crooked())


def test_dilation_moves_the_centre():
    # (3 - 1) * 2 / 2 - 0 = 2 pixels of stride 1; then 2 - 1 = 1 step of stride 3.
    trunk = nn.Sequential(nn.Conv2d(3, 4, 3, stride=3, dilation=2), nn.Conv2d(4, 4, 5, padding=1))
    grid = cell_grid(trunk)
    assert (grid.stride, grid.centre) == (3, 2 + 3)


@pytest.mark.parametrize(
    "name, stride, fixed",
    [
        ("vgg16", 2, {"features.0", "features.2", "features.5", "features.7"}),  # conv1 and conv2, as Fast R-CNN does
        ("alexnet", 4, {"features.0"}),
        ("small", 0, set()),
    ],
)
def test_layers_up_to_a_stride_are_frozen(name, stride, fixed):
    trunk = build_trunk(name)
    freeze(trunk, stride)
    frozen = {key.rpartition(".")[0] for key, value in trunk.named_parameters() if not value.requires_grad}
    assert frozen == fixed
    freeze(trunk, 0)
    assert all(value.requires_grad for value in trunk.parameters())


def test_unknown_network():
    with pytest.raises(SppdetError, match=r"backbone\.name: 'resnet19' is none of alexnet"):
        build_trunk("resnet19")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_from_a_file(tmp_path, suffix):
    source, target = build_trunk("small", seed=1), build_trunk("small", seed=2)
    assert weights_digest(source) != weights_digest(target)
    path = tmp_path / f"weights{suffix}"
    state = source.state_dict() | {"classifier.weight": torch.zeros(2, 2)}  # a whole network has more than the trunk
    torch.save(state, path) if suffix == ".pth" else save_file(state, path)
    load_weights(target, "small", str(path))
    assert weights_digest(source) == weights_digest(target)


def test_random_weights_depend_on_the_seed_alone():
    assert weights_digest(build_trunk("small", 1)) == weights_digest(build_trunk("small", 1))
    before = torch.random.get_rng_state()
    build_trunk("small", 3)
    assert torch.equal(before, torch.random.get_rng_state())


def test_weights_of_another_network_are_refused(tmp_path):
    torch.save(build_trunk("squeezenet1_1").state_dict(), tmp_path / "w.pth")
    message = r"backbone\.weights: .*w\.pth does not fit small: .*give weights of small or set backbone\.name"
    with pytest.raises(SppdetError, match=message):
        load_weights(build_trunk("small"), "small", str(tmp_path / "w.pth"))
    # The 1.1 network has the 1.0's names, but other shapes.
    with pytest.raises(SppdetError, match=r"does not fit squeezenet1_0"):
        load_weights(build_trunk("squeezenet1_0"), "squeezenet1_0", str(tmp_path / "w.pth"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        (b"", "cannot be read as a state_dict"),
        (b"no weights", "cannot be read as a state_dict"),
        ([1, 2], "is not a state_dict"),
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_unreadable_weights(tmp_path, content, message, suffix):
    path = tmp_path / f"w{suffix}"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
        message = message if suffix == ".pth" else "cannot be read as a state_dict"
    with pytest.raises(SppdetError, match=rf"backbone\.weights: .*{message}") as caught:
        load_weights(build_trunk("small"), "small", str(path))
    assert "\n" not in str(caught.value)


def test_there_are_no_imagenet_weights_of_the_small_network():
    with pytest.raises(SppdetError, match="no imagenet weights of 'small'"):
        load_weights(build_trunk("small"), "small", "imagenet")


def test_a_map_is_what_the_trunk_gives(small):
    image = np.random.default_rng(0).integers(0, 256, (80, 96, 3), np.uint8)
    conv_map = small(image, 1.0)
    x = torch.from_numpy(((image / 255 - module.MEAN) / module.STD).astype(np.float32)).permute(2, 0, 1)[None]
    with torch.inference_mode():
        expected = small.trunk(x)[0].permute(1, 2, 0)
    assert conv_map.shape == (5, 6, small.channels) and conv_map.dtype == np.float32
    assert conv_map.flags.c_contiguous
    np.testing.assert_allclose(conv_map, expected, atol=1e-4)


def test_a_map_of_an_enlarged_image(small):
    image = np.full((40, 50, 3), 90, np.uint8)
    assert small(image, 4.0).shape[:2] == (10, 13)  # 160 x 200 pixels, a cell each 16, rounded up
    # One colour stays one colour at any size.
    np.testing.assert_allclose(small(image, 4.0)[3:7, 3:9], small(image, 8.0)[3:7, 3:9], atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 1), (3, 200), (200, 3), (17, 64)])
def test_tiny_images_have_maps(small, shape):
    conv_map = small(np.zeros((*shape, 3), np.uint8), 1.0)
    assert min(conv_map.shape[:2]) >= 4 and np.isfinite(conv_map).all()


def test_colours_are_normalised_as_torchvision_does():
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    expected = (image / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    for seen, wanted in ((image, expected), (image[:, ::-1], expected[:, ::-1])):
        found = module.normalise(seen)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_settings_follow_the_weights(small):
    other = Backbone.create("small", "random", "cpu", "float32", seed=5)
    assert small.settings() != other.settings()
    assert small.settings() == Backbone.create("small", "random", "cpu", "float32").settings()
    assert small.settings() != Backbone.create("small", "random", "cpu", "bfloat16").settings()


def test_unknown_devices():
    with pytest.raises(SppdetError, match="device: 'tpus' is unknown"):
        module.resolve_device("tpus")
    if not torch.cuda.is_available():
        with pytest.raises(SppdetError, match="no usable CUDA; use device=cpu"):
            module.resolve_device("cuda")
        assert module.resolve_device("auto").type == "cpu"
    assert module.resolve_precision("float32", torch.device("cpu")) == "float32"
    assert module.resolve_precision("auto", torch.device("cpu")) in ("float32", "bfloat16")


@pytest.mark.parametrize("native", [True, False])
def test_what_follows_the_maps_is_of_bfloat16_where_the_processor_multiplies_it(monkeypatch, native):
    monkeypatch.setattr(module, "_native_on_cpu", lambda: native)
    made = {name: Backbone.create("small", "random", "cpu", name) for name in ("auto", "float32", "bfloat16")}
    assert {name: backbone.bfloat16_on_cpu for name, backbone in made.items()} == {
        "auto": native,
        "float32": False,
        "bfloat16": native,
    }
    assert made["bfloat16"].half  # as asked for, were it emulated
