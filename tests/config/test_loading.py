"""Settings are typed; a wrong key or value is one line that says what is right."""

from __future__ import annotations

from pathlib import Path

import pytest

from sppdet import config
from sppdet.config.settings import (
    ClassifierConfig,
    ClassifierRunSettings,
    Config,
    FolderSettings,
    SvmSettings,
    ViewSettings,
)
from sppdet.utils.errors import SppdetError
from sppdet.utils.files import write_json

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


def yaml_file(tmp_path, text: str | bytes):
    path = tmp_path / "c.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_there_are_configs():
    assert CONFIGS


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_loads(path):
    settings = config.load(path)
    assert isinstance(settings, Config)
    assert settings.run.dir != Config().run.dir, "each config has a run folder of its own"


def leaves(values: dict, prefix: str = "") -> dict:
    """Dotted key -> value."""
    found = {}
    for key, value in values.items():
        found |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


PAPER = {  # what the paper or, where it is silent, its program has, and our defaults have not
    "data.root": "data/VOCdevkit",
    "regions.scales": [480, 576, 688, 864, 1200],
    "regions.shrink": 8.0,
    "regions.max_side": 10000,
    "backbone.precision": "float32",
    "features": "fc7",
    "finetune.units": 4096,
    "finetune.optimizer": "sgd",
    "finetune.batch_size": 128,
    "finetune.weight_decay": 5e-4,
    "finetune.schedule": "step",
    "finetune.learning_rate": 1e-3,
    "finetune.steps": 6000,
    "finetune.flip": True,
    "svm.hard_per_image": 10000,
    "svm.max_negatives": 200000,
    "bbox.ridge": 4000.0,
    "detection.max_candidates": 10000,
    "run.dir": "runs/voc07_sppnet_paper",
}


def test_the_papers_config_says_what_the_paper_does():
    settings = leaves(config.to_dict(config.load(CONFIGS[0].with_name("voc07_sppnet_paper.yaml"))))
    defaults = leaves(config.to_dict(Config()))
    assert {key: value for key, value in settings.items() if value != defaults[key]} == PAPER
    # What its text says of defaults; a default that changes must be written into the file.
    kept = {
        "pooling.levels": [6, 3, 2, 1], "regions.target": 224, "backbone.name": "squeezenet1_0",
        "proposals.engine": "native", "proposals.mode": "fast", "proposals.base_k": 50, "proposals.inc_k": 50,
        "proposals.max_side": 500, "proposals.min_size": 20.0, "finetune.dropout": 0.5, "finetune.foreground": 0.25,
        "finetune.init": "random", "svm.C": 1e-3, "svm.positive_weight": 2.0, "svm.bias": 10.0, "svm.norm": 20.0,
        "svm.positive_overlap": 1.0,
        "svm.negative_overlap": 0.3, "svm.passes": 1, "svm.hard_margin": -1.0001, "svm.evict_margin": -1.2,
        "svm.duplicate_overlap": 0.7, "svm.random_negatives": 5000, "bbox.kind": "ridge", "bbox.min_overlap": 0.5,
        "bbox.max_windows": 4000, "detection.nms": 0.3, "detection.vote": 0.0, "detection.min_margin": -1.5,
        "detection.max_per_class": 100,
    }  # fmt: skip
    assert {key: settings[key] for key in kept} == kept


def test_the_papers_config_takes_the_layers_of_a_network():
    path = CONFIGS[0].with_name("voc07_sppnet_paper.yaml")
    config.load(path, ["backbone.name=alexnet", "finetune.init=imagenet", "pooling.levels=[6]", "finetune.steps=0"])


def test_an_empty_file_is_the_defaults(tmp_path):
    assert config.load(yaml_file(tmp_path, "")) == config.load(None) == Config()


