"""The VOC devkit's result files: written as the devkit has them, and read back exactly."""

from __future__ import annotations

import numpy as np
import pytest
from evaluation_data import HERE, THERE, dataset_of, detections_of, image_of, random_detections

from sppdet.detection.detections import Detections
from sppdet.evaluation.devkit_files import check_names, read_devkit_results, write_devkit_results
from sppdet.evaluation.voc import evaluate_voc
from sppdet.ops.boxes import from_voc
from sppdet.utils.errors import SppdetError


def test_lines_have_the_devkits_form(tmp_path):
    dataset = dataset_of(image_of("000001"), image_of("000002"))
    write_devkit_results(
        tmp_path, dataset, [detections_of((HERE, 0, 0.5)), detections_of(((2.25, 3, 4, 5), 0, -1.5))], "test"
    )
    # 1-based inclusive: the top left box of 10 x 10 pixels is 1 1 10 10.
    assert (tmp_path / "comp4_det_test_cat.txt").read_text() == ("000001 0.5 1 1 10 10\n000002 -1.5 3.25 4 4 5\n")
    assert (tmp_path / "comp4_det_test_dog.txt").read_text() == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["comp4_det_test_cat.txt", "comp4_det_test_dog.txt"]


def test_files_keep_order_and_average_precision(tmp_path):
    dataset, detections = random_detections(20, seed=2)
    # Scores that differ only in the last bit of a float32, and corners that need all of their digits.
    scores = [np.float32(1) + d.scores * np.float32(2**-23) for d in detections]
    detections = [Detections(d.boxes * np.float32(0.987654), d.labels, s) for d, s in zip(detections, scores)]
    write_devkit_results(tmp_path, dataset, detections, "val")
    rows = {sample.id: [] for sample in dataset.samples}
    for line in (tmp_path / "comp4_det_val_cat.txt").read_text().splitlines():
        name, score, *corners = line.split()
        rows[name].append((from_voc([float(c) for c in corners])[0], 0, float(score)))
    parsed = [detections_of(*rows[sample.id]) for sample in dataset.samples]
    for before, after in zip(detections, parsed):
        np.testing.assert_array_equal(before.scores, after.scores)
        np.testing.assert_array_equal(before.boxes, after.boxes)
    assert evaluate_voc(dataset, parsed) == evaluate_voc(dataset, detections)


def test_files_are_read_back_exactly(tmp_path):
    dataset = dataset_of(image_of("b"), image_of("a"), image_of("c"))
    detections = [
        detections_of((HERE, 1, 0.1), (THERE, 0, -1.25)),
        detections_of(),
        detections_of((HERE, 1, 2.0), (HERE, 1, 1.0)),
    ]
    write_devkit_results(tmp_path, dataset, detections, "val")
    read = read_devkit_results(tmp_path, dataset, "val")
    assert [entry.classes for entry in read] == [("cat", "dog")] * 3
    for before, after in zip(detections, read):
        for name in ("boxes", "labels", "scores"):
            np.testing.assert_array_equal(getattr(before, name), getattr(after, name), strict=True)
    assert read_devkit_results(tmp_path, dataset_of(classes=()), "val") == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "comp4_det_val_dog.txt: cannot be read"),
        ("a 0.5 1 1 10", "a line is not `id score x1 y1 x2 y2`"),
        ("a 0.5 1 1 10 ten", "a line is not"),
        ("\n", "a line is not"),
        ("z 0.5 1 1 10 10", "image 'z' is not in split val"),
    ],
)
def test_a_missing_or_broken_file_is_named(tmp_path, text, message):
    dataset = dataset_of(image_of("a"))
    write_devkit_results(tmp_path, dataset, [detections_of()], "val")
    path = tmp_path / "comp4_det_val_dog.txt"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(SppdetError, match=message) as caught:
        read_devkit_results(tmp_path, dataset, "val")
    assert "\n" not in str(caught.value)


def test_names_that_the_files_cannot_hold_are_refused(tmp_path):
    for dataset, split, message in [
        (dataset_of(image_of("a b")), "test", "'a b': white space"),
        (dataset_of(image_of("")), "test", "white space"),
        (dataset_of(image_of("a"), classes=["cat/dog"]), "test", "cat/dog"),
        (dataset_of(image_of("a")), "../test", "[.][.]/test"),
    ]:
        with pytest.raises(SppdetError, match=message):
            write_devkit_results(tmp_path, dataset, [detections_of()], split)
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_too_long_is_refused():
    check_names(dataset_of(classes=["c" * 100]), "test")
    with pytest.raises(SppdetError, match="ccc': result files cannot have it in their names"):
        check_names(dataset_of(classes=["c" * 101]), "test")
