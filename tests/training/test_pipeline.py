"""From images to metrics through the command line: stages, resuming, classes apart, and what can go wrong."""

from __future__ import annotations

import json
import re
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from annotations import narrow_first_object, rename_class, rename_objects
from PIL import Image
from safetensors.torch import load_file

import sppdet
from sppdet import config
from sppdet.cli.combine import main as combine
from sppdet.cli.evaluate import main as evaluate
from sppdet.cli.train import main
from sppdet.networks.trunks import build_trunk
from sppdet.proposals.search import SelectiveSearch
from sppdet.training import bbox_regression
from sppdet.training.mining import Miner

TINY = {
    "backbone": {"name": "small", "weights": "random", "precision": "float32"},
    "regions": {"scales": [160], "target": 64},
    "pooling": {"levels": [3, 1]},
    "svm": {"random_negatives": 60, "max_negatives": 60, "C": 0.01},
    "bbox": {"max_windows": 100},
    "device": "cpu",
    "workers": 1,
}


class Workplace:
    """A data set, a cache and a run of the tiny configuration."""

    def __init__(self, folder: Path, root: Path, cache: Path | None = None):
        folder.mkdir(exist_ok=True)
        self.root, self.run, self.cache = root, folder / "run", cache or folder / "cache"
        self.yaml = folder / "tiny.yaml"
        run = {"dir": str(self.run), "cache": str(self.cache)}
        self.yaml.write_text(yaml.safe_dump({**TINY, "data": {"root": str(root)}, "run": run}))

    def train(self, *arguments: str) -> int:
        return main([str(self.yaml), *arguments])

    def model(self) -> bytes:
        return (self.run / "model.json").read_bytes() + (self.run / "model.safetensors").read_bytes()

    def times(self, pattern: str = "run/stages/**/*") -> dict[str, int]:
        """When each file below the folder was written."""
        paths = self.yaml.parent.glob(pattern)
        return {str(path): path.stat().st_mtime_ns for path in paths if path.is_file()}

    def stored(self, kind: str, suffix: str) -> list[str]:
        return sorted(path.stem for path in (self.cache / kind).rglob(f"*{suffix}"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory, shapes_root) -> Workplace:
    """A finished run; its cache is shared by the runs that do not test the cache."""
    place = Workplace(tmp_path_factory.mktemp("trained"), shapes_root)
    assert place.train() == 0
    return place


@pytest.fixture
def place(tmp_path, trained) -> Workplace:
    """A run that is still to be done, on the images and the cache of the finished one."""
    return Workplace(tmp_path, trained.root, trained.cache)


@pytest.fixture
def own_data(tmp_path, shapes_root) -> Path:
    return Path(shutil.copytree(shapes_root, tmp_path / "shapes"))


def error_lines(capsys) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if "error:" in line]


def test_a_run_leaves_its_settings_costs_model_and_metrics(trained, shapes_root):
    metrics = json.loads((trained.run / "metrics.json").read_text())
    assert set(metrics["AP"]) == {"circle", "cross", "ring", "square", "star", "triangle"}
    assert 0 <= metrics["mAP"] <= 100
    saved = json.loads((trained.run / "config.json").read_text())
    assert saved["regions"]["scales"] == [160] and saved["versions"]["sppdet"] == sppdet.__version__
    costs = json.loads((trained.run / "stages.json").read_text())
    assert {"proposals", "maps", "svm", "bbox", "evaluate"} <= set(costs)
    assert all(costs[stage]["seconds"] >= 0 for stage in costs)
    assert len(trained.stored("proposals", ".npy")) == 18 == len(trained.stored("maps", ".b2nd"))
    assert not list(trained.yaml.parent.rglob(".*.*"))  # no temporary file is left


def test_the_model_detects(trained, shapes_root):
    detector = sppdet.load(trained.run, device="cpu")
    found = detector.predict(shapes_root / "JPEGImages" / "test_00000.jpg", threshold=None)
    assert found.classes == ("circle", "cross", "ring", "square", "star", "triangle")
    assert len(found) and (np.diff(found.scores) <= 0).all()


def test_a_run_combined_with_itself_finds_the_same(tmp_path, trained, capsys):
    assert combine([str(trained.run), str(trained.run), "--output", str(tmp_path / "twice")]) == 0
    assert evaluate([str(tmp_path / "twice")]) == 0
    twice, alone = (json.loads((run / "metrics.json").read_text()) for run in (tmp_path / "twice", trained.run))
    for name in ("AP", "coco", "proposals", "without_bbox"):
        assert twice[name] == alone[name]
    assert evaluate([str(tmp_path / "twice"), "--against", str(trained.run)]) == 0
    assert "+0.00, between +0.00 and +0.00" in capsys.readouterr().out
    assert evaluate([str(tmp_path / "twice"), "--diagnose"]) == 0


def test_a_combination_is_not_replaced_by_one_model(tmp_path, trained, capsys):
    both = tmp_path / "both"
    assert combine([str(trained.run), str(trained.run), "--output", str(both)]) == 0
    before = sorted(both.rglob("*"))
    assert main([str(both / "config.json"), f"run.cache={trained.cache}"]) == 2
    (line,) = error_lines(capsys)
    assert line == f"error: {both}: holds detectors combined, which training would replace; give another run.dir"
    assert sorted(both.rglob("*")) == before


