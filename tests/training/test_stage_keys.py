"""What each stage's result depends on: every setting, the images, the objects, and the results of earlier versions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from annotations import mark_first_object_difficult, narrow_first_object, rename_class
from PIL import Image
from stage_results import write_networks, write_trunk

from sppdet import config
from sppdet.data.splits import read_dataset
from sppdet.networks.fc_head import Head
from sppdet.training.cached_result import write_result
from sppdet.training.stage_inputs import StageInputs
from sppdet.utils.errors import SppdetError

NOTHING: set[str] = set()
CALIBRATION = {"calibration"}  # depends on the results of svm and bbox, too
CLASSES = {"svm", "context", "bbox"}
MARGINS = {"svm", "context"}
OF_MAPS = {"finetune", *CLASSES}
OF_FEATURES = {"end_to_end", *OF_MAPS}
EVERY = {"pretrain", *OF_FEATURES}


class Row(NamedTuple):
    """A change of a setting.

    Attributes:
        change: overrides, apart by blanks; COPY, WEIGHTS and LIST stand for a copy of the images, other
            weights and a list of classes that were looked for.
        stages: whose keys it changes.
        base: overrides of the run that is changed, where the setting has no effect without them.
    """

    change: str
    stages: set[str]
    base: str = ""


CROPS, ALIGNED, FC7 = "regions.crop=warp", "pooling.kind=align", "features=fc7"
LIBRARY = "backbone.name=torchvision/resnet18 backbone.weights=random"
TOGETHER = "end_to_end.enabled=true features=pool5+fc7"

# By setting, the stages whose results depend on it.
ROWS = {
    "data.root": Row("data.root=COPY", NOTHING),
    "data.train_split": Row("data.train_split=test", EVERY),
    "data.test_split": Row("data.test_split=trainval", NOTHING),
    "data.classes": Row(  # a class without objects: those of the others stay
        "data.classes=[circle,cross,ring,square,star,triangle,zebra]", {"pretrain", "end_to_end", "finetune"}
    ),
    "data.limit_train": Row("data.limit_train=5", EVERY),
    "data.limit_test": Row("data.limit_test=2", NOTHING),
    "data.format": Row("data.format=voc", NOTHING),
    "data.skip_bad": Row("data.skip_bad=true", NOTHING),
    "data.test_share": Row("data.root=COPY data.test_share=0.5", EVERY),
    "data.labelled_classes": Row("data.labelled_classes=LIST", MARGINS),
    "data.tiles": Row("data.tiles=100", EVERY),
    "data.tile_overlap": Row("data.tile_overlap=40", EVERY, "data.tiles=100"),
    "data.ignore_classes": Row("data.ignore_classes=[star]", EVERY - {"bbox"}),
    "data.incomplete_labels": Row("data.incomplete_labels=true", MARGINS),
    "proposals.mode": Row("proposals.mode=quality", OF_FEATURES),
    "proposals.base_k": Row("proposals.base_k=60", OF_FEATURES),
    "proposals.inc_k": Row("proposals.inc_k=60", OF_FEATURES),
    "proposals.sigma": Row("proposals.sigma=0.7", OF_FEATURES),
    "proposals.max_side": Row("proposals.max_side=100", OF_FEATURES),
    "proposals.min_size": Row("proposals.min_size=10", OF_FEATURES),
    "proposals.max_windows": Row("proposals.max_windows=50", OF_FEATURES),
    "proposals.engine": Row("proposals.engine=opencv", OF_FEATURES),
    "backbone.name": Row("backbone.name=resnet18 backbone.weights=random", EVERY),
    "backbone.weights": Row("backbone.weights=WEIGHTS", OF_FEATURES),
    "backbone.layers": Row("backbone.layers=[features.11]", EVERY),
    "backbone.dilate": Row("backbone.dilate=true", EVERY, LIBRARY),
    "backbone.precision": Row("backbone.precision=bfloat16", EVERY),
    "backbone.engine": Row("backbone.engine=torch", NOTHING),
    "pretrain.sizes": Row("pretrain.sizes=[48]", {"pretrain"}),
    "pretrain.epochs": Row("pretrain.epochs=1", {"pretrain"}),
    "pretrain.batch_size": Row("pretrain.batch_size=4", {"pretrain"}),
    "pretrain.learning_rate": Row("pretrain.learning_rate=0.1", {"pretrain"}),
    "pretrain.weight_decay": Row("pretrain.weight_decay=0.1", {"pretrain"}),
    "regions.crop": Row("regions.crop=warp", OF_FEATURES),
    "regions.crop_size": Row("regions.crop_size=100", OF_FEATURES, CROPS),
    "regions.context": Row("regions.context=4", OF_FEATURES, CROPS),
    "regions.scales": Row("regions.scales=[96,160]", OF_MAPS),  # end-to-end training has scales of its own
    "regions.max_side": Row("regions.max_side=300", OF_FEATURES),
    "regions.target": Row("regions.target=100", OF_MAPS),
    "regions.shrink": Row("regions.shrink=0", OF_FEATURES),
    "pooling.kind": Row("pooling.kind=align", OF_FEATURES),
    "pooling.levels": Row("pooling.levels=[2,1]", EVERY),
    "pooling.layer_levels": Row("pooling.layer_levels=[[2,1]]", OF_FEATURES),
    "pooling.layer_weights": Row("pooling.layer_weights=[0.5]", OF_FEATURES),
    "pooling.samples": Row("pooling.samples=2", OF_FEATURES, ALIGNED),
    "pooling.map_type": Row("pooling.map_type=uint8", OF_FEATURES),
    "features": Row("features=fc6", MARGINS, FC7),
    "svd_ranks": Row("svd_ranks=[4,4]", MARGINS, FC7),
    "classifier": Row("classifier=softmax", CALIBRATION, TOGETHER.replace("pool5+", "")),
    "finetune.init": Row("finetune.init=imagenet", {"finetune"}),
    "finetune.units": Row("finetune.units=32", {"finetune"}),
    "finetune.dropout": Row("finetune.dropout=0.1", {"finetune"}),
    "finetune.optimizer": Row("finetune.optimizer=sgd", {"finetune"}),
    "finetune.learning_rate": Row("finetune.learning_rate=0.1", {"finetune"}),
    "finetune.schedule": Row("finetune.schedule=step", {"finetune"}),
    "finetune.weight_decay": Row("finetune.weight_decay=0.1", {"finetune"}),
    "finetune.steps": Row("finetune.steps=1", {"finetune"}),
    "finetune.batch_size": Row("finetune.batch_size=4", {"finetune"}),
    "finetune.windows_per_image": Row("finetune.windows_per_image=4", {"finetune"}),
    "finetune.foreground": Row("finetune.foreground=0.5", {"finetune"}),
    "finetune.flip": Row("finetune.flip=true", {"finetune"}),
    "end_to_end.enabled": Row("end_to_end.enabled=true", OF_FEATURES),
    "end_to_end.epochs": Row("end_to_end.epochs=1", {"end_to_end"}),
    "end_to_end.images_per_step": Row("end_to_end.images_per_step=3", {"end_to_end"}),
    "end_to_end.windows_per_image": Row("end_to_end.windows_per_image=3", {"end_to_end"}),
    "end_to_end.foreground": Row("end_to_end.foreground=0.5", {"end_to_end"}),
    "end_to_end.background": Row("end_to_end.background=0", {"end_to_end"}),
    "end_to_end.hard_of": Row("end_to_end.hard_of=200", {"end_to_end"}),
    "end_to_end.focal": Row("end_to_end.focal=2", {"end_to_end"}),
    "end_to_end.scales": Row("end_to_end.scales=[96]", {"end_to_end"}),
    "end_to_end.flip": Row("end_to_end.flip=false", {"end_to_end"}),
    "end_to_end.frozen_stride": Row("end_to_end.frozen_stride=8", {"end_to_end"}),
    "end_to_end.units": Row("end_to_end.units=32", {"end_to_end"}),
    "end_to_end.dropout": Row("end_to_end.dropout=0.1", {"end_to_end"}),
    "end_to_end.box_weight": Row("end_to_end.box_weight=0", {"end_to_end"}),
    "end_to_end.optimizer": Row("end_to_end.optimizer=sgd", {"end_to_end"}),
    "end_to_end.learning_rate": Row("end_to_end.learning_rate=0.1", {"end_to_end"}),
    "end_to_end.trunk_rate": Row("end_to_end.trunk_rate=1", {"end_to_end"}),
    "end_to_end.weight_decay": Row("end_to_end.weight_decay=0.1", {"end_to_end"}),
    "svm.C": Row("svm.C=0.01", MARGINS),
    "svm.positive_weight": Row("svm.positive_weight=1", MARGINS),
    "svm.bias": Row("svm.bias=1", MARGINS),
    "svm.norm": Row("svm.norm=10", OF_MAPS),
    "svm.positive_overlap": Row("svm.positive_overlap=0.7", {"svm"}),
    "svm.negative_overlap": Row("svm.negative_overlap=0.2", {"svm"}),
    "svm.solver": Row("svm.solver=liblinear", MARGINS),
    "svm.tolerance": Row("svm.tolerance=0.1", {"svm"}),
    "svm.passes": Row("svm.passes=2", {"svm"}),
    "svm.rounds": Row("svm.rounds=1", {"svm"}),
    "svm.hard_margin": Row("svm.hard_margin=-0.9", {"svm"}),
    "svm.evict_margin": Row("svm.evict_margin=-2", {"svm"}),
    "svm.duplicate_overlap": Row("svm.duplicate_overlap=0.6", {"svm"}),
    "svm.hard_per_image": Row("svm.hard_per_image=7", {"svm"}),
    "svm.max_negatives": Row("svm.max_negatives=70", {"svm"}),
    "svm.random_negatives": Row("svm.random_negatives=7", {"svm"}),
    "svm.bank": Row("svm.bank=10", NOTHING),
    "svm.flip": Row("svm.flip=true", MARGINS),
    "bbox.enabled": Row("bbox.enabled=false", {"bbox"}),
    "bbox.kind": Row("bbox.kind=ridge+joint", CALIBRATION, TOGETHER),  # the ridge regressors are the same
    "bbox.min_overlap": Row("bbox.min_overlap=0.6", {"bbox"}),
    "bbox.ridge": Row("bbox.ridge=10", {"bbox"}),
    "bbox.max_windows": Row("bbox.max_windows=10", {"bbox"}),
    "bbox.flip": Row("bbox.flip=true", {"bbox"}),
    "calibration.folds": Row("calibration.folds=3", CALIBRATION),
    "calibration.images": Row("calibration.images=5", CALIBRATION),
    "detection.nms": Row("detection.nms=0.4", CALIBRATION),
    "detection.vote": Row("detection.vote=0.4", CALIBRATION),
    "detection.rescore": Row("detection.rescore=0.5", CALIBRATION),
    "detection.move_penalty": Row("detection.move_penalty=1", CALIBRATION),
    "detection.flip": Row("detection.flip=true", CALIBRATION),
    "detection.min_margin": Row("detection.min_margin=0", CALIBRATION),
    "detection.max_candidates": Row("detection.max_candidates=10", CALIBRATION),
    "detection.max_per_class": Row("detection.max_per_class=10", CALIBRATION),
    "detection.context": Row("detection.context=0.3", CALIBRATION),
    "run.dir": Row("run.dir=elsewhere", NOTHING),
    "run.cache": Row("run.cache=elsewhere", NOTHING),
    "run.seed": Row("run.seed=4", EVERY),
    "run.curves": Row("run.curves=csv", NOTHING),
    "run.engine": Row("run.engine=dask", NOTHING),
    "run.cluster": Row("run.engine=dask run.cluster=tcp://host:8786", NOTHING),
    "device": Row("device=auto", NOTHING),
    "workers": Row("workers=1", NOTHING),
    "memory_gb": Row("memory_gb=1", NOTHING),
}


class Runs:
    """Runs on the drawn images, with networks written by hand in place of trained ones."""

    def __init__(self, folder: Path, root: Path):
        self.folder = folder
        self.root = root
        self.weights = write_trunk(folder / "trunk.safetensors")
        self.other_weights = write_trunk(folder / "other.safetensors", shift=1)
        self.list = folder / "looked_for.csv"  # no class was looked for in the first image
        self.list.write_text(read_dataset(root, "trainval")[0].id)
        self._keys: dict[str, dict] = {}

    def inputs(self, changes: str = "", root: Path | None = None, keep: bool = False) -> StageInputs:
        """Return the inputs of a run."""
        options = [
            "backbone.name=small", f"backbone.weights={self.weights}", "backbone.precision=float32",
            "regions.scales=[96]", "regions.target=64", "pooling.levels=[3,1]", "device=cpu",
            f"data.root={root or self.root}", f"run.cache={self.folder / 'cache'}", f"run.dir={self.folder / 'run'}",
        ]  # fmt: skip
        changes = changes.replace("WEIGHTS", str(self.other_weights)).replace("LIST", str(self.list))
        return StageInputs(config.load(None, [*options, *changes.split()]), keep)

    def keys(self, changes: str = "", root: Path | None = None) -> dict[str, dict[str, object]]:
        """Return the keys of every stage, by class where each class has one."""
        inputs = self.inputs(changes, root)
        write_networks(inputs)
        keys, classes = inputs.keys, inputs.train.classes
        return {
            "pretrain": {"": keys.pretrain()},
            "end_to_end": {"": keys.end_to_end(None)},
            "finetune": {"": keys.finetune(None)},
            **{
                stage: {name: keys.of_class(stage, k) for k, name in enumerate(classes)}
                for stage in sorted(CLASSES | CALIBRATION)
            },
        }

    def base(self, changes: str) -> dict[str, dict[str, object]]:
        """Return `keys`, computed once for each of the runs that are changed."""
        if changes not in self._keys:
            self._keys[changes] = self.keys(changes)
        return self._keys[changes]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, shapes_root) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"), shapes_root)


@pytest.fixture(autouse=True)
def no_maps(monkeypatch):
    """The scale of vectors is read from maps, which these runs do not have."""
    monkeypatch.setattr(StageInputs, "_scale", lambda self, features: 1.0)


def changed_stages(before: dict[str, dict], after: dict[str, dict]) -> set[str]:
    """Return the stages whose keys differ; those of all classes that stay must then, with their data digests."""
    changed = set()
    for stage, keys in before.items():
        names = keys.keys() & after[stage].keys()
        different = {name for name in names if after[stage][name].data != keys[name].data}
        assert different in (set(), names), f"{stage}: only some classes"
        changed |= {stage} if different else set()
    return changed


def test_every_setting_has_a_row():
    """A new setting needs a row in ROWS: say which stages' results depend on it."""
    assert list(ROWS) == config.keys()


