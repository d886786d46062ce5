"""The synthetic set: the same for the same seed, drawn once, and what VOC's reader makes of it."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest

from sppdet.data.images import read_image
from sppdet.data.shapes import CLASSES, draw_shapes, make_shapes
from sppdet.data.voc import read_voc
from sppdet.utils.errors import SppdetError

SIZE = (96, 72)


def test_the_reader_reads_it_without_a_remark(tmp_path):
    assert make_shapes(tmp_path / "shapes", train=12, test=3, size=SIZE) == tmp_path / "shapes"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train, trainval, test = (read_voc(tmp_path / "shapes", split) for split in ("train", "trainval", "test"))
    assert (len(train), len(trainval), len(test)) == (12, 12, 3)
    assert train.classes == CLASSES
    assert not {sample.id for sample in train} & {sample.id for sample in test}
    for sample in train:
        assert read_image(sample.path).shape == (sample.height, sample.width, 3)


def test_the_reader_returns_what_was_drawn(tmp_path):
    make_shapes(tmp_path, train=1, test=3, seed=5, size=SIZE)
    for index, sample in enumerate(read_voc(tmp_path, "test", classes=CLASSES)):
        image, boxes, labels, difficult = draw_shapes(np.random.default_rng([5, 1, index]), SIZE)
        np.testing.assert_array_equal(sample.boxes, boxes)
        np.testing.assert_array_equal(sample.labels, labels)
        np.testing.assert_array_equal(sample.difficult, difficult)
        assert np.abs(read_image(sample.path).astype(int) - image).mean() < 8  # JPEG's loss


def test_objects_lie_in_their_image():
    heights, widths, hard = [], [], []
    for seed in range(40):
        image, boxes, labels, difficult = draw_shapes(np.random.default_rng(seed), SIZE)
        height, width = image.shape[:2]
        assert 1 <= len(boxes) == len(labels) == len(difficult) <= 5
        assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= [width, height]).all()
        assert (boxes[:, 2:] - boxes[:, :2] >= 4).all()
        assert ((labels >= 0) & (labels < len(CLASSES))).all()
        heights.append(height)
        widths.append(width)
        hard += difficult.tolist()
    assert any(h > w for h, w in zip(heights, widths)) and any(w > h for h, w in zip(heights, widths))
    assert sum(hard) < len(hard) / 4


def test_an_image_depends_on_the_seed_not_on_the_counts(tmp_path):
    make_shapes(tmp_path / "few", train=1, test=1, size=SIZE)
    make_shapes(tmp_path / "more", train=3, test=2, size=SIZE)
    make_shapes(tmp_path / "other", train=1, test=1, seed=1, size=SIZE)
    for file in ("JPEGImages/train_00000.jpg", "JPEGImages/test_00000.jpg", "Annotations/test_00000.xml"):
        few, more, other = ((tmp_path / folder / file).read_bytes() for folder in ("few", "more", "other"))
        assert few == more != other


def test_a_complete_folder_is_not_drawn_again(tmp_path):
    make_shapes(tmp_path, train=1, test=1, size=SIZE)
    image = tmp_path / "JPEGImages" / "train_00000.jpg"
    image.write_bytes(b"touched")
    make_shapes(tmp_path, train=1, test=1, size=SIZE)
    assert image.read_bytes() == b"touched"


def test_an_interrupted_folder_is_drawn_again(tmp_path):
    make_shapes(tmp_path, train=1, test=1, size=SIZE)
    image, marker = tmp_path / "JPEGImages" / "train_00000.jpg", tmp_path / "shapes.json"
    whole = image.read_bytes()
    image.unlink()
    marker.write_text(json.dumps({**json.loads(marker.read_text()), "complete": False}))
    make_shapes(tmp_path, train=1, test=1, size=SIZE)
    assert image.read_bytes() == whole
    assert json.loads(marker.read_text())["complete"] is True


def test_other_shapes_are_not_overwritten(tmp_path):
    make_shapes(tmp_path, train=1, test=1, size=SIZE)
    with pytest.raises(SppdetError, match="holds shapes drawn with"):
        make_shapes(tmp_path, train=2, test=1, size=SIZE)


def test_a_folder_of_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(SppdetError, match="holds other files"):
        make_shapes(tmp_path, train=1, test=1, size=SIZE)
    with pytest.raises(SppdetError, match="is a file"):
        make_shapes(tmp_path / "thesis.tex", train=1, test=1, size=SIZE)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_damaged_marker_is_named(tmp_path):
    (tmp_path / "shapes.json").write_text("{")
    with pytest.raises(SppdetError, match=r"shapes\.json: is damaged"):
        make_shapes(tmp_path, train=1, test=1, size=SIZE)


@pytest.mark.parametrize("bad", [{"train": 0}, {"test": 0}, {"seed": -1}, {"size": (320, 20)}])
def test_parameters_without_sense_are_refused(tmp_path, bad):
    with pytest.raises(SppdetError, match="give at least one"):
        make_shapes(tmp_path / "shapes", **bad)
    assert not (tmp_path / "shapes").exists()


def test_it_prints_nothing(tmp_path, capfd):
    make_shapes(tmp_path, train=1, test=1, size=SIZE)
    assert capfd.readouterr() == ("", "")