def test_a_second_run_does_nothing_again(trained):
    def files():
        found = trained.times("**/*")
        rewritten = ("config.json", "model.json", "model.safetensors")  # cheap, and the same bytes each time
        return {path: time for path, time in found.items() if Path(path).name not in rewritten or "stages" in path}

    before, model = files(), trained.model()
    assert trained.train() == 0
    assert files() == before and trained.model() == model


def test_an_interrupted_run_ends_at_the_same_model(tmp_path, trained, shapes_root, monkeypatch, capsys):
    place = Workplace(tmp_path, shapes_root)  # with a cache of its own
    search, calls = SelectiveSearch.__call__, []

    def until_the_fifth(self, image):
        calls.append(1)
        if len(calls) == 1 + 5:  # the first is to compile
            raise KeyboardInterrupt
        return search(self, image)

    def stop(*_, **__):
        raise KeyboardInterrupt

    for owner, name, replacement in (
        (SelectiveSearch, "__call__", until_the_fifth),
        (Miner, "train", stop),
        (bbox_regression, "train", stop),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, replacement)
            assert place.train() == 130
        assert "goes on from here" in capsys.readouterr().err
        assert not (place.run / "model.json").exists()
        if owner is SelectiveSearch:
            assert len(place.stored("proposals", ".npy")) == 4
    svms = place.times("run/stages/svm/*")
    assert place.train() == 0
    assert place.times("run/stages/svm/*") == svms
    assert place.model() == trained.model()


def remove_objects(annotation: Path, name: str | None = None) -> None:
    """Take all objects, or those of one class, out of an image's annotation."""
    tree = ET.parse(annotation)
    for element in tree.getroot().findall("object"):
        if name in (None, element.findtext("name")):
            tree.getroot().remove(element)
    tree.write(annotation)


def test_a_class_is_added_without_touching_the_others(tmp_path, trained, own_data, shapes_root):
    place = Workplace(tmp_path, own_data, trained.cache)
    for annotation in (own_data / "Annotations").iterdir():
        remove_objects(annotation, "ring")
    assert place.train("--stage", "bbox") == 0
    before = place.times()
    assert not [path for path in before if "ring" in path] and [path for path in before if "star" in path]
    shutil.copytree(shapes_root / "Annotations", own_data / "Annotations", dirs_exist_ok=True)
    assert place.train() == 0
    after = place.times()
    assert {path: after[path] for path in before} == before
    added = sorted(str(Path(path).relative_to(place.run)) for path in set(after) - set(before))
    assert added == [f"stages/{kind}/ring.{end}" for kind in ("bbox", "svm") for end in ("json", "safetensors")]
    assert place.model() == trained.model()  # as if all had been trained together


def test_images_are_asked_too_and_a_class_is_added_alone(tmp_path, trained, own_data, capsys):
    place = Workplace(tmp_path, own_data, trained.cache)
    shutil.copytree(trained.run / "stages", place.run / "stages")
    assert place.train("detection.context=0.3") == 0
    of_images = place.times("run/stages/context/*")
    assert len(of_images) == 12  # two files a class
    model = sppdet.load(place.run, device="cpu")
    assert model.image_svms.weight.shape == model.classifier.weight.shape
    costs = json.loads((place.run / "stages.json").read_text())
    assert costs["context"]["classes"] == 6 and "svm" not in costs  # the windows' SVMs were there and serve on

    rename_objects(own_data / "Annotations" / "train_00000.xml", "comet")
    assert place.train("detection.context=0.3", "--keep") == 0
    now = place.times("run/stages/context/*")
    assert {path: now[path] for path in of_images} == of_images
    assert {Path(path).stem for path in now.keys() - of_images.keys()} == {"comet"}

    assert evaluate([str(place.run), "detection.context=0"]) == 0
    capsys.readouterr()
    assert evaluate([str(trained.run), "detection.context=0.3"]) == 2
    assert error_lines(capsys) == [
        "error: detection.context: this model has no SVMs of whole images; train with it to have them"
    ]


def test_a_stage_that_the_configuration_does_not_have_is_said_to_be_none(place, capsys):
    assert place.train("--stage", "end_to_end") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "end_to_end: this configuration has no such stage"


def test_a_stage_stops_there_and_force_does_it_again(place):
    assert place.train("--stage", "svm") == 0
    svms = place.times("run/stages/svm/*.safetensors")
    contents = {path: Path(path).read_bytes() for path in svms}
    assert len(svms) == 6 and not (place.run / "stages" / "bbox").exists()
    assert not (place.run / "metrics.json").exists()
    assert place.train("--stage", "bbox") == 0
    boxes = place.times("run/stages/bbox/*")
    assert place.times("run/stages/svm/*.safetensors") == svms
    assert place.train("--stage", "svm", "--force") == 0
    again = place.times("run/stages/svm/*.safetensors")
    assert all(again[path] > svms[path] for path in svms)
    assert {path: Path(path).read_bytes() for path in again} == contents
    assert place.times("run/stages/bbox/*") == boxes