@pytest.mark.parametrize("setting", ROWS)
def test_a_setting_changes_the_keys_of_the_results_that_depend_on_it(runs, copied_data, setting):
    row = ROWS[setting]
    change = row.change.replace("COPY", str(copied_data))
    expected = row.stages | CALIBRATION if row.stages & {"svm", "bbox"} else row.stages
    assert changed_stages(runs.base(row.base), runs.keys(f"{row.base} {change}")) == expected


def test_a_changed_object_changes_the_keys_of_its_class_and_of_what_all_classes_share(runs, copied_data):
    name = narrow_first_object(copied_data / "Annotations" / "train_00000.xml")
    before, after = runs.base(""), runs.keys(root=copied_data)
    for stage in CLASSES:
        assert [other for other in after[stage] if after[stage][other] != before[stage][other]] == [name]
        assert after[stage][name].recipe == before[stage][name].recipe  # so --keep leaves the class as it is
    for stage in EVERY - CLASSES:
        assert after[stage] != before[stage]


@pytest.mark.parametrize("change", ["detection.nms=0.5", "detection.min_margin=1", "svm.random_negatives=900"])
def test_with_incomplete_labels_svms_depend_on_how_missed_objects_are_found(runs, change):
    base = "data.incomplete_labels=true"
    assert changed_stages(runs.base(base), runs.keys(f"{base} {change}")) == MARGINS | CALIBRATION


