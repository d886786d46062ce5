"""``sppdet classify`` as its users call it: a few coloured images, a small network, seconds."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from sppdet.classification import training as classifier_training
from sppdet.classification.classifier import load_classifier
from sppdet.cli.classify import main
from sppdet.cli.main import main as program
from sppdet.networks import gradient_training

COLOURS = {"blue": (40, 60, 200), "green": (40, 180, 60), "red": (200, 50, 40)}
QUICK = [
    "backbone.name=small", "backbone.weights=random", "backbone.precision=float32", "device=cpu", "workers=1",
    "sizes=[48,40]", "epochs=6", "batch_size=4", "learning_rate=2e-3", "levels=[2,1]", "run.dir=run",
]  # fmt: skip


@pytest.fixture(scope="session")
def colours(tmp_path_factory) -> Path:
    """Six images of each of three colours in train/, two in val/."""
    root, rng = tmp_path_factory.mktemp("colours"), np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 2)):
        for name, colour in COLOURS.items():
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                image = np.clip(rng.normal(colour, 40, (56, 70, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(image).save(root / split / name / f"{i}.png")
    return root


@pytest.fixture(scope="session")
def trained(colours, tmp_path_factory) -> Path:
    """A folder that holds a finished ``run``."""
    folder = tmp_path_factory.mktemp("trained")
    assert main(["train", str(colours), *QUICK[:-1], f"run.dir={folder / 'run'}"]) == 0
    return folder


@pytest.fixture
def workplace(tmp_path, monkeypatch, colours) -> Path:
    """A working folder with the images in ``colours``, which a test may change."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(colours, "colours")
    return tmp_path


@pytest.fixture
def finished(workplace, trained) -> Path:
    """A working folder with the images in ``colours`` and a finished run in ``run``."""
    shutil.copytree(trained / "run", "run")
    return workplace


def errors(capsys) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]


# Training


def test_training_leaves_a_classifier_that_knows_the_classes(finished, colours):
    classifier = load_classifier("run", "cpu")
    assert classifier.classes == ("blue", "green", "red")
    assert [classifier.predict(colours / "val" / name / "0.png").argmax() for name in COLOURS] == [0, 1, 2]
    metrics = json.loads(Path("run/metrics.json").read_text())
    assert metrics["pictures"] == 6 and metrics["top1_error"] < 40
    assert metrics["test"] == {"views": "crop", "view": 48, "side": 55, "scales": [48, 55, 64, 77, 96, 120]}
    settings = json.loads(Path("run/config.json").read_text())
    assert settings["sizes"] == [48, 40] and "torch" in settings["versions"]
    history = json.loads(Path("run/history.json").read_text())
    assert [record["size"] for record in history] == [48, 40] * 3 and "top1_error" in history[-1]
    assert sorted(path.name for path in Path("run").iterdir()) == [
        "classifier.json", "classifier.safetensors", "config.json", "history.json", "metrics.json",
    ]  # fmt: skip


def test_a_finished_training_is_not_repeated(finished, capsys):
    before = Path("run/classifier.safetensors").stat().st_mtime_ns
    assert main(["train", "colours", *QUICK]) == 0
    out = capsys.readouterr().out
    assert "run: trained already; --force begins anew" in out and "top-1 error" in out
    assert Path("run/classifier.safetensors").stat().st_mtime_ns == before
    Image.new("RGB", (50, 50), "red").save("colours/train/red/new.png")  # another image is another training
    assert main(["train", "colours", *QUICK, "epochs=1"]) == 0
    assert Path("run/classifier.safetensors").stat().st_mtime_ns != before


def test_an_interrupted_training_resumes(workplace, capsys, monkeypatch, trained):
    monkeypatch.setattr(gradient_training, "_CHECKPOINT_SECONDS", -1)  # after every step
    learn, calls = classifier_training._learn, []

    def interrupted(*arguments) -> dict[str, float]:
        calls.append(arguments)
        if len(calls) == 10:
            raise KeyboardInterrupt
        return learn(*arguments)

    monkeypatch.setattr(classifier_training, "_learn", interrupted)
    assert main(["train", "colours", *QUICK]) == 130
    assert "the same command goes on from here" in capsys.readouterr().err
    assert Path("run/checkpoint.safetensors").exists() and not Path("run/classifier.json").exists()
    assert main(["train", "colours", *QUICK]) == 0
    assert len(calls) == 10 + 15  # of 24 steps nine were finished
    assert not Path("run/checkpoint.safetensors").exists()
    resumed, whole = (run / "classifier.safetensors" for run in (Path("run"), trained / "run"))
    assert resumed.read_bytes() == whole.read_bytes()


def test_a_checkpoint_of_an_earlier_version_is_ignored(workplace, trained):
    key = json.loads((trained / "run/classifier.json").read_text())["key"]
    Path("run").mkdir()
    save_file({"network.scale": torch.ones(())}, "run/checkpoint.safetensors", metadata={"key": key, "steps": "3"})
    assert main(["train", "colours", *QUICK]) == 0
    ours, whole = (run / "classifier.safetensors" for run in (Path("run"), trained / "run"))
    assert ours.read_bytes() == whole.read_bytes()


def test_without_images_to_measure_on(workplace, capsys):
    arguments = ["train", "colours", *QUICK, "epochs=1", "data.val=null"]
    assert main(arguments) == 0
    assert "18 images of 3 classes, none to measure on" in capsys.readouterr().out
    assert Path("run/classifier.json").exists() and not Path("run/metrics.json").exists()


