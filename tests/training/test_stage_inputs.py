"""What a result depends on: the keys that change with a setting, and with the objects."""

from __future__ import annotations

import shutil

import pytest
from annotations import narrow_first_object, rename_class

from sppdet import config
from sppdet.training.stage_inputs import StageInputs

OPTIONS = (
    "backbone.name=small", "backbone.weights=random", "backbone.precision=float32", "regions.scales=[96]",
    "regions.target=64", "pooling.levels=[3,1]", "device=cpu",
)  # fmt: skip
CLASSES = {"svm", "context", "bbox"}
EVERY = {"pretrain", "end_to_end", *CLASSES}


def inputs_of(root, cache, *changes: str) -> StageInputs:
    return StageInputs(config.load(None, [*OPTIONS, f"data.root={root}", f"run.cache={cache}", *changes]))


def keys_of(inputs: StageInputs) -> dict[str, list]:
    """A stage's keys: one, or one a class."""
    found = {"pretrain": [inputs.pretrain_key()], "end_to_end": [inputs.end_to_end_key(None)]}
    return found | {stage: [inputs.class_key(stage, k) for k in inputs.labels] for stage in sorted(CLASSES)}


def changed(before: dict, after: dict) -> set[str]:
    """The stages whose keys are others, which those of all their classes then must be."""
    stages = {stage for stage in before if before[stage] != after[stage]}
    for stage in stages:
        assert not {key.data for key in before[stage]} & {key.data for key in after[stage]}
    return stages


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def plain(shapes_root, cache) -> dict[str, list]:
    return keys_of(inputs_of(shapes_root, cache))


@pytest.mark.parametrize(
    ("change", "stages"),
    [
        ("svm.C=0.01", {"svm", "context"}),
        ("svm.hard_margin=-0.9", {"svm"}),
        ("svm.positive_overlap=0.7", {"svm"}),
        ("svm.flip=true", {"svm", "context"}),
        ("svm.norm=10", CLASSES),
        ("bbox.ridge=10", {"bbox"}),
        ("bbox.flip=true", {"bbox"}),
        ("end_to_end.epochs=1", {"end_to_end"}),
        ("pretrain.epochs=1", {"pretrain"}),
        ("regions.scales=[96,160]", CLASSES),
        ("pooling.levels=[2,1]", EVERY),
        ("pooling.kind=align", EVERY - {"pretrain"}),
        ("proposals.base_k=60", EVERY - {"pretrain"}),
        ("backbone.precision=bfloat16", EVERY),
        ("run.seed=4", EVERY),
        ("data.limit_train=5", EVERY),
        ("data.limit_test=2", set()),
        ("detection.nms=0.4", set()),
        ("detection.context=0.3", set()),
        ("memory_gb=1", set()),
        ("workers=1", set()),
        ("run.dir=elsewhere", set()),
    ],
)
def test_a_setting_changes_the_keys_of_what_depends_on_it(shapes_root, cache, plain, change, stages):
    assert changed(plain, keys_of(inputs_of(shapes_root, cache, change))) == stages


def test_the_keys_of_a_class_change_with_its_own_objects_alone(tmp_path, shapes_root, cache, plain):
    root = shutil.copytree(shapes_root, tmp_path / "shapes")
    inputs = inputs_of(shapes_root, cache)
    own = inputs.train.classes.index(narrow_first_object(root / "Annotations" / "train_00000.xml"))
    after = keys_of(inputs_of(root, cache))
    for stage in CLASSES:
        same = [before == now for before, now in zip(plain[stage], after[stage])]
        assert same == [k != own for k in inputs.labels]
        assert [key.recipe for key in after[stage]] == [key.recipe for key in plain[stage]], "with --keep it stays"
    assert after["end_to_end"] != plain["end_to_end"]


def test_another_name_of_a_class_is_another_class(tmp_path, shapes_root, cache, plain):
    root = shutil.copytree(shapes_root, tmp_path / "shapes")
    rename_class(root, "star", "stork")
    inputs = inputs_of(root, cache)
    assert inputs.train.classes[4] == "stork"
    after = keys_of(inputs)
    for stage in CLASSES:
        assert [k for k in inputs.labels if after[stage][k] != plain[stage][k]] == [4]
    assert after["end_to_end"] != plain["end_to_end"], "its boxes are found again by their classes' names"