def test_what_is_interrupted_while_it_is_done_again_goes_on_without_force(place, monkeypatch, capsys):
    assert place.train("--stage", "svm") == 0

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Miner, "train", stop)
        assert place.train("--stage", "svm", "--force") == 130
    assert "the same command without --force goes on from here" in capsys.readouterr().err
    before = place.times("run/stages/svm/*.safetensors")
    assert place.train("--stage", "svm") == 0
    after = place.times("run/stages/svm/*.safetensors")
    assert all(after[path] > before[path] for path in before)


def test_force_does_everything_again(tmp_path, shapes_root):
    place = Workplace(tmp_path, shapes_root)
    assert place.train() == 0
    before, model = place.times("**/*"), place.model()
    assert place.train("--force") == 0
    after = place.times("**/*")
    old = [path for path in after if after[path] == before[path]]
    assert {Path(path).name for path in old} == {"settings.json", "tiny.yaml"}
    assert place.model() == model


def test_a_changed_setting_redoes_what_depends_on_it(place):
    assert place.train("--stage", "bbox") == 0
    svms, boxes = place.times("run/stages/svm/*"), place.times("run/stages/bbox/*")
    assert place.train("svm.C=0.02", "--stage", "bbox") == 0
    now = place.times("run/stages/svm/*")
    assert all(now[path] > svms[path] for path in svms)
    assert place.times("run/stages/bbox/*") == boxes


@pytest.mark.parametrize(
    ("flipped", "options"),
    [
        ({"svm"}, ["svm.flip=true"]),
        ({"bbox"}, ["bbox.flip=true"]),
        ({"finetune", "svm"}, ["finetune.flip=true", "features=fc6", "finetune.units=16", "finetune.steps=4",
                               "finetune.batch_size=32"]),
    ],
)  # fmt: skip
def test_mirror_images_are_learned_from_where_asked_for_and_not_tested_on(tmp_path, trained, flipped, options):
    place = Workplace(tmp_path, trained.root)
    shutil.copytree(trained.cache, place.cache)
    shutil.copytree(trained.run / "stages", place.run / "stages")
    assert place.train(*options) == 0
    assert len(place.stored("proposals", ".npy")) == 18
    mirrored = [name for name in place.stored("maps", ".b2nd") if name.endswith("-mirrored")]
    assert len(mirrored) == 12 and all(name.startswith("train") for name in mirrored)
    costs = json.loads((place.run / "stages.json").read_text())
    assert flipped < costs.keys() and not {"finetune", "svm", "bbox"} - flipped & costs.keys()  # the others were there
    assert json.loads((place.run / "metrics.json").read_text())["pictures"] == 6


def test_another_kind_of_pooling_is_learned_from_the_same_maps(place, trained):
    maps = trained.times("cache/maps/**/*.b2nd")
    assert len(maps) == 18 and place.train("pooling.kind=align", "pooling.samples=2") == 0
    assert trained.times("cache/maps/**/*.b2nd") == maps
    features = json.loads((place.run / "model.json").read_text())["features"]
    assert (features["kind"], features["samples"]) == ("align", 2)
    assert json.loads((place.run / "metrics.json").read_text())["pictures"] == 6
    svms = place.times("run/stages/svm/*")
    assert place.train("pooling.kind=align", "pooling.samples=1") == 0
    assert not set(place.times("run/stages/svm/*").items()) & set(svms.items())


def test_a_changed_box_retrains_its_class_alone(tmp_path, trained, own_data):
    place = Workplace(tmp_path, own_data, trained.cache)
    assert place.train("--stage", "svm") == 0
    before = place.times("run/stages/svm/*.safetensors")
    name = narrow_first_object(own_data / "Annotations" / "train_00000.xml")
    assert place.train("--stage", "svm") == 0
    after = place.times("run/stages/svm/*.safetensors")
    assert [Path(path).stem for path in after if after[path] != before[path]] == [name]


def test_a_class_with_new_images_is_learned_alone_where_the_others_are_kept(tmp_path, trained, own_data, capsys):
    listed = own_data / "ImageSets" / "Main" / "trainval.txt"
    every = listed.read_text()
    *_, new = every.split()
    listed.write_text(every.replace(new, ""))
    place = Workplace(tmp_path, own_data, trained.cache)
    assert place.train("--stage", "bbox") == 0
    before = place.times("run/stages/*/*.safetensors")

    listed.write_text(every)
    rename_objects(own_data / "Annotations" / f"{new}.xml", "comet")
    capsys.readouterr()
    assert place.train("--keep") == 0
    after = place.times("run/stages/*/*.safetensors")
    assert {Path(path).name for path in after.keys() - before.keys()} == {"comet.safetensors"}
    assert all(after[path] == before[path] for path in before)
    assert "svm: learning comet alone" in capsys.readouterr().out
    assert "comet" in sppdet.load(place.run, device="cpu").classes

    assert place.train("--stage", "bbox") == 0  # without it the others learn from the new image too
    last = place.times("run/stages/*/*.safetensors")
    assert {Path(path).stem for path in last if last[path] == after[path]} == {"comet"}
    # The class that was added is what it would have been, had all been there from the beginning.
    other = Workplace(tmp_path / "other", own_data, trained.cache)
    assert other.train("--stage", "svm") == 0
    name = "stages/svm/comet.safetensors"
    assert (other.run / name).read_bytes() == (place.run / name).read_bytes()


