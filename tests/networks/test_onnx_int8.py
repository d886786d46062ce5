"""Trunks in 8-bit integers compute nearly what they compute in float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from sppdet.data import read_image
from sppdet.networks.backbone import Backbone
from sppdet.networks.onnx_export import UnsupportedLayer
from sppdet.networks.onnx_int8 import _round_kernels, int8_model
from sppdet.networks.trunk_output import WHOLE, Cut
from sppdet.networks.trunks import build_trunk

onnxruntime = pytest.importorskip("onnxruntime")
PHOTOGRAPHS = Path(__file__).resolve().parents[3] / "shared" / "VOCdevkit" / "VOC2007" / "JPEGImages"


def run(model: bytes, pixels: torch.Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(None, {"image": pixels.numpy()})[0]


def pixels_of(*sides: int, seed: int = 0) -> torch.Tensor:
    """Return images of random colours, in spots and from pixel to pixel: ``(2, 3, H, W)``, from -1 to 1."""
    rng = torch.Generator().manual_seed(seed)
    spots = torch.nn.functional.interpolate(torch.rand(2, 3, 12, 12, generator=rng), size=sides, mode="bilinear")
    return spots + torch.rand(2, 3, *sides, generator=rng) - 1


def trained(trunk: nn.Module) -> nn.Module:
    """Give batch norm weights as after training, and the statistics of images."""
    rng = torch.Generator().manual_seed(0)
    for layer in trunk.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
            layer.weight.detach().uniform_(0.5, 1.5, generator=rng)
            layer.bias.detach().normal_(0.5, 0.5, generator=rng)
    with torch.no_grad():
        trunk.train()(pixels_of(192, 256))
    return trunk.eval()


def error(model: bytes, trunk: nn.Module, pixels: torch.Tensor) -> float:
    """Return the deviation from the trunk's own map, as a share of what varies within its channels."""
    with torch.inference_mode():
        exact = trunk(pixels).numpy()
    varying = exact - exact.mean((0, 2, 3), keepdims=True)
    return float(np.linalg.norm(run(model, pixels) - exact) / np.linalg.norm(varying))


@pytest.mark.parametrize(
    ("name", "cut", "limit"),  # errors grow from layer to layer; with weights that were trained they grow less
    [
        # Maps without ReLU6 and one with it.
        ("efficientnet_lite0", Cut(("_blocks.5", "_blocks.7.expansion", "_blocks.8")), 0.2),
        ("efficientnet_lite0", WHOLE, 0.35),
        ("efficientnet_lite2", WHOLE, 0.45),
        ("torchvision/mobilenet_v2", Cut(("features.12", "features.13")), 0.3),
    ],
)
def test_maps_are_near_those_of_float32(name, cut, limit):
    trunk = trained(build_trunk(name, seed=1, cut=cut))
    model = int8_model(trunk, {})
    assert error(model, trunk, pixels_of(192, 256)) < limit
    assert error(model, trunk, pixels_of(170, 201, seed=1)) < limit  # another size, which is padded


@pytest.mark.parametrize("name", ["efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"])
@pytest.mark.skipif(
    not PHOTOGRAPHS.is_dir(), reason="needs photographs in ../shared, which are not published with sppdet"
)
def test_maps_of_a_photograph_by_trained_networks(name):
    image = read_image(PHOTOGRAPHS / "000012.jpg")
    exact, rounded = (
        Backbone.create(name, "imagenet", "cpu", precision, engine="onnxruntime")(image, 1.0)
        for precision in ("float32", "int8")
    )
    assert np.linalg.norm(rounded - exact) < 0.13 * np.linalg.norm(exact - exact.mean((0, 1)))


def whole_steps() -> nn.Sequential:
    """Return layers that pass on pixels from -1 to 1, whose codes are then the values of the colours."""
    conv, norm = nn.Conv2d(3, 3, 1, bias=False), nn.BatchNorm2d(3, eps=1e-12)
    conv.weight.data = torch.eye(3)[:, :, None, None]
    norm.weight.data[:] = 127 / 4 / 128  # a step is 4 deviations / 127, which is 1 / 128 here
    norm.running_var[:] = (127 / 4 / 128) ** 2
    return nn.Sequential(conv, norm)


