"""Writing labelled images in other formats: what is written is read back."""

from __future__ import annotations

import json

import numpy as np
import pytest
from labelled import kinds_of, objects_of, voc_xml, write, write_image

from sppdet.data import writers
from sppdet.data.labelled_folder import read_folder
from sppdet.data.voc import read_voc
from sppdet.data.writers import WRITERS, convert_folder
from sppdet.utils.errors import SppdetError


@pytest.fixture
def folder(tmp_path):
    """Three images in two splits; fractions of pixels, an image without objects, names that YAML would bend."""
    objects = {
        "train/a b": [("0017", 1, 1, 40, 30), ("no", 2.25, 3, 20.5, 15)],
        "train/c": [],
        "test/d": [("no", 5, 6, 7, 8)],
    }
    for seed, (name, boxes) in enumerate(objects.items()):
        write_image(tmp_path / f"in/{name}.png", seed=seed)
        write(tmp_path / f"in/{name}.xml", voc_xml(*boxes, filename=f"{name.split('/')[1]}.png"))
    return read_folder(tmp_path / "in")


@pytest.mark.parametrize("form", WRITERS)
def test_what_is_written_is_read_back(tmp_path, folder, form):
    convert_folder(folder, tmp_path / "out", form)
    again = read_folder(tmp_path / "out")
    assert again.format == form and kinds_of(again) == ["covers"]
    ours, theirs = objects_of(folder), objects_of(again)
    assert ours.keys() == theirs.keys() == {"a_b", "c", "d"}
    for image_id, objects in ours.items():
        assert [name for name, *_ in theirs[image_id]] == [name for name, *_ in objects]
        for (_, *box), (_, *other) in zip(objects, theirs[image_id]):
            np.testing.assert_allclose(other, box, atol=0.011)
    splits = {name: [image.id for image in images] for name, images in again.splits().items()}
    assert splits == {"train": ["a_b", "c"], "test": ["d"]}
    copy = next(image.path for image in again.images if image.id == "a_b")
    assert copy.read_bytes() == (tmp_path / "in/train/a b.png").read_bytes()


def test_voc_has_the_lists_that_training_asks_for(tmp_path, folder):
    convert_folder(folder, tmp_path / "out", "voc")
    assert [sample.id for sample in read_voc(tmp_path / "out", "trainval")] == ["a_b", "c"]


@pytest.mark.parametrize(("flag", "mark"), [("difficult", 1), ("ignored", None)])
def test_coco_marks_difficult_objects_and_crowds_so_that_they_are_read_as_such(tmp_path, folder, flag, mark):
    getattr(folder.images[0], flag)[:] = True
    convert_folder(folder, tmp_path / "out", "coco")
    (path,) = (tmp_path / "out/annotations").glob("*test.json")
    (entry,) = json.loads(path.read_text())["annotations"]
    assert (entry["iscrowd"], entry.get("difficult")) == (1, mark)
    (image,) = [image for image in read_folder(tmp_path / "out").images if image.split == "test"]
    assert getattr(image, flag).all() and image.difficult.any() != image.ignored.any()


def test_a_folder_without_splits_stays_without(tmp_path):
    write_image(tmp_path / "in/a.jpg")
    write(tmp_path / "in/a.xml", voc_xml(("cat", 2, 3, 20, 15)))
    for form in WRITERS:
        convert_folder(read_folder(tmp_path / "in"), tmp_path / form, form)
        assert read_folder(tmp_path / form).splits() == {}


def test_a_folder_is_not_overwritten_and_appears_whole_or_not_at_all(tmp_path, folder, monkeypatch):
    with pytest.raises(SppdetError, match=r"in: exists already; give a new folder, or remove this one"):
        convert_folder(folder, tmp_path / "in", "yolo")

    def full(*_) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writers, "write_lines", full)
    with pytest.raises(SppdetError, match=r"out: cannot be written \(No space left on device\); choose another folder"):
        convert_folder(folder, tmp_path / "out", "yolo")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize(
    ("form", "kept", "told"),
    [
        ("yolo", 0, "2 ignored regions, such as COCO's crowds, left out, as YOLO has no mark for them"),
        ("voc", 2, "2 ignored regions, such as COCO's crowds, written as difficult objects"),
    ],
)
def test_regions_that_are_ignored_do_not_become_ordinary_objects(tmp_path, folder, form, kept, told):
    for image in folder.images:
        image.ignored[:1] = True
    with pytest.warns(UserWarning, match=f"out: {told}$"):
        convert_folder(folder, tmp_path / "out", form)
    again = read_folder(tmp_path / "out")
    assert sum(len(image.names) for image in again.images) == 1 + kept
    assert sum(image.difficult.sum() for image in again.images) == kept
