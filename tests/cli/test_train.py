"""``python -m sppdet.train``: what its options run, and how errors and interruptions are told."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from sppdet import config, training
from sppdet.cli.train import main
from sppdet.config.settings import STAGES
from sppdet.training import front_door
from sppdet.training.data_settings import Choice


@pytest.fixture(autouse=True)
def nothing_follows_the_data(monkeypatch):
    """Leave the settings as the preset has them; what is chosen is tested in tests/training/test_data_settings.py."""
    monkeypatch.setattr(front_door, "choose_settings", lambda *_: [])


SETTINGS = {"backbone": {"name": "small", "weights": "random"}, "device": "cpu", "workers": 1}


@pytest.fixture
def settings(tmp_path, shapes_root) -> str:
    """A configuration file; its run does not exist yet."""
    run = {"dir": str(tmp_path / "run"), "cache": str(tmp_path / "cache")}
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({**SETTINGS, "data": {"root": str(shapes_root)}, "run": run}))
    return str(path)


@pytest.fixture
def pipeline(monkeypatch) -> list:
    """What the command calls: (configuration, keep, last stage, force); no stage runs."""
    calls: list = []

    class Stages:
        def __init__(self, settings: config.Config, keep: bool, data: None):
            self.settings, self.keep = settings, keep

        def run(self, last: str, force: bool) -> None:
            calls.append((self.settings, self.keep, last, force))

    monkeypatch.setattr(front_door, "Pipeline", Stages)
    return calls


@pytest.fixture
def photos(tmp_path, shapes_root) -> Path:
    """A folder of labelled images, without splits: three images with the XML beside them."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        for path in shapes_root.rglob(f"train_0000{number}.*"):
            shutil.copy(path, folder)
    return folder


@pytest.mark.parametrize(
    ("options", "keep", "last", "force"),
    [
        ([], False, STAGES[-1], False),
        (["--stage", "svm"], False, "svm", False),
        (["--stage", "svm", "--force"], False, "svm", True),
        (["--keep"], True, STAGES[-1], False),
    ],
)
def test_options_choose_the_stages(settings, pipeline, options, keep, last, force):
    assert main([settings, *options, "svm.C=0.5"]) == 0
    assert pipeline == [(config.load(settings, ["svm.C=0.5"]), keep, last, force)]


def test_force_and_keep_exclude_each_other(settings, capsys):
    with pytest.raises(SystemExit):
        main([settings, "--force", "--keep"])
    assert "not allowed with argument" in capsys.readouterr().err


def test_print_config_prints_a_configuration_and_runs_nothing(settings, pipeline, capsys, tmp_path):
    assert main([settings, "svm.C=0.5", "--print-config"]) == 0
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    assert config.load(tmp_path / "printed.yaml") == config.load(settings, ["svm.C=0.5"])
    assert not pipeline


