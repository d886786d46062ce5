"""scripts/study_classification.py: its figures, worked out by hand, and its tables."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from sppdet.data.dataset import Dataset, Sample
from sppdet.data.images import read_image
from sppdet.data.shapes import make_shapes
from sppdet.data.voc import read_voc
from sppdet.training.pretraining import around
from sppdet.training.svm import Fit

spec = importlib.util.spec_from_file_location(
    "study_classification", Path(__file__).parents[2] / "scripts" / "study_classification.py"
)
study = importlib.util.module_from_spec(spec)
spec.loader.exec_module(study)


def test_a_class_whose_objects_are_all_difficult_is_left_out():
    def sample(labels, difficult):
        return Sample("p", None, 9, 9, np.zeros((len(labels), 4)), np.array(labels, int), np.array(difficult, bool))

    dataset = Dataset(("a", "b"), (sample([0, 0], [True, False]), sample([1], [True]), sample([], [])))
    assert study.presence(dataset).tolist() == [[1, -1], [-1, 0], [-1, -1]]


def test_mean_precision_by_hand():
    """Class a: right, wrong, right of three images, the fourth left out; class b has no image and is left out."""
    rows = np.array([[4], [3], [2], [9]], np.float16)
    shown = np.array([[1, -1], [-1, -1], [1, -1], [0, -1]])
    by_value = Fit(np.ones(1, np.float32), 0.0, None, 0, True)
    precisions = study.mean_precisions(rows, shown, [by_value, by_value])
    # Precision 1 up to a recall of 1/2, then 2/3.
    np.testing.assert_allclose(precisions, [100 * (6 + 5 * 2 / 3) / 11, 100 * (1 + 2 / 3) / 2])


def test_the_cost_is_the_best_on_the_held_out_images():
    rng = np.random.default_rng(0)
    labels = np.where(rng.random(120) < 0.5, 1, -1)
    rows = rng.normal(size=(120, 40))
    rows[:, 0] += labels
    rows = study.unit_rows(rows[:, None].astype(np.float32))
    np.testing.assert_allclose(np.linalg.norm(rows.astype(np.float32), axis=1), 1, atol=1e-3)
    cost, precision = study.choose_cost(rows, labels[:, None], [0.01, 1, 1000])
    held = np.arange(120) % 3 == 2
    expected = {}
    for one in (0.01, 1, 1000):
        svms = study.fit_classes(rows, np.where(held[:, None], 0, labels[:, None]), one)
        expected[one] = study.mean_precisions(rows[held], labels[held, None], svms)[0]
    assert expected[cost] > max(expected.values()) - 0.5 and precision == pytest.approx(expected[cost], abs=0.5)
    assert min(expected.values()) < precision


def test_the_crop_is_the_central_square_scaled_like_the_image():
    image = np.random.default_rng(0).integers(0, 256, (60, 91, 3), np.uint8)
    whole, factor = study.view_of(image, 120, crop=False)
    assert whole is image and factor == 2
    crop, factor = study.view_of(image, 120, crop=True)
    np.testing.assert_array_equal(crop, image[:, 15:75])
    assert factor == 2


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    return make_shapes(tmp_path_factory.mktemp("data") / "shapes", train=30, test=8)


def lines_of(capsys, *arguments: str) -> list[str]:
    assert study.main([str(one) for one in arguments]) == 0
    return capsys.readouterr().out.splitlines()


def test_the_table_of_images(shapes, tmp_path, capsys):
    arguments = [
        "images",
        shapes,
        "--backbone",
        "small",
        "--weights",
        "random",
        "--views",
        "crop-64",
        "full-96",
        "--costs",
        1,
    ]
    lines = lines_of(capsys, *arguments, "--work", tmp_path, "--device", "cpu")
    assert lines[0].startswith("30 images for training, 8 for testing")
    views = [line.split(" | ")[0] for line in lines[4:]]
    assert views == ["| crop, 64"] * 2 + ["| full, 96"] * 2
    stored = sorted(tmp_path.glob("pyramids-*.npy"))
    assert sorted(np.load(path).shape for path in stored) == [(8, 50, 128)] * 2 + [(30, 50, 128)] * 2
    assert lines_of(capsys, *arguments, "--work", tmp_path, "--device", "cpu") == lines  # from stored pyramids


def test_the_table_of_objects(shapes, tmp_path, capsys):
    arguments = ["objects", shapes, "--size", 48, "--epochs", 1, "--seeds", 0, "--most", 6, "--work", tmp_path]
    lines = lines_of(capsys, *arguments, "--device", "cpu")
    assert [line.split(" | ")[:2] for line in lines[4:]] == [
        [f"| {name}", seed]
        for seed in ("0", "mean")
        for name in ("no pyramid, 48", "pyramid, 48", "pyramid, 48 and 39")
    ]
    (folder,) = tmp_path.glob("objects-*")
    for kind in (folder / "train").iterdir():
        assert len(list(kind.iterdir())) <= 6
    sample = read_voc(shapes, "test")[0]
    number = int(np.flatnonzero(~sample.difficult)[0])
    kind = read_voc(shapes, "trainval").classes[sample.labels[number]]
    written = read_image(folder / "val" / kind / f"{sample.id}-{number}.jpg")
    box = sample.boxes[number]
    shape = around(read_image(sample.path), box).shape[:2]
    assert min(written.shape[:2]) == min(55, *shape)
