"""A folder, a config or a data set becomes a detector."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sppdet.config import load_preset
from sppdet.data.splits import read_dataset
from sppdet.training import front_door
from sppdet.training.front_door import train_detector
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
    assert plan.startswith("to do: svm, bbox, evaluate; about ") and plan.endswith(
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
        train_detector(data, TINY, output=tmp_path / "run")
        test = read_dataset(trained.root, "test", data.classes)
        train_detector(data, TINY, test=test)
    (config, (train, held_out)), (_, second) = calls
    assert config.run.dir == str(tmp_path / "run") and config.svm.C == load_preset("default").svm.C
    assert len(train) + len(held_out) == 12 and not {s.id for s in train} & {s.id for s in held_out}
    assert second == (data, test)


def test_test_images_have_the_classes_of_the_training_images(trained):
    data = read_dataset(trained.root, "trainval")
    with pytest.raises(SppdetError, match="its classes are not those of the training images"):
        train_detector(data, test=replace(data, classes=data.classes[::-1]))
    with pytest.raises(SppdetError, match="test: goes with a data set"):
        train_detector(trained.root, test=data)
