"""The run of a classifier from Python: what its key depends on, and the files it leaves."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sppdet import config
from sppdet.classification import run
from sppdet.classification.classifier import load_classifier
from sppdet.config.settings import ClassifierConfig
from sppdet.networks.backbone import Backbone
from sppdet.utils.errors import SppdetError
from sppdet.utils.files import read_json


@pytest.fixture
def root(tmp_path) -> Path:
    """Four reddish and four bluish images to learn from, one of each to measure on."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 4), ("val", 1)):
        for channel, name in ((0, "red"), (2, "blue")):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                image = rng.integers(0, 120, (40, 50, 3), np.uint8)
                image[:, :, channel] += 120
                Image.fromarray(image).save(folder / f"{i}.png")
    return tmp_path


def settings_of(root: Path, *overrides: str) -> ClassifierConfig:
    quick = ["backbone.name=small", "backbone.weights=random", "backbone.precision=float32", "device=cpu", "workers=1"]
    quick += ["sizes=[32]", "batch_size=4", "epochs=1", "levels=[1]", f"data.root={root}", f"run.dir={root / 'run'}"]
    return config.override(ClassifierConfig(), [*quick, *overrides])


def test_the_key_changes_with_all_that_the_weights_depend_on(root):
    backbone = Backbone.create("small", "random", "cpu", "float32", 3)

    def key(*overrides: str) -> str:
        settings = settings_of(root, *overrides)
        return run._key(settings, run._read(settings)[0], backbone)

    first = key()
    assert key("workers=2") == key("test.views=full") == key("run.dir=elsewhere") == key("data.val=null") == first
    others = [key(change) for change in ("sizes=[40]", "levels=[2]", "epochs=2", "dropout=0.1", "run.seed=4")]
    Image.new("RGB", (50, 50)).save(root / "train/red/new.png")
    others.append(key())
    assert first not in others and len(set(others)) == len(others)


def test_a_run_is_trained_once_and_measured(root, caplog):
    caplog.set_level(logging.INFO, "sppdet")
    settings = settings_of(root)
    metrics = run.train_run(settings)
    assert caplog.messages[0] == "8 images of 2 classes, 2 to measure on"
    assert metrics["pictures"] == 2 and set(metrics["error"]) == {"blue", "red"}
    assert metrics["top1_error"] == pytest.approx(np.mean(list(metrics["error"].values())))
    stored = read_json(root / "run" / "metrics.json")
    assert {name: stored[name] for name in ("pictures", "top1_error", "error")} == {
        name: metrics[name] for name in ("pictures", "top1_error", "error")
    }
    assert run.saved_settings(root / "run") == settings
    assert json.loads((root / "run" / "history.json").read_text())[0]["top1_error"] == metrics["top1_error"]
    assert run.train_run(settings) == metrics
    assert caplog.messages[-1] == f"{root / 'run'}: trained already; --force begins anew"


def test_settings_that_leave_the_weights_as_they_are_are_stored(root):
    run.train_run(settings_of(root))
    settings = settings_of(root, "test.views=full", "test.side=48")
    weights = (root / "run" / "classifier.safetensors").read_bytes()
    run.train_run(settings)
    assert load_classifier(root / "run").test == settings.tested and run.saved_settings(root / "run") == settings
    assert (root / "run" / "classifier.safetensors").read_bytes() == weights
    run.train_run(settings_of(root, "data.val=null", "epochs=2"))
    assert not (root / "run" / "metrics.json").exists(), "of another classifier"


def test_a_forced_training_that_is_interrupted_resumes_without_force(root, monkeypatch):
    run.train_run(settings_of(root))

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(run, "_train", interrupt)
        run.train_run(settings_of(root), force=True)
    with pytest.raises(SppdetError, match="no classifier"):
        load_classifier(root / "run")
    assert run.train_run(settings_of(root))["pictures"] == 2


def test_a_network_that_cannot_be_made_is_refused_before_images_are_opened(root, monkeypatch):
    monkeypatch.setattr(run, "read_folders", lambda *_: pytest.fail("images were opened"))
    with pytest.raises(SppdetError, match=r"backbone\.weights: nothing\.pth does not exist"):
        run.train_run(settings_of(root, "backbone.weights=nothing.pth"))


def test_a_detectors_folder_is_not_overwritten(root):
    (root / "run").mkdir()
    (root / "run" / "model.json").write_text("{}")
    with pytest.raises(SppdetError, match=r"holds a detector; give another run\.dir"):
        run.train_run(settings_of(root))


def test_the_curve_is_the_history(root):
    settings = settings_of(root, "run.curves=csv", "epochs=2")
    run.train_run(settings)
    folder = Path(settings.run.dir)
    history = json.loads((folder / "history.json").read_text())
    (table,) = (folder / "curves").iterdir()
    lines = [",".join(map(str, record.values())) for record in history]
    assert table.read_text().split() == [",".join(history[0]), *lines] and len(history) == 2
