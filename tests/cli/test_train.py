"""``python -m sppdet.train``: what its options run, and how errors and interruptions are told."""

from __future__ import annotations

import pytest
import yaml

from sppdet import config, training
from sppdet.cli.train import main
from sppdet.config.settings import STAGES

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
        def __init__(self, settings: config.Config, keep: bool):
            self.settings, self.keep = settings, keep

        def run(self, last: str, force: bool) -> None:
            calls.append((self.settings, self.keep, last, force))

    monkeypatch.setattr(training, "Pipeline", Stages, raising=False)
    return calls


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
    assert len(list((tmp_path / "cache" / "proposals").rglob("*.npy"))) == 18
    assert main([settings, "--stage", "maps", "backbone.weights=missing.pth"]) == 2
    assert "backbone.weights: missing.pth does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(("options", "without"), [([], ""), (["--force"], " without --force")])
def test_an_interruption_tells_how_to_resume(settings, pipeline, monkeypatch, capsys, options, without):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(training.Pipeline, "run", interrupt)
    assert main([settings, *options]) == 130
    assert capsys.readouterr().err.strip() == f"interrupted; run the same command{without} to resume"