def test_what_is_difficult_matters_where_detections_are_judged(runs, copied_data):
    before, incomplete = runs.base(""), "data.incomplete_labels=true"
    name = mark_first_object_difficult(copied_data / "Annotations" / "train_00000.xml")
    after = runs.keys(root=copied_data)
    pairs = [(stage, other) for stage in after for other in after[stage]]
    changed = [(stage, other) for stage, other in pairs if after[stage][other] != before[stage][other]]
    assert changed == [("calibration", name)]
    assert changed_stages(runs.base(incomplete), runs.keys(incomplete, copied_data)) == MARGINS | CALIBRATION


def test_a_renamed_class_is_another_class(runs, copied_data):
    rename_class(copied_data, "star", "stork")  # the same number among the classes
    before, after = runs.base(""), runs.keys(root=copied_data)
    for stage in CLASSES:
        assert after[stage].keys() - before[stage].keys() == {"stork"}
        assert after[stage]["stork"].recipe != before[stage]["star"].recipe
        assert {name: after[stage][name] for name in ("ring", "square")} == {
            name: before[stage][name] for name in ("ring", "square")
        }
    assert after["end_to_end"] != before["end_to_end"]  # joint boxes are looked up by the names of the classes


def test_fc_layers_that_training_begins_with_are_part_of_its_key(runs):
    inputs = runs.inputs()
    starts = [None, Head(4, 2, "fc7"), Head(4, 2, "fc7")]
    for stage_key in (inputs.keys.finetune, inputs.keys.end_to_end):
        assert len({stage_key(start).recipe for start in starts}) == 3