def test_settings_come_from_a_file_and_the_command_line(workplace, capsys):
    Path("c.yaml").write_text("levels: [6]\nrun: {seed: 5}\n")
    assert main(["train", "colours", "--config", "c.yaml", "sizes=[64]", "--print-config"]) == 0
    out = capsys.readouterr().out
    assert "levels: [6]" in out and "sizes: [64]" in out and "root: colours" in out
    assert "run: {dir: runs/classifier, seed: 5, curves: none}" in out


def break_one_class(root: Path) -> None:
    for name in ("red", "green"):
        shutil.rmtree(root / "train" / name)


@pytest.mark.parametrize(
    ("change", "overrides", "message"),
    [
        (lambda root: shutil.rmtree(root), [], "colours/train: no such file or directory; lay images out"),
        (lambda root: shutil.rmtree(root / "val"), [], "colours/val: no such folder; data.val=FOLDER gives another"),
        (break_one_class, [], "colours/train: holds one class, 'blue'; a classifier needs two or more"),
        (
            lambda root: (root / "val/red").rename(root / "val/rde"),
            [],
            "class 'rde' is none of the 3 that were trained",
        ),
        (lambda root: (root / "train/red/1.png").write_text("x"), [], "train/red/1.png: is no image Pillow knows"),
        (lambda root: None, ["batch_size=99"], "batch_size: 99 is more than the 18 images for training"),
        (lambda root: None, ["size=[48]"], "unknown key 'size'; did you mean 'sizes'?"),
        (lambda root: None, ["side=40"], "side: 40 is less than the largest of sizes, 48, which is cut from it"),
        (lambda root: None, ["test.side=40"], "test.views: crop cuts 48 x 48 from images of a shorter side of 40"),
        (lambda root: None, ["epochs=0"], "epochs: expected 1 or more, found 0"),
        (lambda root: None, ["backbone.weights=pretrain"], "backbone.weights: pretrain is for detection"),
    ],
)
def test_training_that_is_impossible_is_one_line(workplace, capsys, change, overrides, message):
    change(workplace / "colours")
    assert main(["train", "colours", *QUICK, *overrides]) == 2
    (line,) = errors(capsys)
    assert message in line


def test_an_image_that_breaks_off_is_named(workplace, capsys):
    path = workplace / "colours/train/red/1.png"
    path.write_bytes(path.read_bytes()[:2000])  # its header is sound
    assert main(["train", "colours", *QUICK]) == 2
    (line,) = errors(capsys)
    assert "colours/train/red/1.png: cannot be read" in line


# Measuring


@pytest.mark.parametrize("views", ["crop", "full", "multi"])
def test_a_run_is_measured_by_every_view(finished, capsys, views):
    assert main(["eval", "run", f"test.views={views}"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"6 images, views={views}, ") and "top-1 error" in out
    metrics = json.loads(Path("run/metrics.json").read_text())
    assert metrics["test"]["views"] == views and metrics["top1_error"] < 40


def test_other_images_can_be_measured(finished, capsys):
    shutil.rmtree("colours/val/red")
    shutil.move("colours/val", "elsewhere")
    assert main(["eval", "run", "data.val=elsewhere"]) == 0
    assert capsys.readouterr().out.startswith("4 images")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none"], "none: no run here; sppdet classify train ROOT run.dir=none makes one"),
        (["run", "levels=[6]"], "'levels=[6]': only data.*, test.*, device and workers can differ"),
        (["run", "test.views=all"], "test.views: expected one of crop, full, multi, found 'all'"),
        (["run", "data.val=null"], "data.val: null; give a folder"),
    ],
)
def test_measuring_that_is_impossible_is_one_line(finished, capsys, arguments, message):
    assert main(["eval", *arguments]) == 2
    (line,) = errors(capsys)
    assert message in line


# Predicting


def test_the_most_probable_classes_are_printed(finished, capsys):
    assert main(["predict", "colours/val/red/0.png", "colours/val/blue", "--model", "run", "--top", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("colours/val/red/0.png: red 0.") and lines[0].count(",") == 1
    assert lines[1].startswith("colours/val/blue/0.png: blue 0.")


def test_json_holds_probabilities_and_errors(finished, capsys):
    Path("broken.png").write_text("x")
    arguments = ["predict", "broken.png", "colours/val/red/0.png", "--model", "run", "--json", "--views", "multi"]
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert document["model"] == "run" and document["views"] == "multi"
    assert "broken.png: is no image" in document["images"][0]["error"] and "error: broken.png" in err
    classes = document["images"][1]["classes"]
    assert classes[0]["label"] == "red" and len(classes) == 3
    assert sum(one["probability"] for one in classes) == pytest.approx(1, abs=1e-5)


def test_a_side_too_small_for_the_crop_is_an_error(finished, capsys):
    arguments = ["predict", "colours/val/red/0.png", "--model", "run", "--side", "20"]
    assert main(arguments) == 2
    assert "crop cuts 48 x 48 from images of a shorter side of 20" in errors(capsys)[0]
    assert main([*arguments, "--views", "full"]) == 0


# The command


def test_it_is_reached_from_the_program(capsys):
    assert program(["classify", "--help"]) == 0
    assert "sppdet classify COMMAND" in capsys.readouterr().out
    assert program(["classify", "guess"]) == 2


@pytest.mark.parametrize("command", ["train", "eval", "predict"])
def test_help_waits_for_nothing_heavy(command):
    code = (
        "import sys\nfrom sppdet.classify import main\n"
        f"try:\n    main(['{command}', '--help'])\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'cv2', 'numba', 'numpy', 'sklearn'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "[]" and f"sppdet classify {command}" in out