def test_a_file_then_the_command_line(tmp_path):
    path = yaml_file(tmp_path, "regions: {scales: [320], shrink: 4}\nsvm:\n  C: 0.5\n")
    settings = config.load(path, ["svm.C=1e-3", "run.dir=x", "data.classes=[cat, dog]"])
    assert settings.regions.scales == (320,)
    assert settings.regions.shrink == 4.0 and isinstance(settings.regions.shrink, float)
    assert settings.svm.C == 1e-3  # YAML 1.1 would read text
    assert settings.run.dir == "x" and settings.data.classes == ("cat", "dog")
    assert settings.svm.norm == SvmSettings().norm


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("regions.scales=[480,688]", (480, 688)),
        ("regions.scales=480", (480,)),
        ("data.limit_train=null", None),
        ("data.limit_train=7", 7),
        ("bbox.enabled=false", False),
        ("bbox.ridge=1e3", 1000.0),
        ("bbox.ridge=1000", 1000.0),
        ("data.train_split=2012", "2012"),
        ("run.dir=a=b", "a=b"),
        ("data.classes=[a]", ("a",)),
    ],
)
def test_override_values(text, expected):
    value = config.override(Config(), [text])
    for name in text.partition("=")[0].split("."):
        value = getattr(value, name)
    assert value == expected and type(value) is type(expected)


def test_override_copies():
    original = Config()
    config.override(original, ["regions.scales=[1]", "workers=3"])
    assert original == Config()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("regions.scale=480", r"unknown key 'regions.scale'; did you mean 'regions.scales'\?"),
        ("svn.C=1", r"unknown key 'svn.*did you mean 'svm"),
        ("scales=480", r"unknown key 'scales'; did you mean 'regions.scales'\?"),
        ("qqqqqqqq=1", r"unknown key 'qqqqqqqq'"),
        ("regions.scales.low=480", "unknown key 'regions.scales.low'"),
        ("regions.scales.low.high=480", "unknown key 'regions.scales.low.high'"),
        ("workers.a.b=1", "unknown key 'workers.a.b'"),
        ("regions=480", "regions: expected keys below it, found 480"),
        ("regions.scales", "'regions.scales': expected key=value"),
        ("regions.scales=[480", "regions.scales: .* is not a YAML value"),
        ("regions.scales=[]", "regions.scales: expected one or more positive whole numbers"),
        ("regions.scales=[0]", "regions.scales: expected one or more positive"),
        ("regions.scales=[4.5]", "regions.scales: expected int, found 4.5"),
        ("pooling.levels=[a]", "pooling.levels: expected int, found 'a'"),
        ("pooling.kind=roi_align", "pooling.kind: expected one of max, align, found 'roi_align'"),
        ("pooling.samples=-1", "pooling.samples: expected 0 or more, found -1"),
        ("pooling.samples=2", "pooling.samples: max takes whole cells; set pooling.kind=align with it"),
        ("workers=two", "workers: expected int, found 'two'"),
        ("workers=true", "workers: expected int, found True"),
        ("svm.C=true", "svm.C: expected float, found True"),
        ("svm.C=much", "svm.C: expected float, found 'much'"),
        ("svm.C=null", "svm.C: expected float, found None"),
        ("bbox.enabled=1", "bbox.enabled: expected bool, found 1"),
        ("run.dir=[a]", "run.dir: expected str"),
        ("features=fc8", "features: expected one of pool5, fc6, fc7, pool5.fc7, found 'fc8'"),
        ("svm.solver=primal", "svm.solver: expected one of dual, liblinear, found 'primal'"),
        ("regions.crop=squeeze", "regions.crop: expected one of none, warp, square, square_context, found 'squeeze'"),
        ("data.limit_train=0", "data.limit_train: expected 1 or more, found 0"),
        ("end_to_end.images_per_step=0", "end_to_end.images_per_step: expected 1 or more, found 0"),
        ("end_to_end.hard_of=-1", "end_to_end.hard_of: expected 0 or more, found -1"),
        ("end_to_end.epochs=0", "end_to_end.epochs: expected more than 0, found 0.0"),
        ("end_to_end.dropout=1.5", "end_to_end.dropout: expected 0 to 1, found 1.5"),
        ("svm.positive_overlap=0.3", "svm.positive_overlap: a window that overlaps by 0.3 would be a positive and a"),
        ("end_to_end.background=0.5", "end_to_end.background: a window that overlaps an object by 0.5 is foreground"),
        ("svm.positive_overlap=2", "svm.positive_overlap: expected 0 to 1, found 2"),
        ("memory_gb=0", "memory_gb: expected more than 0, found 0"),
        ("proposals.sigma=.nan", "proposals.sigma: expected a number, found nan"),
        ("proposals.base_k=-50", "proposals.base_k: expected more than 0, found -50"),
        ("regions.max_side=0", "regions.max_side: expected 1 or more, found 0"),
        ("regions.scales=480,688", r"regions.scales: expected a list such as \[480,688\], found '480,688'"),
        ("run.seed=-1", "run.seed: expected 0 or more, found -1"),
        ("data.classes=[cat,dog,cat]", "data.classes: expected each name once, found"),
        ("device=gpu", "device: expected auto, cpu or cuda, found 'gpu'"),
        ("detection.vote=1.5", "detection.vote: expected 0 to 1, found 1.5"),
    ],
)
def test_wrong_overrides(text, message):
    with pytest.raises(SppdetError, match=message) as caught:
        config.override(Config(), [text])
    assert "\n" not in str(caught.value)