def test_the_balance_depends_on_the_head_and_the_features_but_on_no_norm(runs):
    def key(changes: str, shift: int = 0):
        inputs = runs.inputs(f"{changes} features=fc7")
        write_networks(inputs, shift)
        return inputs.keys.balance()

    assert key("") == key("svm.norm=10 svm.C=1")
    assert (
        len({key("").data, key("", shift=1).data, key("regions.target=100").data, key("data.limit_train=5").data}) == 4
    )


def test_no_key_depends_on_the_number_of_threads(runs):
    """Products of several threads are rounded otherwise than those of one; fc layers must be large to have any."""

    def keys(threads: int, changes: str):
        torch.set_num_threads(threads)
        try:
            inputs = runs.inputs(changes)
            write_networks(inputs, units=200)
            return [inputs.keys.balance(), inputs.keys.of_class("svm", 0), inputs.keys.of_class("bbox", 0)]
        finally:
            torch.set_num_threads(1)

    for changes in ("features=fc7 svd_ranks=[20,20]", "features=fc6 svd_ranks=[20]", "features=pool5+fc7"):
        assert keys(1, changes) == keys(2, changes)


def test_no_key_depends_on_how_truncated_layers_are_rounded(runs, monkeypatch):
    def keys():
        inputs = runs.inputs("features=fc7 svd_ranks=[4,4]")
        write_networks(inputs)
        return inputs.keys.of_class("svm", 0), inputs.keys.balance(), inputs.head.fc6[1].weight

    *before, weight = keys()
    eigh = torch.linalg.eigh
    monkeypatch.setattr(
        torch.linalg, "eigh", lambda matrix: SimpleNamespace(eigenvectors=eigh(matrix).eigenvectors * (1 + 1e-6))
    )
    *after, rounded = keys()
    assert before == after and not torch.equal(weight, rounded)


