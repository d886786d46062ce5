"""Trunks written as ONNX files compute what they compute in PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from sppdet.networks.onnx_export import UnsupportedLayer, onnx_model
from sppdet.networks.trunk_output import WHOLE, Cut
from sppdet.networks.trunks import NETWORKS, build_trunk

onnxruntime = pytest.importorskip("onnxruntime")


def run(model: bytes, pixels: torch.Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(None, {"image": pixels.numpy()})[0]


def trained(trunk: nn.Sequential) -> nn.Sequential:
    """Give every batch norm statistics and weights as after training."""
    rng = torch.Generator().manual_seed(0)
    for layer in trunk.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for values in (layer.running_mean, layer.bias):
                values.detach().normal_(0, 0.1, generator=rng)
            for values in (layer.running_var, layer.weight):
                values.detach().uniform_(0.5, 1.5, generator=rng)
    return trunk.eval()


@pytest.mark.parametrize(
    ("name", "cut"),
    [
        *((name, WHOLE) for name in NETWORKS),
        ("efficientnet_lite0", Cut(("_blocks.10", "_blocks.11.expansion", "_blocks.15"))),
        ("squeezenet1_0", Cut(("features.12", "features.11"))),
        ("torchvision/mobilenet_v2", Cut(("features.12", "features.13"))),
        ("torchvision/resnet18", Cut(dilate=True)),
    ],
)
def test_every_network_computes_the_maps_of_pytorch(name, cut):
    trunk = trained(build_trunk(name, seed=1, cut=cut))
    model = onnx_model(trunk, {})
    for size in ((1, 3, 70, 101), (2, 3, 96, 64)):  # any number and size of images
        pixels = torch.randn(size, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            expected = trunk(pixels).numpy()
        np.testing.assert_allclose(run(model, pixels), expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_batch_norm_is_folded_into_the_convolution_that_it_alone_reads():
    folded = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU())
    alone = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.ReLU(), nn.BatchNorm2d(4))
    pixels = torch.randn(1, 3, 5, 6)
    for trunk, kinds in ((folded, {b"Conv", b"Relu"}), (alone, {b"Conv", b"Relu", b"Mul", b"Add"})):
        model = onnx_model(trained(trunk), {})
        assert {kind for kind in (b"Conv", b"Relu", b"Mul", b"Add", b"BatchNormalization") if kind in model} == kinds
        np.testing.assert_allclose(run(model, pixels), trunk(pixels).detach(), atol=1e-6)


def test_the_file_of_a_trunk_is_always_the_same():
    first, second = (onnx_model(build_trunk("small", seed=1).eval(), {"b": 1, "a": [2]}) for _ in range(2))
    assert first == second != onnx_model(build_trunk("small", seed=2).eval(), {"b": 1, "a": [2]})


class _Twice(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, x], 1)


class _OfValues(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


class _PlusOne(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.GroupNorm(1, 3), "GroupNorm has no ONNX form here"),
        (nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect"), "reflect"),
        (_OfValues(), "cannot be traced"),
        (_PlusOne(), "add of a tensor and a number"),
        (_Twice(), "concatenation of a tensor with itself"),
        (nn.BatchNorm2d(3, affine=False), "batch norm without statistics or weights"),
    ],
)
def test_a_layer_that_cannot_be_written_is_named(layer, message):
    with pytest.raises(UnsupportedLayer, match=message):
        onnx_model(nn.Sequential(nn.ReLU(), layer).eval(), {})