def test_a_class_is_learned_alone_above_a_network_that_was_trained_for_the_others(tmp_path, trained, own_data, capsys):
    place = Workplace(tmp_path, own_data, trained.cache)
    options = ["features=pool5+fc7", "end_to_end.enabled=true", "end_to_end.frozen_stride=0", "end_to_end.epochs=0.3"]
    options += ["end_to_end.units=16", "end_to_end.scales=[96]"]
    assert place.train("--stage", "bbox", *options) == 0
    before = place.times("run/stages/**/*.safetensors")
    rename_objects(own_data / "Annotations" / "train_00000.xml", "comet")
    capsys.readouterr()
    assert place.train("--stage", "bbox", "--keep", *options) == 0
    after = place.times("run/stages/**/*.safetensors")
    assert {Path(path).name for path in after.keys() - before.keys()} == {"comet.safetensors"}
    assert all(after[path] == before[path] for path in before)  # the network, the balance, the other classes

    # Boxes that the network has learned to move are moved by it too; those of the new class by ridge regression alone.
    assert place.train("--keep", *options, "bbox.kind=ridge+joint") == 0
    assert place.times("run/stages/**/*.safetensors") == after
    detector = sppdet.load(place.run, device="cpu")
    moving = load_file(place.run / "stages" / "end_to_end.safetensors")["move.weight"].numpy().reshape(-1, 4, 16)
    others = iter(moving / detector.head.balance)
    assert len(moving) == len(detector.classes) - 1
    for name, found in zip(detector.classes, detector.regressors.weight):
        expected = load_file(place.run / "stages" / "bbox" / f"{name}.safetensors")["weight"].numpy()
        if name != "comet":
            expected = (expected + np.pad(next(others), [(0, 0), (expected.shape[1] - 16, 0)])) / 2
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_what_is_kept_is_not_lost_to_other_settings(place, capsys):
    assert place.train() == 0
    before = place.times()
    for change, own in (("svm.C=0.02", "svm.C=0.01"), ("run.seed=4", "run.seed=3")):
        assert place.train("--keep", change, "detection.nms=0.4", "workers=2") == 2
        (line,) = error_lines(capsys)
        assert f"run was learned with other settings ({own}); give those" in line
        assert place.times() == before
    assert main([str(place.run / "config.json"), "--keep"]) == 0
    assert place.train("--keep", "finetune.flip=true", "end_to_end.units=16", "pretrain.epochs=1") == 0  # of no stage
    assert place.times() == before


def test_two_runs_are_compared_on_the_same_images(trained, place, capsys):
    assert place.train("svm.C=0.002") == 0
    capsys.readouterr()
    assert evaluate([str(place.run), "--against", str(trained.run)]) == 0
    line, *_ = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"mAP \S+, of \S+ \S+: [+-]\S+, between \S+ and \S+ in 95% of 1000 draws of 6 .*", line)
    assert evaluate([str(trained.run), "--against", str(trained.run)]) == 0
    assert ": +0.00, between +0.00 and +0.00 " in capsys.readouterr().out
    assert evaluate([str(place.run), "data.limit_test=3"]) == 0
    assert evaluate([str(trained.run), "--against", str(place.run)]) == 2
    (line,) = error_lines(capsys)
    assert "was measured on other images or classes" in line


@pytest.mark.parametrize("together", [["classifier=softmax", "bbox.kind=joint"], ["bbox.kind=joint"]])
def test_what_is_learned_for_all_classes_at_once_cannot_be_kept(place, capsys, together):
    assert (
        place.train("--keep", "features=fc7", "end_to_end.enabled=true", "end_to_end.frozen_stride=0", *together) == 2
    )
    (line,) = error_lines(capsys)
    assert "error: --keep:" in line and "classifier=svm and bbox.kind=ridge" in line and not place.run.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("regions.scale=[160]", "did you mean 'regions.scales'?"),
        ("svm.C=lots", "svm.C: expected float, found 'lots'"),
        ("data.train_split=trian", "there are: test, train, trainval"),
        ("data.root=/nowhere/at/all", "data.root: there is no folder /nowhere/at/all in /"),
        ("device=tpu9", "device: expected auto, cpu or cuda, found 'tpu9'"),
        ("backbone.name=resnet19", "backbone.name: 'resnet19' is none of alexnet, "),
    ],
)
def test_mistakes_are_one_line_and_status_2(place, capsys, text, message):
    assert place.train(text) == 2
    (line,) = error_lines(capsys)
    assert line.startswith("error: ") and message in line


def test_weights_of_another_network(place, tmp_path, capsys):
    torch.save(build_trunk("squeezenet1_1").state_dict(), tmp_path / "other.pth")
    assert place.train(f"backbone.weights={tmp_path / 'other.pth'}") == 2
    (line,) = error_lines(capsys)
    assert "other.pth does not fit small" in line