# Settings of regions and pooling that are not in the description of a kind of features: they cannot change the vectors.
CANNOT_MATTER = {
    "max": {"crop_size", "context"},
    "align": {"crop_size", "context"},
    "warp": {"scales", "max_side", "target", "shrink", "kind", "samples", "map_type"},
}
OTHER_VALUES = {
    "crop": "square", "crop_size": 100, "context": 4,
    "scales": (96, 160), "max_side": 300, "target": 100, "shrink": 0.0,
    "kind": {"max": "align", "align": "max", "warp": "align"}, "levels": (2, 1), "samples": 2,
    "layer_levels": ((2, 1),), "layer_weights": (0.5,),
    "map_type": "uint8",
}  # fmt: skip


@pytest.mark.parametrize("kind", CANNOT_MATTER)
@pytest.mark.parametrize(
    ("section", "name"),
    [(section, name) for section in ("regions", "pooling") for name in vars(getattr(config.load(None), section))],
)
def test_every_setting_of_the_features_is_in_their_description_or_cannot_matter(runs, kind, section, name):
    inputs = runs.inputs({"max": "", "align": ALIGNED, "warp": CROPS}[kind])
    value = OTHER_VALUES[name]
    change = {name: value[kind] if isinstance(value, dict) else value}
    # Past the checks of a whole configuration, which refuse settings without effect.
    changed = runs.inputs()
    changed.config = replace(inputs.config, **{section: replace(getattr(inputs.config, section), **change)})
    described = changed.pooled_features.description() != inputs.pooled_features.description()
    assert described == (name not in CANNOT_MATTER[kind])