def test_one_layer_is_exact_to_half_a_code_of_its_output():
    # Weights and pixels that are codes: nothing else is rounded.
    conv, norm = nn.Conv2d(3, 2, 1, bias=False), nn.BatchNorm2d(2, eps=1e-12)
    conv.weight.data = torch.tensor([[63.0, 2.0, -1.0], [0.0, 0.0, 63.0]])[:, :, None, None] / 15
    norm.bias.data = torch.tensor([1.0, -0.5])
    trunk = nn.Sequential(whole_steps(), conv, norm, nn.ReLU6()).eval()
    pixels = torch.from_numpy(np.random.default_rng(0).integers(-127, 128, (1, 3, 9, 7))).float() / 128
    with torch.inference_mode():
        exact = trunk(pixels).numpy()
    assert exact.min() == 0 and exact.max() > 3
    np.testing.assert_allclose(run(int8_model(trunk, {}), pixels), exact, atol=0.5 * 6 / 255 + 1e-3)


def test_borders_are_padded_with_zero():
    conv, norm = nn.Conv2d(3, 1, 3, padding=1, bias=False), nn.BatchNorm2d(1, eps=1e-12)
    conv.weight.data[:] = 0.25
    before = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU6())
    before[0].weight.data, before[0].bias.data[:] = torch.eye(3)[:, :, None, None], 0.5
    trunk = nn.Sequential(whole_steps(), before, nn.ZeroPad2d((1, 0, 0, 2)), conv, norm, nn.ReLU6()).eval()
    pixels = torch.full((1, 3, 4, 5), 1 / 16)
    with torch.inference_mode():
        exact = trunk(pixels).numpy()
    assert exact[0, 0, 1, 2] > exact[0, 0, 0, 2] > exact[0, 0, 0, 1] > exact[0, 0, 0, 0] > 0
    np.testing.assert_allclose(run(int8_model(trunk, {}), pixels), exact, atol=0.5 * 6 / 255 + 9 * 0.75 * 0.5 * 6 / 255)


def test_channels_that_never_change_keep_their_value():
    trunk = whole_steps().eval()
    trunk[1].weight.data[:], trunk[1].bias.data[:] = 0, torch.tensor([1.0, -2.0, 0.5])
    computed = run(int8_model(trunk, {}), pixels_of(4, 5))
    np.testing.assert_allclose(computed, np.broadcast_to([[[[1.0]], [[-2.0]], [[0.5]]]], computed.shape), atol=1e-6)


def test_rounded_kernels_keep_their_sums_and_their_largest_weights():
    kernels = np.random.default_rng(0).normal(size=(16, 4, 5, 5))
    kernels -= kernels.mean((2, 3), keepdims=True)  # whose sums are 0, as of an edge
    rounded, step = _round_kernels(kernels)
    assert (rounded.sum((2, 3)) == 0).all() and (np.abs(rounded.astype(int)).max((1, 2, 3)) == 63).all()
    assert (np.abs(rounded * step[:, None, None, None] - kernels) < step[:, None, None, None]).all()


def test_the_file_of_a_trunk_is_always_the_same():
    first, second = (int8_model(build_trunk("efficientnet_lite0", seed=1).eval(), {"a": 1}) for _ in range(2))
    assert first == second


def shifted(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    norm.bias.detach().fill_(1)
    return norm


class _AddsInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layers(x)


@pytest.mark.parametrize(
    "trunk",
    [
        build_trunk("squeezenet1_0"),  # ReLU, and convolutions without batch norm
        nn.Sequential(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.Conv2d(6, 6, 1, groups=2), nn.BatchNorm2d(6)),
        nn.Sequential(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.Conv2d(6, 12, 1, groups=6), nn.BatchNorm2d(12)),
        nn.Sequential(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.Sigmoid()),
        nn.Sequential(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6, affine=False)),
        nn.Sequential(nn.Conv2d(3, 4, 1), shifted(nn.BatchNorm2d(4)), nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)),
        _AddsInput(),
    ],
    ids=[
        "squeezenet",
        "groups",
        "two_outputs_a_channel",
        "sigmoid",
        "norm_without_weights",
        "padding_without_relu6",
        "sum",
    ],
)
def test_layers_that_have_no_such_form_are_refused(trunk):
    with pytest.raises(UnsupportedLayer):
        int8_model(trunk.eval(), {})