def test_a_broken_image_costs_the_others_nothing(tmp_path, own_data, capsys):
    place = Workplace(tmp_path, own_data)
    image = own_data / "JPEGImages" / "train_00003.jpg"
    content = image.read_bytes()
    image.write_bytes(content[: len(content) // 2])
    assert place.train("--stage", "svm") == 2
    (line,) = error_lines(capsys)
    assert "train_00003.jpg" in line
    stored = place.stored("proposals", ".npy")
    assert len(stored) == 17 and not any("train_00003" in name for name in stored)
    image.write_bytes(content)
    assert place.train("--stage", "svm") == 0
    assert len(place.stored("proposals", ".npy")) == 18


def test_a_class_without_training_objects_is_named_and_never_found(place, capsys, shapes_root):
    # As in a split that data.limit_train cuts short: the other classes are trained all the same.
    assert place.train("data.classes=[circle,cross,hexagon,ring,square,star,triangle]", "detection.min_margin=-9") == 0
    output = capsys.readouterr()
    assert "hexagon" in "".join(line for line in (output.out + output.err).splitlines() if "no training" in line)
    found = sppdet.load(place.run, device="cpu").predict(shapes_root / "JPEGImages" / "test_00000.jpg", threshold=None)
    names = {thing["label"] for thing in found.to_list()}
    assert "star" in names and "hexagon" not in names


def test_images_without_objects_or_proposals(tmp_path, own_data):
    place = Workplace(tmp_path, own_data)
    remove_objects(own_data / "Annotations" / "train_00001.xml")
    remove_objects(own_data / "Annotations" / "test_00001.xml")
    for name in ("train_00002", "test_00002", "test_00003"):  # black: nothing to propose
        path = own_data / "JPEGImages" / f"{name}.jpg"
        Image.new("RGB", Image.open(path).size).save(path)
    remove_objects(own_data / "Annotations" / "test_00003.xml")
    assert place.train("proposals.min_size=24") == 0
    assert 0 <= json.loads((place.run / "metrics.json").read_text())["mAP"] <= 100


def test_what_the_files_of_results_cannot_hold_is_told_first(tmp_path, own_data, capsys):
    for folder, suffix in (("Annotations", "xml"), ("JPEGImages", "jpg")):
        (own_data / folder / f"test_00001.{suffix}").rename(own_data / folder / f"my photo.{suffix}")
    listed = own_data / "ImageSets" / "Main" / "test.txt"
    listed.write_text(listed.read_text().replace("test_00001", "my photo"))
    place = Workplace(tmp_path, own_data)
    assert place.train() == 2
    (line,) = error_lines(capsys)
    assert "image 'my photo': white space would break" in line and not place.run.exists()


def test_what_is_to_be_learned_is_listed_and_images_of_both_splits_are_told_of(place, capsys):
    assert place.train("data.test_split=trainval", "--stage", "proposals") == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"trainval: 12 images, \d+ objects: circle \d+, cross \d+, .*", lines[0])
    assert lines[2] == "warning: 12 images are in trainval and in trainval: mAP will flatter"
    assert "recall@0.5" in lines[3]  # though they were there before


def test_a_split_without_any_object_is_refused(tmp_path, own_data, capsys):
    for path in (own_data / "Annotations").iterdir():
        remove_objects(path)
    assert Workplace(tmp_path, own_data).train() == 2
    (line,) = error_lines(capsys)
    assert "trainval: there is no object in its annotations" in line


def test_boxes_learned_together_are_of_the_classes_they_were_learned_for(tmp_path, trained, own_data):
    """Under other names, in the same order, they would be taken for those of other classes."""
    place = Workplace(tmp_path, own_data, trained.cache)
    options = ["end_to_end.enabled=true", "end_to_end.frozen_stride=0", "end_to_end.epochs=0.1", "end_to_end.units=16"]
    options += ["end_to_end.scales=[96]", "--stage", "end_to_end"]
    note = place.run / "stages" / "end_to_end.json"
    assert place.train(*options) == 0 and "star" in json.loads(note.read_text())["classes"]
    rename_class(own_data, "star", "stork")
    assert place.train(*options) == 0
    assert json.loads(note.read_text())["classes"] == ["circle", "cross", "ring", "square", "stork", "triangle"]


@pytest.mark.parametrize(
    "first, then",
    [
        ([], ["pooling.levels=[2]"]),
        (["features=fc6"], ["features=fc6", "svm.norm=10"]),
        ([], ["data.classes=[circle,cross,ring,square,star,triangle,zebra]"]),
    ],
    ids=["levels", "norm", "one class more"],
)
def test_trained_networks_depend_on_more_than_their_own_settings(place, first, then):
    options = [
        "backbone.weights=pretrain", "pretrain.sizes=[48]", "pretrain.epochs=1", "pretrain.batch_size=16",
        "finetune.units=16", "finetune.steps=4", "finetune.batch_size=32", "run.seed=5",
    ]  # fmt: skip
    assert place.train(*options, *first, "--stage", "finetune") == 0
    before = {path.name: path.stat().st_mtime_ns for path in (place.run / "stages").glob("*.safetensors")}
    assert place.train(*options, *then, "--stage", "finetune") == 0
    after = {path.name: path.stat().st_mtime_ns for path in (place.run / "stages").glob("*.safetensors")}
    assert any(after[name] != time for name, time in before.items())


def test_what_fc_layers_begin_with_does_not_depend_on_the_norm_of_the_svms(place):
    options = ["features=fc6", "finetune.units=16", "finetune.steps=1", "finetune.batch_size=32", "--stage", "finetune"]
    scales = []
    for norm in (20, 10):
        assert place.train(*options, f"svm.norm={norm}") == 0
        scales.append(json.loads((place.run / "stages" / "finetune.json").read_text())["head"]["scale"])
    assert scales[0] == pytest.approx(scales[1]) and scales[0] != 1


def test_every_stage_on_the_way_to_fc_features(place):
    options = [
        "backbone.weights=pretrain", "pretrain.sizes=[48]", "pretrain.epochs=1", "pretrain.batch_size=16",
        "features=fc6", "finetune.units=16", "finetune.steps=4", "finetune.batch_size=32",
    ]  # fmt: skip
    assert place.train(*options) == 0
    costs = json.loads((place.run / "stages.json").read_text())
    assert set(costs) == {"pretrain", "proposals", "maps", "finetune", "svm", "bbox", "evaluate"} - {"proposals"}
    before, model = place.times(), place.model()
    assert {"pretrain.safetensors", "finetune.safetensors"} <= {Path(path).name for path in before}
    assert place.train(*options) == 0
    assert place.times() == before and place.model() == model
    assert sppdet.load(place.run, device="cpu").features.dimension == 16

    # fc6 and fc7 are trained together, so fc7 is there already; its SVMs are not.
    assert place.train(*options, "features=fc7") == 0
    changed = {Path(path).parent.name for path, time in place.times().items() if before.get(path, time) != time}
    assert changed == {"svm"}


@pytest.mark.parametrize(("name", "inputs"), [("vgg16", 512 * 50), ("resnet50", 1024 * 50)])
def test_the_recipes_of_larger_networks_run(name, inputs, tmp_path, shapes_root):
    recipe = Path(__file__).parents[2] / "configs" / f"voc07_sppnet_{name}.yaml"
    options = [
        f"data.root={shapes_root}", "data.limit_train=3", "data.limit_test=1", "backbone.weights=random",
        "regions.scales=[96]", "regions.target=48", "proposals.max_side=100", "svm.random_negatives=30",
        "svm.max_negatives=30", "bbox.max_windows=20", "device=cpu", "workers=1",
        f"run.dir={tmp_path / 'run'}", f"run.cache={tmp_path / 'cache'}",
    ]  # fmt: skip
    assert main([str(recipe), *options]) == 0
    detector = sppdet.load(tmp_path / "run", device="cpu")
    assert detector.features.dimension == inputs
    assert not any(layer.training for layer in detector.backbone.trunk.modules())  # batch norm as it was


def test_end_to_end_training_comes_before_the_maps_and_serves_every_layer(place):
    options = [
        "end_to_end.enabled=true",
        "end_to_end.frozen_stride=0",
        "end_to_end.epochs=0.5",
        "end_to_end.scales=[96]",
        "end_to_end.units=16",
    ]
    assert place.train(*options) == 0
    trained = place.run / "stages" / "end_to_end.safetensors"
    written = trained.stat().st_mtime_ns
    detector = sppdet.load(place.run, device="cpu")
    learned = load_file(trained)
    assert all(
        torch.equal(value, learned[f"trunk.{name}"]) for name, value in detector.backbone.trunk.state_dict().items()
    )
    # Another layer, or images of another size in the detector, are no reason to train again.
    assert place.train(*options, "features=fc7", "regions.scales=[128]") == 0
    assert trained.stat().st_mtime_ns == written
    assert sppdet.load(place.run, device="cpu").features.dimension == 16
    assert "finetune" not in json.loads((place.run / "stages.json").read_text())

    # SVMs on the pooled vectors and on fc7 behind them, at their own norms' balance.
    assert place.train(*options, "features=pool5+fc7") == 0
    assert trained.stat().st_mtime_ns == written
    detector = sppdet.load(place.run, device="cpu")
    assert detector.features.dimension == detector.features.pooled_dimension + 16 == detector.classifier.weight.shape[1]
    assert detector.regressors.of_head and detector.regressors.weight.shape[2] == detector.features.dimension
    assert detector.head.balance == load_file(place.run / "stages" / "balance.safetensors")["balance"].item() != 1

    # With fc layers of lower rank SVMs are learned anew, from what comes of these layers.
    svms = place.times("run/stages/svm/*.safetensors")
    assert place.train(*options, "features=pool5+fc7", "svd_ranks=[4,8]") == 0
    assert trained.stat().st_mtime_ns == written
    assert all(time > svms[path] for path, time in place.times("run/stages/svm/*.safetensors").items())
    assert sppdet.load(place.run, device="cpu").head.ranks == (4, 8)

    # There too the boxes can be those that were learned with fc7, whatever it was multiplied by.
    assert place.train(*options, "features=pool5+fc7", "bbox.kind=joint") == 0
    detector, moving = sppdet.load(place.run, device="cpu"), learned["move.weight"].numpy()
    pooled = detector.features.pooled_dimension
    found = detector.regressors.weight.reshape(len(moving), -1)
    assert detector.regressors.of_head and not found[:, :pooled].any()
    np.testing.assert_allclose(found[:, pooled:] * detector.head.balance, moving, rtol=1e-5)

    # The layers learned with it can take the place of SVMs and ridge regression: Fast R-CNN.
    assert place.train(*options, "features=fc7", "classifier=softmax", "bbox.kind=joint") == 0
    assert trained.stat().st_mtime_ns == written
    detector = sppdet.load(place.run, device="cpu")
    assert np.array_equal(detector.classifier.weight, learned["classify.weight"].numpy())
    assert np.array_equal(detector.regressors.weight.reshape(-1, 16), learned["move.weight"].numpy())
    assert detector.regressors.of_head
    # Nothing is left to learn from maps, so those of images of another size are made for the test only.
    maps = len(place.stored("maps", ".b2nd"))
    learned_together = [*options, "features=fc7", "classifier=softmax", "bbox.kind=joint"]
    assert place.train(*learned_together, "regions.scales=[112]") == 0
    assert len(place.stored("maps", ".b2nd")) == maps + 6

    # And the detector's fc layers can be thinner than those that were trained.
    assert place.train(*options, "features=fc7", "classifier=softmax", "bbox.kind=joint", "svd_ranks=[4,8]") == 0
    assert trained.stat().st_mtime_ns == written
    head = sppdet.load(place.run, device="cpu").head
    assert head.ranks == (4, 8) and head.fc6[0].out_features == 4


@pytest.mark.parametrize(
    "options, message",
    [
        ("features=fc7 finetune.units=16 svd_ranks=[17,4]", "a layer of 16 units has no rank above 16"),
        ("svd_ranks=[4]", "features=pool5 has 0 fc layers; give as many ranks"),
        (
            "end_to_end.enabled=true end_to_end.frozen_stride=0 features=fc7 bbox.kind=joint end_to_end.box_weight=0",
            "joint boxes do not learn with end_to_end.box_weight=0",
        ),
        ("end_to_end.hard_of=10", "end_to_end.hard_of: 64 windows of 10 cannot be chosen"),
    ],
)
def test_choices_that_cannot_work_are_refused(place, capsys, options, message):
    assert place.train(*options.split()) == 2
    (line,) = error_lines(capsys)
    assert message in line


RCNN = ["regions.crop=warp", "regions.crop_size=64", "regions.context=4"]


@pytest.fixture(scope="module")
def trained_rcnn(tmp_path_factory, trained) -> Workplace:
    """A finished run of R-CNN on the same images and proposals."""
    place = Workplace(tmp_path_factory.mktemp("rcnn"), trained.root, trained.cache)
    assert place.train(*RCNN) == 0
    return place


def test_rcnn_runs_through_the_same_stages(trained_rcnn, shapes_root, capsys):
    assert json.loads((trained_rcnn.run / "metrics.json").read_text())["pictures"] == 6
    stored = trained_rcnn.stored("crops", ".rows")
    assert len(stored) == 36  # 18 images: their proposals, and their objects
    before, model = trained_rcnn.times(), trained_rcnn.model()
    assert trained_rcnn.train(*RCNN) == 0
    assert trained_rcnn.times() == before and trained_rcnn.model() == model
    assert trained_rcnn.stored("crops", ".rows") == stored
    detector = sppdet.load(trained_rcnn.run, device="cpu")
    image = shapes_root / "JPEGImages" / "test_00000.jpg"
    found = detector.predict(image, threshold=None)
    assert len(found)
    detector.save(trained_rcnn.run / "copy")
    again = sppdet.load(trained_rcnn.run / "copy", device="cpu").predict(image, threshold=None)
    np.testing.assert_array_equal(found.boxes, again.boxes)
    np.testing.assert_array_equal(found.scores, again.scores)


def test_rcnn_detects_in_an_image_what_it_detects_from_the_cache(trained_rcnn, shapes_root):
    (listed,) = (trained_rcnn.run / "detections").glob("coco_results.json")
    stored = [one for one in json.loads(listed.read_text()) if one["image_id"] == 1]
    found = sppdet.load(trained_rcnn.run, device="cpu").predict(
        shapes_root / "JPEGImages" / "test_00000.jpg", threshold=None
    )
    assert len(stored) and abs(len(stored) - len(found)) <= 2  # vectors are of half precision in both
    np.testing.assert_allclose(sorted(one["score"] for one in stored)[-5:], found.scores[:5][::-1], atol=1e-2)


def test_different_systems_are_combined(tmp_path, trained, trained_rcnn, shapes_root):
    both = tmp_path / "both"
    assert combine([str(trained.run), str(trained_rcnn.run), "--output", str(both)]) == 0
    assert evaluate([str(both), "detection.flip=true"]) == 0
    assert json.loads((both / "metrics.json").read_text())["pictures"] == 6
    found = sppdet.load(both, device="cpu").predict(shapes_root / "JPEGImages" / "test_00000.jpg", threshold=None)
    assert len(found) and (np.diff(found.scores) <= 0).all()


def test_a_class_is_added_to_rcnn_without_touching_the_others(tmp_path, trained_rcnn, own_data, shapes_root):
    place = Workplace(tmp_path, own_data, trained_rcnn.cache)
    for annotation in (own_data / "Annotations").iterdir():
        remove_objects(annotation, "ring")
    assert place.train(*RCNN, "--stage", "bbox") == 0
    before = place.times()
    shutil.copytree(shapes_root / "Annotations", own_data / "Annotations", dirs_exist_ok=True)
    assert place.train(*RCNN) == 0
    after = place.times()
    assert {path: after[path] for path in before} == before
    assert place.model() == trained_rcnn.model()


def test_rcnn_fine_tuned(tmp_path, trained):
    place = Workplace(tmp_path, trained.root, trained.cache)
    options = [
        *RCNN, "end_to_end.enabled=true", "end_to_end.frozen_stride=0", "end_to_end.epochs=1", "end_to_end.units=16",
        "end_to_end.box_weight=0", "end_to_end.background=0", "end_to_end.images_per_step=4",
        "end_to_end.windows_per_image=8", "features=fc7",
    ]  # fmt: skip
    assert place.train(*options) == 0
    learned = load_file(place.run / "stages" / "end_to_end.safetensors")
    detector = sppdet.load(place.run, device="cpu")
    assert detector.features.dimension == 16 and detector.features.crop.size == 64
    trunk = detector.backbone.trunk.state_dict()
    assert all(torch.equal(value, learned[f"trunk.{name}"]) for name, value in trunk.items())


@pytest.mark.parametrize("option", ["classifier=softmax", "bbox.kind=joint"])
def test_layers_that_were_not_learned_are_refused(place, capsys, option):
    assert place.train(option) == 2
    (line,) = error_lines(capsys)
    assert "is a layer on fc7; set end_to_end.enabled=true and features=fc7" in line


@pytest.mark.parametrize("option", ["run.dir=file/run", "run.cache=file"])
def test_a_place_that_cannot_be_written_is_one_line_before_any_work(place, capsys, tmp_path, monkeypatch, option):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert place.train(option) == 2
    (line,) = error_lines(capsys)
    assert "file" in line and ("Not a directory" in line or "File exists" in line)


def test_a_classifiers_folder_is_left_alone(place, capsys):
    place.run.mkdir()
    (place.run / "classifier.json").write_text("{}")
    assert place.train() == 2
    (line,) = error_lines(capsys)
    assert "holds a classifier of images; give another run.dir" in line


def test_what_is_kept_is_compared_before_the_first_stage(trained, tmp_path, capsys):
    shutil.copytree(trained.run, tmp_path / "run")
    place = Workplace(tmp_path, trained.root)  # with an empty cache
    assert place.train("--keep", "regions.scales=[96]") == 2
    (line,) = error_lines(capsys)
    assert "was learned with other settings (regions.scales=[160])" in line
    assert not place.stored("proposals", ".npy")


@pytest.mark.parametrize("option", [["--diagnose"], ["--against", "other"]])
def test_what_was_measured_is_not_told_with_other_thresholds(trained, capsys, option):
    assert evaluate([str(trained.run), *option, "detection.nms=0.9"]) == 2
    (line,) = error_lines(capsys)
    assert "detection.nms=0.9: the last evaluation has its own detection.nms; evaluate again with it first" in line


def test_measuring_does_not_change_the_model(place, capsys):
    assert place.train() == 0
    capsys.readouterr()
    assert evaluate([str(place.run), "regions.scales=[96]"]) == 2
    (line,) = error_lines(capsys)
    assert "regions.scales=[96]: the trained model has its own regions.scales; train again" in line


def test_a_model_can_be_measured_with_other_thresholds(place):
    assert place.train() == 0
    model = place.model()
    before = json.loads((place.run / "metrics.json").read_text())
    assert evaluate([str(place.run), "detection.max_per_class=1"]) == 0
    after = json.loads((place.run / "metrics.json").read_text())
    assert after["key"] != before["key"] and after["config"]["detection"]["max_per_class"] == 1
    found = json.loads((place.run / "detections" / "coco_results.json").read_text())
    pairs = [(one["image_id"], one["category_id"]) for one in found]
    assert len(pairs) == len(set(pairs))
    assert place.model() == model


def test_without_box_regression(place):
    assert place.train("bbox.enabled=false") == 0
    assert sppdet.load(place.run, device="cpu").regressors is None
    metrics = json.loads((place.run / "metrics.json").read_text())
    assert metrics["without_bbox"]["mAP"] == metrics["mAP"]


def test_print_config_is_a_config(place, capsys, tmp_path):
    assert place.train("svm.C=0.5", "--print-config") == 0
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    assert config.load(tmp_path / "printed.yaml") == config.load(place.yaml, ["svm.C=0.5"])
    assert not place.run.exists()


@pytest.mark.parametrize(
    "arguments",
    ["--print-config svm.C=0.5", "--stage svm svm.C=0.5 --print-config", "workers=1 --print-config svm.C=0.5"],
)
def test_settings_and_options_mix(place, capsys, arguments):
    assert place.train(*arguments.split()) == 0
    assert yaml.safe_load(capsys.readouterr().out)["svm"]["C"] == 0.5
