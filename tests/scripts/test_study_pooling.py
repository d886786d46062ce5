"""scripts/study_pooling.py: its table and plot, and how an interrupted study goes on."""

import importlib.util
from pathlib import Path

import pytest
from PIL import Image

spec = importlib.util.spec_from_file_location(
    "study_pooling", Path(__file__).parents[2] / "scripts" / "study_pooling.py"
)
study = importlib.util.module_from_spec(spec)
spec.loader.exec_module(study)


@pytest.fixture
def settings(tmp_path, shapes_root) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(
        f"""
        data: {{root: {shapes_root}}}
        backbone: {{name: small, weights: random, precision: float32}}
        regions: {{scales: [160], target: 64}}
        svm: {{random_negatives: 60, max_negatives: 60, C: 0.01}}
        bbox: {{max_windows: 100}}
        run: {{dir: {tmp_path / "run"}, cache: {tmp_path / "cache"}}}
        device: cpu
        workers: 1
        """
    )
    return path


def test_the_study_compares_kinds_on_training_images(settings, tmp_path, capsys, monkeypatch):
    arguments = [str(settings), "--train", "8", "--validate", "4", "--plot", str(tmp_path / "plot.png"), "--kinds"]
    assert study.main([*arguments, "spp", "roi_align"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "8 images of `trainval` to train on, the next 4 to compare on"
    rows = {line.split(" | ")[0]: line.split(" | ") for line in lines[4:]}
    assert set(rows) == {"| spp", "| roi_align"}
    assert rows["| spp"][1:4] == ["0.01", f"{128 * 50}", f"{2 * 128 * 50}"]
    assert rows["| roi_align"][2] == f"{128 * 49}" and "±" in rows["| roi_align"][10]
    assert Image.open(tmp_path / "plot.png").size[1] == 2 * 26 + 60

    # Finished results are not computed again, and test images are not read.
    monkeypatch.setattr(study, "measure", lambda *arguments: pytest.fail("measured again"))
    assert study.main([*arguments, "roi_align"]) == 0
    assert not list((tmp_path / "cache").rglob("*test_*"))
    assert len(list((tmp_path / "cache" / "proposals").rglob("*.npy"))) == 12


def test_each_kind_is_shown_at_its_best_c(settings, tmp_path, capsys, monkeypatch):
    best = {"max": 0.1, "align": 1.0}

    def measured(settings, *_) -> dict:
        ap = {"a": 10.0 + (best[settings.pooling.kind] == settings.svm.C)}
        return {
            "dimension": 1, "windows": 1.0, "pooling": 0.0, "training": 0.0, "detection": 0.0,
            "AP": {"0.5": [ap, ap], "0.75": [ap, ap]},
        }  # fmt: skip

    monkeypatch.setattr(study, "measure", measured)
    monkeypatch.setattr(study, "difference", lambda ap, other: "")
    arguments = [str(settings), "--train", "4", "--validate", "2", "--plot", str(tmp_path / "plot.png")]
    assert study.main([*arguments, "--C", "0.01", "0.1", "1", "--kinds", "spp", "roi_align"]) == 0
    rows = [line.split(" | ")[:2] for line in capsys.readouterr().out.splitlines()[4:]]
    assert rows == [["| spp", "0.1"], ["| roi_align", "1"]]


def test_more_images_than_there_are(tmp_path, shapes_root, capsys):
    settings = tmp_path / "tiny.yaml"
    settings.write_text(f"data: {{root: {shapes_root}}}\nbackbone: {{name: small, weights: random}}\ndevice: cpu\n")
    assert study.main([str(settings), "--train", "12", "--validate", "1"]) == 2
    assert "trainval has 12 images: lower --train or --validate" in capsys.readouterr().err


def test_the_difference_is_that_of_the_classes():
    assert study.mean({"a": 10.0, "b": 20.0, "c": None}) == 15
    # Gains of 1 and 3: 2 in the mean, their deviation sqrt(2), of two classes: 1.
    assert study.difference({"a": 11.0, "b": 23.0, "c": None}, {"a": 10.0, "b": 20.0, "c": None}) == "+2.0 ± 1.0"
