"""Settings that do not go together are refused, in one line that says what to set."""

from __future__ import annotations

import pytest

from sppdet import config
from sppdet.config.checks import check
from sppdet.config.settings import ClassifierConfig, Config, ViewSettings
from sppdet.utils.errors import SppdetError

ALEXNET = ["features=fc7", "finetune.init=imagenet", "backbone.name=alexnet", "pooling.levels=6", "finetune.units=4096"]
END_TO_END = ["end_to_end.enabled=true", "features=fc7"]


def message_of(settings: Config | ClassifierConfig, overrides: list[str]) -> str:
    """The message with which the overrides are refused."""
    with pytest.raises(SppdetError) as raised:
        config.override(settings, overrides)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize(
    "overrides",
    [
        ["classifier=softmax", *END_TO_END],
        ["bbox.kind=joint", *END_TO_END],
        ["bbox.kind=joint", "end_to_end.enabled=true", "features=pool5+fc7"],
        ["bbox.kind=ridge+joint", "end_to_end.enabled=true", "features=pool5+fc7"],
        ["end_to_end.box_weight=0", *END_TO_END],
        ["end_to_end.hard_of=64", "end_to_end.windows_per_image=64"],
        ["end_to_end.background=0.499"],
        ["backbone.weights=random", "end_to_end.frozen_stride=0", *END_TO_END],
        ["backbone.weights=random"],
        ["pooling.kind=align", "pooling.samples=2"],
        ["backbone.layers=[a,b]", "pooling.layer_levels=[[6,3],[2]]", "pooling.layer_weights=[1,0.5]"],
        ["pooling.layer_levels=[[6,3]]"],
        ["svm.positive_overlap=0.31"],
        ["features=fc7", "svd_ranks=[1024,0]"],
        ["features=fc6", "svd_ranks=[64]", "finetune.units=64"],
        ["features=fc6", "finetune.steps=1"],
        [*END_TO_END, "finetune.steps=0"],
        [*ALEXNET, "finetune.steps=0"],
        [*ALEXNET, "end_to_end.enabled=true", "end_to_end.units=4096"],
        ["regions.crop=warp", "regions.crop_size=64", "regions.context=31"],
        ["run.engine=ray", "workers=2"],
        ["run.engine=dask", "run.cluster=tcp://host:8786", "run.cache=/shared/cache", "data.root=/shared/images"],
        ["regions.crop_size=10", "regions.context=-3"],  # without crops neither is used
    ],
    ids=" ".join,
)
def test_settings_that_go_together_are_accepted(overrides):
    check(config.override(Config(), overrides))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["run.cluster=tcp://host:8786"],
            "run.cluster: there is no cluster with run.engine=processes; set run.engine, or null",
        ),
        (
            ["run.engine=dask", "run.cluster=tcp://host:8786", "run.cache=/shared/cache"],
            "data.root: 'shapes' depends on the folder that a machine works in; give the whole path, as run.cluster is "
            "set",
        ),
        (
            ["backbone.layers=[a,b]", "pooling.layer_levels=[[6,3]]"],
            "pooling.layer_levels: 1 for 2 layers of backbone.layers; give one for each, or []",
        ),
        (
            ["pooling.layer_weights=[1,2]"],
            "pooling.layer_weights: 2 for 1 layer of backbone.layers; give one for each, or []",
        ),
        (
            ["data.incomplete_labels=true", "end_to_end.enabled=true", "features=pool5+fc7"],
            "data.incomplete_labels: only SVMs learn without what is perhaps missed; set classifier=svm and "
            "end_to_end.enabled=false, or false",
        ),
        (
            ["classifier=softmax"],
            "classifier: softmax is a layer on fc7; set end_to_end.enabled=true and features=fc7 with it, "
            "or classifier=svm",
        ),
        (
            ["classifier=softmax", "end_to_end.enabled=true", "features=pool5+fc7"],
            "classifier: softmax is a layer on fc7; set end_to_end.enabled=true and features=fc7 with it, "
            "or classifier=svm",
        ),
        (
            ["bbox.kind=joint", "features=fc7"],
            "bbox.kind: joint is a layer on fc7; set end_to_end.enabled=true and features=fc7 or pool5+fc7 with it, "
            "or bbox.kind=ridge",
        ),
        (
            ["bbox.kind=ridge+joint", *END_TO_END],
            "bbox.kind: ridge+joint is a layer on fc7; set end_to_end.enabled=true and features=pool5+fc7 with it, "
            "or bbox.kind=ridge",
        ),
        (
            ["bbox.kind=joint", "end_to_end.box_weight=0", *END_TO_END],
            "bbox.kind: joint boxes do not learn with end_to_end.box_weight=0; set a weight above 0, "
            "or bbox.kind=ridge",
        ),
        (
            ["pooling.samples=2"],
            "pooling.samples: max takes whole cells; set pooling.kind=align with it, or leave it 0",
        ),
        (
            ["svm.positive_overlap=0.3"],
            "svm.positive_overlap: a window that overlaps by 0.3 would be a positive and a negative; set more than "
            "svm.negative_overlap",
        ),
        (
            ["end_to_end.hard_of=63"],
            "end_to_end.hard_of: 64 windows of 63 cannot be chosen; set end_to_end.windows_per_image or more, or 0",
        ),
        (
            ["end_to_end.background=0.5"],
            "end_to_end.background: a window that overlaps an object by 0.5 is foreground; set less",
        ),
        (
            ["end_to_end.enabled=true", "backbone.weights=random"],
            "end_to_end.frozen_stride: random layers would stay random; set it to 0, or backbone.weights to pretrain, "
            "imagenet or a file",
        ),
        (["svd_ranks=[64]"], "svd_ranks: features=pool5 has 0 fc layers; give as many ranks, or []"),
        (["svd_ranks=[64]", "features=fc7"], "svd_ranks: features=fc7 has 2 fc layers; give as many ranks, or []"),
        (
            ["svd_ranks=[64,1025]", "features=pool5+fc7"],
            "svd_ranks: [64, 1025]: a layer of 1024 units has no rank above 1024; set 0 to 1024",
        ),
        (
            ["svd_ranks=[-1]", "features=fc6"],
            "svd_ranks: [-1]: a layer of 1024 units has no rank above 1024; set 0 to 1024",
        ),
        (
            ["svd_ranks=[0,200]", "end_to_end.units=100", *END_TO_END],
            "svd_ranks: [0, 200]: a layer of 100 units has no rank above 100; set 0 to 100",
        ),
    ],
)
def test_settings_of_a_detector_that_do_not_go_together(overrides, message):
    assert message_of(Config(), overrides) == message


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["features=fc6", "finetune.steps=0"], "finetune.steps: 0 leaves random layers; set finetune.init=imagenet"),
        ([*ALEXNET, "backbone.weights=random"], "finetune.init: imagenet takes fc6 and fc7 from backbone.weights"),
    ],
)
def test_fc_layers_that_do_not_exist_are_refused(overrides, message):
    assert message in message_of(Config(), overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["regions.scales=[480,688]"],
            "regions.scales: crops have one size, regions.crop_size; set one scale, or regions.crop=none",
        ),
        (["pooling.kind=align"], "pooling.kind: align is for windows on feature maps; set max for crops"),
        (
            ["pooling.map_type=uint8"],
            "pooling.map_type: uint8 is for feature maps, which are not stored with crops; set float16",
        ),
        (["end_to_end.hard_of=256"], "end_to_end.hard_of: training uses all crops that are drawn; set it to 0"),
        (
            ["detection.context=0.3"],
            "detection.context: whole images are scored on feature maps, which are not computed with crops; "
            "set it to 0",
        ),
        (
            ["detection.rescore=0.5"],
            "detection.rescore: moved boxes are scored on feature maps, which are not computed with crops; set it to 0",
        ),
        (["regions.crop_size=63"], "regions.crop_size: expected 64 to 10000, found 63"),
        (
            ["regions.context=114"],
            "regions.context: 114 pixels on each side of 227 leave no room for a window; set 0 to less than half of "
            "regions.crop_size",
        ),
        (
            ["regions.context=-1"],
            "regions.context: -1 pixels on each side of 227 leave no room for a window; set 0 to less than half of "
            "regions.crop_size",
        ),
    ],
)
@pytest.mark.parametrize("crop", ["warp", "square", "square_context"])
def test_settings_that_do_not_go_with_crops(crop, overrides, message):
    assert message_of(Config(), [f"regions.crop={crop}", *overrides]) == message


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["backbone.weights=pretrain"], "backbone.weights: pretrain is for detection; set imagenet, random or a file"),
        (
            ["side=200"],
            "side: 200 is less than the largest of sizes, 224, which is cut from it; set side to 224 or more",
        ),
        (
            ["test.side=200"],
            "test.views: crop cuts 224 x 224 from images of a shorter side of 200; make test.side (predict's --side), "
            "or test.scales, larger or test.view smaller",
        ),
    ],
)
def test_settings_of_a_classifier_that_do_not_go_together(overrides, message):
    assert message_of(ClassifierConfig(), overrides) == message


def test_only_the_views_that_are_used_must_fit_into_the_image():
    for views in (
        ViewSettings("crop", 224, 224, (100,)),
        ViewSettings("full", 224, 100, (100,)),
        ViewSettings("multi", 224, 100, (224, 256)),
    ):
        check(views)
    with pytest.raises(SppdetError, match=r"test\.views: multi cuts 224 x 224 from images of a shorter side of 200"):
        check(ViewSettings("multi", 224, 300, (256, 200)))


def test_other_objects_are_not_settings():
    with pytest.raises(TypeError, match="views have nulls"):
        check(ViewSettings())
    with pytest.raises(TypeError, match="got dict"):
        check({"nms": 0.3})