@pytest.mark.parametrize(
    "arguments",
    ["--print-config svm.C=0.5", "--stage svm svm.C=0.5 --print-config", "workers=1 --print-config svm.C=0.5"],
)
def test_settings_and_options_mix(settings, capsys, arguments):
    assert main([settings, *arguments.split()]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["svm"]["C"] == 0.5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("regions.scale=[160]", "did you mean 'regions.scales'?"),
        ("svm.C=lots", "svm.C: expected float, found 'lots'"),
        ("data.train_split=trian", "there are: test, train, trainval"),
        ("data.root=/nowhere/at/all", "data.root: there is no folder /nowhere/at/all in /"),
        ("device=tpu9", "device: expected auto, cpu or cuda, found 'tpu9'"),
        ("backbone.name=resnet19", "backbone.name: 'resnet19' is none of alexnet, "),
        ("run.dir=/dev/null/run", "run.dir: /dev/null/run cannot be written"),
    ],
)
def test_mistakes_are_one_line_and_status_2(settings, capsys, text, message):
    assert main([settings, text]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert line.startswith("error: ") and message in line


def test_a_missing_weights_file_does_not_stop_the_proposals(settings, tmp_path, capsys):
    assert main([settings, "--stage", "proposals", "backbone.weights=missing.pth"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("trainval: 12 images") and "recall@0.5" in lines[-1]
    assert lines[2] == "to do: proposals; the time is told on the way on 1 core"
    assert len(list((tmp_path / "cache" / "proposals").rglob("*.npy"))) == 18
    assert main([settings, "--stage", "maps", "backbone.weights=missing.pth"]) == 2
    assert "backbone.weights: missing.pth does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(("options", "without"), [([], ""), (["--force"], " without --force")])
def test_an_interruption_tells_how_to_resume(settings, pipeline, monkeypatch, capsys, options, without):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(front_door.Pipeline, "run", interrupt)
    assert main([settings, *options]) == 130
    assert capsys.readouterr().err.strip() == f"interrupted; run the same command{without} to resume"


class TestAFolderOfImages:
    def test_is_trained_with_a_preset_into_a_folder_of_its_name(self, photos, pipeline, tmp_path):
        assert main([str(photos), "--preset", "quick", "svm.C=0.5"]) == 0
        ((settings, *_),) = pipeline
        assert settings.data.root == str(photos) and settings.run.dir == str(Path("runs") / "photos")
        assert settings.regions == config.load_preset("quick").regions and settings.svm.C == 0.5

    def test_is_trained_with_the_preset_default_unless_told(self, photos, capsys):
        assert main([str(photos), "--output", "elsewhere", "--print-config"]) == 0
        printed = yaml.safe_load(capsys.readouterr().out)
        assert printed["regions"]["scales"] == [480, 864] and printed["run"]["dir"] == "elsewhere"

    def test_may_have_a_name_that_looks_like_yaml(self, photos, pipeline, tmp_path):
        odd = photos.rename(tmp_path / "[null] é 🙂")
        assert main([str(odd)]) == 0
        assert pipeline[0][0].data.root == str(odd) and pipeline[0][0].run.dir == str(Path("runs") / odd.name)

    def test_chosen_settings_give_way_to_those_of_the_user(self, photos, pipeline, monkeypatch, capsys):
        choices = [Choice("svm.C", 0.25, "C is 0.25"), Choice("bbox.ridge", 5, "ridge is 5")]
        monkeypatch.setattr(front_door, "choose_settings", lambda *_: choices)
        assert main([str(photos), "svm.C=0.5"]) == 0
        settings = pipeline[0][0]
        assert (settings.svm.C, settings.bbox.ridge) == (0.5, 5) and "ridge is 5" in capsys.readouterr().out


def line_of(arguments: list[str], capsys) -> str:
    """Return the one line of error that the command prints."""
    assert main(arguments) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    return line


class TestBadInputIsOneLineAndLeavesNoFolder:
    @pytest.fixture(autouse=True)
    def no_run(self, tmp_path):
        yield
        assert not Path("runs").exists() and not Path("cache", "proposals").exists()

    def test_a_source_that_does_not_exist(self, capsys):
        assert line_of(["nowhere"], capsys) == (
            "error: nowhere: does not exist; give a folder of labelled images, or a YAML file of settings"
        )

    def test_a_folder_without_images(self, tmp_path, capsys):
        (tmp_path / "empty").mkdir()
        assert "empty: no images in this folder" in line_of(["empty"], capsys)

    def test_images_without_annotations(self, photos, capsys):
        for path in photos.glob("*.xml"):
            path.unlink()
        assert "photos: no annotations; expected VOC" in line_of([str(photos)], capsys)

    def test_one_image(self, photos, capsys):
        for path in photos.glob("*[12].*"):
            path.unlink()
        assert "1 different images cannot be divided into 2 parts; add images" in line_of([str(photos)], capsys)

    def test_two_formats_that_differ(self, photos, capsys):
        (photos / "boxes.csv").write_text("filename,class,xmin,ymin,xmax,ymax\ntrain_00000.jpg,dog,1,1,9,9\n")
        (image,) = photos.glob("train_00000.[!x]*")
        text = (photos / "boxes.csv").read_text().replace("train_00000.jpg", image.name)
        (photos / "boxes.csv").write_text(text)
        assert "say which to read with data.format=voc or data.format=csv" in line_of([str(photos)], capsys)

    def test_the_folder_of_a_run(self, photos, capsys):
        (photos / "stages.json").write_text("{}")
        assert "is the folder of a run; give its config.json" in line_of([str(photos)], capsys)

    def test_missing_weights(self, photos, capsys):
        assert "missing.pth does not exist" in line_of([str(photos), "backbone.weights=missing.pth"], capsys)

    def test_a_preset_for_a_config(self, settings, capsys):
        assert "write `preset: best` in the YAML file" in line_of([settings, "--preset", "best"], capsys)

    @pytest.mark.parametrize("options", [["--folds", "2", "--keep"], ["--folds", "2", "--stage", "svm"]])
    def test_folds_with_options_that_they_exclude(self, photos, capsys, options, monkeypatch):
        # Refused before the settings are chosen, which takes up to a minute.
        monkeypatch.setattr(training, "settings_following_data", lambda *_: pytest.fail("settings were chosen"))
        assert "--folds: goes with neither" in line_of([str(photos), *options], capsys)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--folds", "1"], "--folds: expected 2 or more, found 1"),
            (["--folds", "4"], "3 different images cannot be divided into 4 parts"),
            (["--folds", "2", "features=fc7"], "--folds: with features=fc7 a network learns from the images"),
        ],
    )
    def test_folds_that_cannot_be(self, photos, capsys, options, message):
        assert message in line_of([str(photos), *options], capsys)