def test_names_that_look_like_numbers_stay_as_they_are_written():
    changed = config.override(Config(), ["data.test_split=0010", "run.dir=run #2: b", "data.train_split='07'"])
    assert (changed.data.test_split, changed.run.dir, changed.data.train_split) == ("0010", "run #2: b", "07")


def test_the_config_json_of_a_run_is_a_config(tmp_path):
    wanted = config.override(Config(), ["svm.C=0.00002", "regions.scales=[480]", "data.classes=[a,b]"])
    path = tmp_path / "config.json"
    write_json(path, config.to_dict(wanted) | {"versions": {"python": "3.12"}})
    assert config.load(path) == wanted


ALEXNET = ["features=fc7", "finetune.init=imagenet", "backbone.name=alexnet", "pooling.levels=6", "finetune.units=4096"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["features=fc6", "finetune.steps=0"], "finetune.steps: 0 leaves random layers; set finetune.init=imagenet"),
        ([*ALEXNET, "backbone.weights=random"], "finetune.init: imagenet takes fc6 and fc7 from backbone.weights"),
    ],
)
def test_fc_layers_that_are_not_there_are_refused(options, message):
    config.override(Config(), [*ALEXNET, "finetune.steps=0"])
    with pytest.raises(SppdetError, match=message) as caught:
        config.override(Config(), options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["classifier=softmax"], "classifier: softmax is a layer on fc7; set end_to_end.enabled=true and features=fc7"),
        (["end_to_end.enabled=true", "backbone.weights=random"], "end_to_end.frozen_stride: random layers would stay"),
        (["regions.crop=warp", "regions.scales=[480,688]"], "regions.scales: crops have one size.*leave one scale"),
        (["regions.crop=warp", "detection.context=0.3"], "detection.context: images are read on conv maps"),
        (["regions.crop=warp", "regions.crop_size=63"], "regions.crop_size: expected 64 or more, found 63"),
        (
            ["regions.crop=square", "regions.context=114"],
            "regions.context: 114 pixels on each side of 227",
        ),
    ],
)
def test_choices_that_do_not_go_together(texts, message):
    with pytest.raises(SppdetError, match=message) as caught:
        config.override(Config(), texts)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("regions: {scale: [1]}", r"c\.yaml: unknown key 'regions.scale'; did you mean 'regions.scales'\?"),
        ("regions: 5", r"c\.yaml: regions: expected keys below it, found 5"),
        ("svm: {C: x}", r"c\.yaml: svm.C: expected float, found 'x'"),
        ("- a\n- b", r"c\.yaml: expected `key: value` lines, found list"),
        ("a: [1", r"c\.yaml: not YAML"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF", r"c\.yaml"),  # an image given by mistake
    ],
)
def test_wrong_files_are_named(tmp_path, text, message):
    with pytest.raises(SppdetError, match=message) as caught:
        config.load(yaml_file(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_a_home_folder_that_the_shell_left_is_found():
    settings = config.override(Config(), ["run.dir=~/runs/a", "data.root=~user"])
    assert settings.run.dir == str(Path.home() / "runs" / "a") and settings.data.root == "~user"


def test_a_key_in_one_line_is_told_how_files_have_it(tmp_path):
    (tmp_path / "a.yaml").write_text("data.root: my")
    with pytest.raises(SppdetError, match=r"write data: \{root: VALUE\}"):
        config.load(tmp_path / "a.yaml")


def test_missing_file(tmp_path):
    with pytest.raises(SppdetError, match=r"none\.yaml: no such file.*configs/"):
        config.load(tmp_path / "none.yaml")


def test_dict_and_yaml_round_trips(tmp_path):
    settings = config.override(Config(), ["regions.scales=[480,688]", "svm.C=3", "data.limit_test=4"])
    assert config.from_dict(config.to_dict(settings)) == settings
    assert config.load(yaml_file(tmp_path, config.to_yaml(settings))) == settings


def test_keys_are_the_leaves():
    known = config.keys()
    assert {"regions.scales", "svm.C", "workers", "proposals.mode"} <= set(known)
    assert "regions" not in known


# The classifier's


def classify(*overrides: str) -> ClassifierConfig:
    return config.load(None, overrides, ClassifierConfig)


def test_the_classifiers_settings_are_read_by_the_same_rules(tmp_path):
    settings = config.load(yaml_file(tmp_path, "levels: [6]\nrun: {seed: 5}"), ["sizes=224"], ClassifierConfig)
    assert settings.levels == (6,) and settings.sizes == (224,) and settings.run.seed == 5
    assert settings.run.dir == ClassifierRunSettings().dir
    assert config.from_dict(config.to_dict(settings), ClassifierConfig) == settings
    for text, message in (
        ("level=[6]", r"unknown key 'level'; did you mean 'levels'\?"),
        ("svm.C=1", "unknown key 'svm.C'"),
        ("sizes=[]", "sizes: expected one or more positive whole numbers"),
        ("test.views=some", "test.views: expected one of crop, full, multi, found 'some'"),
        ("learning_rate=0", "learning_rate: expected more than 0"),
        ("units=-3", "units: expected 0 or more"),
        ("trunk_rate=-1", "trunk_rate: expected 0 or more"),
    ):
        with pytest.raises(SppdetError, match=message):
            classify(text)


def test_what_is_tested_follows_the_sizes_unless_it_is_given():
    assert classify().shorter_side == 256
    assert classify().tested == ViewSettings("crop", 224, 256, [224, 256, 300, 360, 448, 560])
    assert classify("sizes=[112,90]").tested == ViewSettings("crop", 112, 128, [112, 128, 150, 180, 224, 280])
    assert classify("test.views=full", "test.side=392").tested.side == 392


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["side=200"], "side: 200 is less than the largest of sizes, 224"),
        (["test.side=200"], "test.views: crop cuts 224 x 224 from images of a shorter side of 200"),
        (["test.views=multi", "test.scales=[256,200]"], "test.views: multi cuts 224 x 224 .* of 200"),
        (["backbone.weights=pretrain"], "backbone.weights: pretrain is for detection"),
    ],
)
def test_choices_of_the_classifier_that_do_not_go_together(overrides, message):
    with pytest.raises(SppdetError, match=message):
        classify(*overrides)


def test_a_folder_is_looked_for_in_the_root_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos" / "val").mkdir(parents=True)
    (tmp_path / "val").mkdir()
    (tmp_path / "other").mkdir()
    folders = FolderSettings(root="photos")
    assert folders.place("val") == Path("photos/val")
    assert folders.place("other") == Path("other")
    assert folders.place("none") == Path("photos/none")
    assert folders.place(str(tmp_path / "val")) == tmp_path / "val"
