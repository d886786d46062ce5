"""A folder, a config or a data set becomes a detector."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from labelled import voc_xml, write
from PIL import Image

from sppdet.config import load, load_preset
from sppdet.data.splits import read_dataset
from sppdet.training import front_door
from sppdet.training.front_door import settings_following_data, train_detector
from sppdet.utils.errors import SppdetError

# Settings of a training of seconds, on any preset.
TINY = (
    "backbone.name=small", "backbone.weights=random", "backbone.layers=[]", "pooling.layer_weights=[]",
    "pooling.map_type=float16",
    "regions.scales=[160]", "regions.target=64", "pooling.levels=[3,1]", "svm.random_negatives=60",
    "svm.max_negatives=60", "bbox.max_windows=100", "proposals.mode=fast", "backbone.precision=float32",
    "proposals.max_side=500", "proposals.min_size=20", "regions.max_side=2500", "device=cpu", "workers=1",
)  # fmt: skip


def test_a_folder_is_trained_as_the_command_does_it(trained, tmp_path, log_lines):
    overrides = [*TINY, f"run.cache={trained.cache}"]
    # The cache has the proposals and maps.
    detector = train_detector(trained.root, overrides, preset="quick", output=tmp_path / "run")
    assert detector.classes == trained.detector().classes and (tmp_path / "run" / "metrics.json").exists()
    assert "measuring the speed of this machine" in "".join(log_lines)
    (plan,) = [line for line in log_lines if line.startswith("to do: ")]
    assert plan.startswith("to do: svm, context, bbox, calibration, evaluate; about ") and plan.endswith(
        " on 1 core"
    )  # the cache has the rest
    assert "proposals  finished earlier" in "".join(log_lines)
    assert log_lines[-2] == f"  sppdet detect PHOTO.jpg --model {tmp_path / 'run'}"

    # Again: nothing is left to do, and it says so.
    log_lines.clear()
    train_detector(trained.root, overrides, preset="quick", output=tmp_path / "run")
    assert not [line for line in log_lines if line.startswith(("to do", "measuring"))]
    assert sum(line.endswith("finished earlier") for line in log_lines) >= 4


def test_a_data_set_is_divided_or_measured_on_another(trained, tmp_path):
    data = read_dataset(trained.root, "trainval")
    calls = []

    class Stages:
        def __init__(self, config, keep, data):
            calls.append((config, data))

        def run(self, last, force): ...

        def detector(self): ...

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(front_door, "Pipeline", Stages)
        patched.setattr(front_door, "choose_settings", lambda *_: [])
        train_detector(data, TINY, output=tmp_path / "run")
        test = read_dataset(trained.root, "test", data.classes)
        train_detector(data, TINY, test=test)
    (config, (train, held_out)), (_, second) = calls
    assert config.run.dir == str(tmp_path / "run") and config.svm.C == load_preset("default").svm.C
    assert len(train) + len(held_out) == 12 and not {s.id for s in train} & {s.id for s in held_out}
    assert second == (data, test)


SMALL = 14  # pixels a side


@pytest.fixture
def tiny_objects(tmp_path) -> Path:
    """Eight images of 900 x 660 pixels, each with three squares that are smaller than a segment at 500 pixels."""
    folder, rng = tmp_path / "tiny objects", np.random.default_rng(0)
    folder.mkdir()
    for number in range(8):
        pixels = np.full((660, 900, 3), 128, np.uint8)
        corners = [(100 + 250 * k + int(rng.integers(0, 150)), int(rng.integers(20, 600))) for k in range(3)]
        for x, y in corners:
            pixels[y : y + SMALL, x : x + SMALL] = (220, 30, 30)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        objects = [("square", x + 1, y + 1, x + SMALL, y + SMALL) for x, y in corners]
        write(folder / f"{number}.xml", voc_xml(*objects, filename=f"{number}.png", size=(900, 660)))
    return folder


def test_settings_are_chosen_from_the_data_in_python_as_by_the_command(tiny_objects, tmp_path, log_lines):
    fixed = [text for text in TINY if not text.startswith(("proposals.m", "regions.max_side"))]
    overrides = [*fixed, f"run.cache={tmp_path / 'cache'}"]
    command = settings_following_data(tiny_objects, overrides, "quick", tmp_path / "run")
    # 14 pixels are 8 at 500 pixels, and no segment has fewer than 100 pixels; the search also dropped windows below 20.
    assert command.proposals.max_side > 500 and command.proposals.min_size <= SMALL
    assert any(line.startswith(f"proposals.max_side={command.proposals.max_side}: ") for line in log_lines)

    train = read_dataset(tiny_objects)
    test = read_dataset(tiny_objects, "test", train.classes)
    train_detector(train, overrides, preset="quick", output=tmp_path / "run", test=test)
    run = load(tmp_path / "run" / "config.json")
    assert (run.proposals, run.regions) == (command.proposals, command.regions)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["proposals"]["recall@0.5"] >= 0.95
    # A run that exists keeps what was chosen.
    log_lines.clear()
    train_detector(train, overrides, preset="quick", output=tmp_path / "run", test=test)
    assert not any(line.startswith("proposals.max_side=") for line in log_lines)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("backbone.name=resnet19", "backbone.name: 'resnet19' is none of"),
        ("backbone.name=swin_t", "swin_t"),
        ("backbone.layers=[nowhere]", "small has no layer 'nowhere'"),
        ("backbone.weights=nothing.pth", "backbone.weights: nothing.pth does not exist"),
        ("backbone.weights=imagenet", "no imagenet weights of 'small'"),
    ],
)
def test_a_network_that_cannot_be_made_is_refused_before_settings_are_tried(
    tiny_objects, tmp_path, monkeypatch, change, message
):
    monkeypatch.setattr(front_door, "choose_settings", lambda *_: pytest.fail("settings were tried"))
    with pytest.raises(SppdetError, match=message) as caught:
        settings_following_data(tiny_objects, [*TINY, change], "quick", tmp_path / "run")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("preset", "number", "message"),
    [
        ("best", 5, r"--folds: with end_to_end\.enabled=true a network learns .*; take the preset default or quick"),
        ("quick", 1, "--folds: expected 2 or more, found 1"),
    ],
)
def test_folds_that_cannot_be_are_refused_before_settings_are_tried(
    tiny_objects, tmp_path, monkeypatch, preset, number, message
):
    monkeypatch.setattr(front_door, "choose_settings", lambda *_: pytest.fail("settings were tried"))
    with pytest.raises(SppdetError, match=message):
        settings_following_data(tiny_objects, (), preset, tmp_path / "run", number)


@pytest.mark.parametrize("in_memory", [False, True])
def test_folds_with_what_they_exclude_are_refused_before_settings_are_tried(tiny_objects, monkeypatch, in_memory):
    monkeypatch.setattr(front_door, "choose_settings", lambda *_: pytest.fail("settings were tried"))
    source = read_dataset(tiny_objects) if in_memory else tiny_objects
    with pytest.raises(SppdetError, match="--folds: goes with neither"):
        train_detector(source, preset="quick", folds=2, keep=not in_memory)


def test_test_images_have_the_classes_of_the_training_images(trained):
    data = read_dataset(trained.root, "trainval")
    with pytest.raises(SppdetError, match="its classes are not those of the training images"):
        train_detector(data, test=replace(data, classes=data.classes[::-1]))
    with pytest.raises(SppdetError, match="test: goes with a data set"):
        train_detector(trained.root, test=data)


def test_few_objects_of_a_class_are_learned_at_more_scales(tiny_objects, tmp_path, log_lines):
    fixed = [*(text for text in TINY if not text.startswith("regions.scales")), "data.limit_train=2"]
    config = settings_following_data(tiny_objects, fixed, "default", tmp_path / "run")
    assert len(config.regions.scales) == 3
    (line,) = [line for line in log_lines if "a third scale" in line]
    assert line.startswith("regions.scales: 6 objects per class")  # which scales they are, the next line says
