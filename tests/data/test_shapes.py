"""The synthetic data set: repeatable, drawn once, and read back by the VOC reader."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest

from sppdet.data.images import read_image
from sppdet.data.shapes import CLASSES, _Figure, _overlap, _tight_box, draw_shapes, make_shapes
from sppdet.data.voc import read_voc
from sppdet.utils.errors import SppdetError

SIZE = (96, 72)


def test_the_reader_reads_it_without_a_warning(tmp_path):
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


def test_images_hold_1_to_5_objects_of_all_classes_inside_them():
    sizes, counts, classes = set(), set(), set()
    for seed in range(40):
        image, boxes, labels, difficult = draw_shapes(np.random.default_rng(seed), SIZE)
        height, width = image.shape[:2]
        assert len(boxes) == len(labels) == len(difficult)
        assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= [width, height]).all()
        assert (boxes[:, 2:] - boxes[:, :2] >= 4).all()
        sizes.add(width > height)
        counts.add(len(boxes))
        classes |= set(labels.tolist())
    assert (sizes, counts, classes) == ({False, True}, {1, 2, 3, 4, 5}, set(range(6)))


def figure(mask, left: int, top: int, width: int, height: int) -> _Figure:
    """Return a figure whose patch lies at ``left, top`` in an image of ``width`` x ``height`` pixels."""
    mask = np.array(mask, np.float32)
    x1, y1 = max(left, 0), max(top, 0)
    x2, y2 = min(left + mask.shape[1], width), min(top + mask.shape[0], height)
    inside = (slice(y1 - top, y2 - top), slice(x1 - left, x2 - left))
    return _Figure(mask, left, top, inside, (slice(y1, y2), slice(x1, x2)))


def test_boxes_hold_the_pixels_that_a_figure_covers_by_half():
    mask = [[0, 0.5, 0, 0], [0.4, 1, 1, 0.4], [0, 0.4, 0.4, 0]]
    assert _tight_box(figure(mask, 10, 20, 100, 100)) == (11, 20, 13, 22)
    assert _tight_box(figure(mask, -2, 20, 100, 100)) == (0, 21, 1, 22)  # cut at the left edge of the image


def test_the_overlap_of_patches_is_a_share_of_the_smaller():
    large, small = figure(np.ones((10, 10)), 0, 0, 50, 50), figure(np.ones((4, 5)), 8, 7, 50, 50)
    assert _overlap(large, small) == _overlap(small, large) == 2 * 3 / 20
    assert _overlap(large, figure(np.ones((4, 4)), 10, 0, 50, 50)) == 0


def test_an_image_depends_on_the_seed_and_not_on_the_number_of_images(tmp_path):
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


def test_shapes_of_other_parameters_are_not_overwritten(tmp_path):
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
def test_parameters_out_of_range_are_refused(tmp_path, bad):
    with pytest.raises(SppdetError, match="give at least one"):
        make_shapes(tmp_path / "shapes", **bad)
    assert not (tmp_path / "shapes").exists()
