"""Files and overrides are read as typed settings; wrong keys and values are reported in one line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sppdet import config
from sppdet.config.settings import ClassifierConfig, ClassifierRunSettings, Config, SvmSettings
from sppdet.utils.errors import SppdetError
from sppdet.utils.files import write_json

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


def yaml_file(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "c.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_is_read(path):
    assert isinstance(config.load(path), Config)


def test_every_config_has_another_run_folder():
    folders = [config.load(path).run.dir for path in CONFIGS]
    assert len({*folders, Config().run.dir}) == len(CONFIGS) + 1 > 1


@pytest.mark.parametrize("name", config.PRESETS)
def test_a_preset_is_the_base_that_other_keys_change(tmp_path, name):
    path = yaml_file(tmp_path, f"preset: {name}\nsvm: {{C: 0.5}}\n")
    preset = config.load_preset(name)
    assert config.load(path) == replace(preset, svm=replace(preset.svm, C=0.5))


@pytest.mark.parametrize(
    ("changes", "layers", "weights"),
    [
        (["backbone.name=efficientnet_lite0"], ("_blocks.10", "_blocks.14", "_blocks.15"), (0.6, 0.6, 1)),
        (["backbone.name=efficientnet_lite2"], ("_blocks.14", "_blocks.19", "_blocks.20"), (0.6, 0.6, 1)),
        (["backbone.name=resnet18", "backbone.weights=random"], (), ()),
        (["backbone.name=resnet18", "backbone.layers=[layer2,layer3]"], ("layer2", "layer3"), ()),
        (["backbone.name=resnet18", "backbone.layers=[layer2,layer3]", "pooling.layer_weights=[1,2]"],
         ("layer2", "layer3"), (1, 2)),
    ],
)  # fmt: skip
def test_another_network_is_not_cut_at_the_layers_of_the_preset_s(tmp_path, changes, layers, weights):
    path = yaml_file(tmp_path, "preset: default")
    for settings in (config.load_preset("default", changes), config.load(path, iter(changes)),
                     config.settings_for(tmp_path, changes)):  # fmt: skip
        assert settings.backbone.layers == layers
        assert settings.pooling.layer_weights == weights


def test_a_file_that_names_another_network_is_not_cut_at_the_layers_of_the_preset_s(tmp_path):
    path = yaml_file(tmp_path, "preset: default\nbackbone: {name: efficientnet_lite0}")
    assert config.load(path).backbone == config.load_preset("quick").backbone
    assert config.load(path, ["backbone.name=efficientnet_lite2"]) == config.load_preset("default")


def test_each_preset_is_the_one_before_it_and_a_little_more():
    quick, default, best = (config.load_preset(name) for name in config.PRESETS)
    views = {"regions": default.regions, "svm": replace(quick.svm, flip=True), "bbox": replace(quick.bbox, flip=True)}
    assert replace(quick, backbone=default.backbone, **views) == default
    assert default.regions == replace(quick.regions, scales=(480, 864))
    assert best.end_to_end.enabled and best.features == "pool5+fc7"
    learned = {"end_to_end": default.end_to_end, "features": default.features, "svd_ranks": default.svd_ranks}
    assert replace(best, **learned) == default


def test_the_saved_settings_of_a_preset_are_complete(tmp_path):
    write_json(tmp_path / "config.json", config.to_dict(config.load_preset("best")))
    assert config.load(tmp_path / "config.json") == config.load_preset("best")


def test_an_unknown_preset_is_named_with_its_file(tmp_path):
    with pytest.raises(SppdetError, match=r"c\.yaml: preset: expected one of quick, default, best, found 'fast'"):
        config.load(yaml_file(tmp_path, "preset: fast"))


def leaves(values: dict, prefix: str = "") -> dict:
    """The values of nested dicts by dotted key."""
    flat = {}
    for key, value in values.items():
        flat |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


PAPER = {  # settings of the paper or, where it is silent, of its program that differ from our defaults
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


def test_the_papers_config_has_the_settings_of_the_paper():
    settings = leaves(config.to_dict(config.load(CONFIGS[0].with_name("voc07_sppnet_paper.yaml"))))
    defaults = leaves(config.to_dict(Config()))
    assert {key: value for key, value in settings.items() if value != defaults[key]} == PAPER
    # Defaults that are the paper's: if one changes, the old value must be written into the file.
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


def test_the_papers_config_can_take_the_fc_layers_of_a_network():
    path = CONFIGS[0].with_name("voc07_sppnet_paper.yaml")
    overrides = ["backbone.name=alexnet", "finetune.init=imagenet", "pooling.levels=[6]", "finetune.steps=0"]
    assert config.load(path, overrides).finetune.init == "imagenet"


def test_an_empty_file_has_the_defaults(tmp_path):
    assert config.load(yaml_file(tmp_path, "")) == config.load(None) == Config()


def test_overrides_apply_to_the_settings_of_a_file(tmp_path):
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
def test_an_override_has_the_type_of_its_setting(text, expected):
    value = config.override(Config(), [text])
    for name in text.partition("=")[0].split("."):
        value = getattr(value, name)
    assert value == expected and type(value) is type(expected)


def test_an_override_leaves_the_original_settings_alone():
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
        (
            "pooling.layer_levels=[[6],[]]",
            "pooling.layer_levels: expected one or more positive whole numbers up to 100, found",
        ),
        ("pooling.layer_weights=[0]", "pooling.layer_weights: expected more than 0, found 0.0"),
        ("pooling.levels=[a]", "pooling.levels: expected int, found 'a'"),
        ("pooling.kind=roi_align", "pooling.kind: expected one of max, align, found 'roi_align'"),
        ("pooling.samples=-1", "pooling.samples: expected 0 to 100, found -1"),
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
        ("svm.positive_overlap=2", "svm.positive_overlap: expected 0 to 1, found 2"),
        ("memory_gb=-1", "memory_gb: expected 0 or more, found -1"),
        ("proposals.sigma=.nan", "proposals.sigma: expected a number, found nan"),
        ("proposals.base_k=-50", "proposals.base_k: expected more than 0, found -50"),
        ("regions.max_side=0", "regions.max_side: expected 1 to 100000, found 0"),
        ("regions.scales=480,688", r"regions.scales: expected a list such as \[480,688\], found '480,688'"),
        ("run.seed=-1", "run.seed: expected 0 or more, found -1"),
        ("data.classes=[cat,dog,cat]", "data.classes: expected each name once, found"),
        ("device=gpu", "device: expected auto, cpu or cuda, found 'gpu'"),
        ("detection.vote=1.5", "detection.vote: expected 0 to 1, found 1.5"),
    ],
)
def test_wrong_overrides_are_refused_in_one_line(text, message):
    with pytest.raises(SppdetError, match=message) as raised:
        config.override(Config(), [text])
    assert "\n" not in str(raised.value)


def test_text_that_yaml_would_read_differently_stays_as_it_is_written():
    changed = config.override(Config(), ["data.test_split=0010", "run.dir=run #2: b", "data.train_split='07'"])
    assert (changed.data.test_split, changed.run.dir, changed.data.train_split) == ("0010", "run #2: b", "07")


def test_the_config_json_of_a_run_is_a_config(tmp_path):
    settings = config.override(Config(), ["svm.C=0.00002", "regions.scales=[480]", "data.classes=[a,b]"])
    path = tmp_path / "config.json"
    write_json(path, config.to_dict(settings) | {"versions": {"python": "3.12"}})
    assert config.load(path) == settings


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("regions: {scale: [1]}", r"c\.yaml: unknown key 'regions.scale'; did you mean 'regions.scales'\?"),
        ("regions: 5", r"c\.yaml: regions: expected keys below it, found 5"),
        ("svm: {C: x}", r"c\.yaml: svm.C: expected float, found 'x'"),
        ("- a\n- b", r"c\.yaml: expected `key: value` lines, found list"),
        ("a: [1", r"c\.yaml: not YAML"),
        ("train: images\nnames: [cat]", r"c\.yaml: describes images or their classes, not settings; give the folder"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF", r"c\.yaml: not YAML"),  # an image
    ],
)
def test_wrong_files_are_named_in_one_line(tmp_path, text, message):
    with pytest.raises(SppdetError, match=message) as raised:
        config.load(yaml_file(tmp_path, text))
    assert "\n" not in str(raised.value)


def test_a_home_folder_that_the_shell_did_not_expand_is_expanded():
    settings = config.override(Config(), ["run.dir=~/runs/a", "data.root=~user"])
    assert settings.run.dir == str(Path.home() / "runs" / "a") and settings.data.root == "~user"


def test_a_dotted_key_in_a_file_is_refused_with_the_right_form(tmp_path):
    with pytest.raises(SppdetError, match=r"key 'data.root' in one line: write data: \{root: VALUE\}"):
        config.load(yaml_file(tmp_path, "data.root: my"))


def test_a_missing_file_is_reported_with_the_folder_of_configs(tmp_path):
    with pytest.raises(SppdetError, match=r"none\.yaml: no such file.*configs/"):
        config.load(tmp_path / "none.yaml")


def test_settings_survive_dicts_and_yaml(tmp_path):
    settings = config.override(Config(), ["regions.scales=[480,688]", "svm.C=3", "data.limit_test=4"])
    assert config.from_dict(config.to_dict(settings)) == settings
    assert config.load(yaml_file(tmp_path, config.to_yaml(settings))) == settings


@pytest.mark.parametrize("kind", [Config, ClassifierConfig])
def test_keys_are_the_dotted_names_of_all_settings(kind):
    assert config.keys(kind) == list(leaves(config.to_dict(kind())))


def test_the_run_folder_is_replaced_alone():
    settings = config.override(Config(), ["run.seed=5"])
    moved = config.in_folder(settings, Path("runs") / "x=[y")
    assert moved.run.dir == "runs/x=[y"
    assert config.in_folder(moved, settings.run.dir) == settings


def test_the_settings_of_a_classifier_are_read_by_the_rules_for_detectors(tmp_path):
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
        ("units=-3", "units: expected 0 to 100000"),
        ("trunk_rate=-1", "trunk_rate: expected 0 or more"),
    ):
        with pytest.raises(SppdetError, match=message):
            config.load(None, [text], ClassifierConfig)


def test_names_in_lists_stay_as_they_are_written(tmp_path):
    names = ("0017", "12:30", "no", "1.50", "null", "2001-01-01")
    assert config.override(Config(), ["data.classes=[0017, 12:30, no, 1.50, 'null', 2001-01-01]"]).data.classes == names
    (tmp_path / "c.yaml").write_text("data:\n  classes: [0017, 12:30, no, 1.50, 'null', 2001-01-01]\n")
    assert config.load(tmp_path / "c.yaml").data.classes == names
    (tmp_path / "merged.yaml").write_text("data:\n  <<: {classes: [0017, 12:30, no]}\n")
    assert config.load(tmp_path / "merged.yaml").data.classes == names[:3]
    (tmp_path / "none.yaml").write_text("data:\n  classes: null\n")
    assert config.load(tmp_path / "none.yaml").data.classes is None
    assert config.override(Config(), ["data.classes=null"]).data.classes is None
    assert config.override(Config(), ["data.classes=007"]).data.classes == ("007",)


ALIAS_BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "\n".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]" for old, new in zip("abcdefgh", "bcdefghi")
)


@pytest.mark.parametrize(
    "text",
    [
        ALIAS_BOMB, "svm: &a {C: *a}", "[" * 5000, "{a: " * 5000, "svm: {C: " + "9" * 5000 + "}",
        "run: {seed: 2024-13-45}",
        "svm: {C: !!float x}", "workers: !!int x", "run: {dir: 0x" + "f" * 9000 + "}", "x" * 2_000_000, "svm: []",
        "? [1]\n: 2", "run: {seed: 1.0e+400}", "workers: 0x" + "f" * 9000,
    ],
)  # fmt: skip
def test_extremes_of_yaml_are_refused_in_one_short_line(tmp_path, text):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(SppdetError, match=r"a\.yaml: ") as caught:
        config.load(tmp_path / "a.yaml")
    assert len(str(caught.value)) < 1000 and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("run.seed=" + "9" * 30, "run.seed: expected whole numbers up to 4294967295, found 9999"),
        (
            "pooling.levels=[100000]",
            "pooling.levels: expected one or more positive whole numbers up to 100, found [100000]",
        ),
        (
            "pooling.layer_levels=[[6],[100000]]",
            "pooling.layer_levels: expected one or more positive whole numbers up to 100, found [100000]",
        ),
        ("pooling.layer_weights=[1,.inf]", "pooling.layer_weights: expected a number, found inf"),
        ("svm.tolerance=.inf", "svm.tolerance: expected a number, found inf"),
        ("data.classes=[" + "[" * 5000, "data.classes: '[[["),
        ("proposals.sigma=1e9", "proposals.sigma: expected 0 to 100, found 1000000000.0"),
        (
            "regions.scales=[1000000000]",
            "regions.scales: expected one or more positive whole numbers up to 10000, found",
        ),
        ("workers=1000000000", "workers: expected 0 to 1000, found 1000000000"),
        ("regions.scales=[" + "[" * 5000, "regions.scales: '[[["),
        ("svm.C=!!float x", "svm.C: '!!float x' is not a YAML value"),
        ("svm.C=2024-13-45", "svm.C: '2024-13-45' is not a YAML value"),
        ("svm.C=" + "9" * 400, "svm.C: expected float, found 9999"),
    ],
)
def test_extremes_of_overrides_are_refused_in_one_short_line(override, message):
    with pytest.raises(SppdetError) as caught:
        config.load(None, [override])
    assert str(caught.value).startswith(message) and len(str(caught.value)) < 1000


def test_aliases_and_merged_keys_are_read(tmp_path):
    (tmp_path / "a.yaml").write_text("finetune: &a {steps: 7}\nend_to_end: {scales: &s [96]}\nregions: {scales: *s}")
    settings = config.load(tmp_path / "a.yaml")
    assert settings.regions.scales == (96,) and settings.finetune.steps == 7