class TestKeep:
    """With ``keep`` a result of the same recipe is valid, and one of another recipe is an error."""

    def test_results_from_other_images_are_valid(self, runs, tmp_path):
        path, few = tmp_path / "svm.safetensors", runs.inputs("data.limit_train=5")
        write_result(path, few.keys.of_class("svm", 0), {})
        assert not runs.inputs().keys.is_done(path, runs.inputs().keys.of_class("svm", 0))
        kept = runs.inputs(keep=True)
        assert kept.keys.is_done(path, kept.keys.of_class("svm", 0))

    def test_results_of_other_settings_are_not_replaced(self, runs, tmp_path):
        path, before = tmp_path / "svm.safetensors", runs.inputs("svm.C=0.1")
        kept = runs.inputs(keep=True)
        key = kept.keys.of_class("svm", 0)
        assert not kept.keys.is_done(path, key)  # nothing there yet
        write_result(path, before.keys.of_class("svm", 0), {})
        with pytest.raises(SppdetError, match=r"svm\.safetensors was learned with other settings; give"):
            kept.keys.is_done(path, key)
        assert path.exists()

    @pytest.mark.parametrize(
        ("change", "named"),
        [
            ("svm.C=0.1 regions.scales=[160]", "regions.scales=[96], svm.C=0.001"),
            ("run.seed=4", "run.seed=3"),
            ("detection.nms=0.4 workers=2 data.limit_train=5 memory_gb=1", None),
            ("finetune.steps=5 end_to_end.epochs=1 pretrain.epochs=1", None),  # of stages that the run does not have
            ("features=fc7 finetune.steps=5", "features=pool5, finetune.steps=2000"),
        ],
    )
    def test_settings_are_compared_with_the_config_of_the_run(self, runs, tmp_path, change, named):
        run = f"run.dir={tmp_path}"
        (tmp_path / "config.json").write_text(config.to_yaml(runs.inputs(run).config))
        keys = runs.inputs(f"{run} {change}", keep=True).keys
        if named is None:
            keys.check_kept()
            return
        with pytest.raises(SppdetError) as caught:
            keys.check_kept()
        assert f"was learned with other settings ({named}); give those of the run" in str(caught.value)


def write_exact_images(root: Path) -> Path:
    """Write a data set whose bytes are the same on every machine: bitmaps of one colour, an object of each class."""
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / folder).mkdir(parents=True)
    for number, name in enumerate("abc"):
        Image.new("RGB", (64, 48), (40 * number, 90, 200)).save(root / "JPEGImages" / f"{name}.bmp")
        box = f"<bndbox><xmin>{5 + number}</xmin><ymin>6</ymin><xmax>40</xmax><ymax>30</ymax></bndbox>"
        objects = "".join(f"<object><name>{kind}</name>{box}</object>" for kind in ("cat", "dog"))
        (root / "Annotations" / f"{name}.xml").write_text(f"<annotation>{objects}</annotation>")
    (root / "ImageSets" / "Main" / "trainval.txt").write_text("a\nb\n")
    (root / "ImageSets" / "Main" / "test.txt").write_text("c\n")
    return root


# Digests of keys as the last version before the rooms of the package computed them, by settings and stage. Everything
# that they depend on is the same on every machine. When the default of a setting changes, give its former value here.
FORMER_DIGESTS = {
    "svm.C=0.001": {
        "pretrain": "9fb6ed254410a854",
        "end_to_end": "4a3f86272ea06ccd",
        "finetune": "8275d1d83e59b0ae",
        "bbox": "bfa1c47aff33e5e0",
        "context": "d7f22a83d05c8e72",
        "svm": "13ede27be9e1cf01",
    },
    "features=fc7 svm.flip=true svm.positive_overlap=0.7 finetune.flip=true": {
        "pretrain": "9fb6ed254410a854",
        "end_to_end": "4a3f86272ea06ccd",
        "finetune": "7e4063eae53951dc",
        "bbox": "bfa1c47aff33e5e0",
        "context": "282794ceaadd1a13",
        "svm": "62a3fd708fb3ea88",
    },
    "features=pool5+fc7 end_to_end.enabled=true bbox.kind=ridge+joint": {
        "pretrain": "9fb6ed254410a854",
        "end_to_end": "1ffafe9a1b0cdcd6",
        "finetune": "e7443644eb841b30",
        "bbox": "b003255141e004ba",  # of pooled vectors alone; before, fc7 was beside them
        "context": "7eff277e5139bbcb",
        "svm": "48bdb42280f50a01",
    },
    "regions.crop=warp": {
        "pretrain": "9fb6ed254410a854",
        "end_to_end": "9bcdc96c44c9c04b",
        "finetune": "50529305dce6ffea",
        "bbox": "627a39d94b9549a9",
        "context": "256c4edcf4977ba6",
        "svm": "bd179f1469db1786",
    },
}


@pytest.mark.parametrize("changes", FORMER_DIGESTS)
def test_results_of_earlier_versions_stay_valid(tmp_path, changes):
    keys = Runs(tmp_path, write_exact_images(tmp_path / "images")).keys(changes)
    digests = {stage: (keys[stage].get("dog") or keys[stage][""]).data for stage in keys if stage != "calibration"}
    assert digests == FORMER_DIGESTS[changes]
