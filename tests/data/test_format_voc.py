"""XML beside the images, in one folder per split, and in VOC's folders without lists."""

from __future__ import annotations

import pytest
from labelled import kinds_of, objects_of, voc_xml, write, write_image

from sppdet.data.labelled_folder import read_folder
from sppdet.utils.errors import SppdetError


def test_xml_beside_the_images_is_read_whatever_path_it_names(tmp_path):
    write_image(tmp_path / "IMG 1.jpg")
    write(tmp_path / "IMG 1.xml", voc_xml(("cat", 11, 6, 20, 15), filename="IMG 1.jpg"))
    folder = read_folder(tmp_path)
    assert (folder.format, folder.classes, folder.splits()) == ("voc", ("cat",), {})
    assert objects_of(folder) == {"IMG_1": [("cat", 10, 5, 20, 15)]} and kinds_of(folder) == []


def test_roboflow_has_one_folder_per_split(tmp_path):
    for seed, split in enumerate(("train", "valid", "test")):
        name = f"a_jpg.rf.0{seed}"
        write_image(tmp_path / split / f"{name}.jpg", seed=seed)
        write(tmp_path / split / f"{name}.xml", voc_xml(("cat", 2, 3, 20, 15), filename=f"{name}.jpg"))
    folder = read_folder(tmp_path)
    assert {name: [image.id for image in images] for name, images in folder.splits().items()} == {
        "train": ["a_jpg.rf.00"],
        "val": ["a_jpg.rf.01"],
        "test": ["a_jpg.rf.02"],
    }


def test_folders_of_voc_without_lists_and_with_masks(tmp_path):
    write_image(tmp_path / "VOC2007/JPEGImages/a.jpg")
    write_image(tmp_path / "VOC2007/SegmentationClass/a.png", seed=1)
    write(tmp_path / "VOC2007/Annotations/a.xml", voc_xml(("cat", 1, 1, 20, 15)))
    folder = read_folder(tmp_path)
    assert folder.images[0].path.name == "a.jpg" and objects_of(folder) == {"a": [("cat", 0, 0, 20, 15)]}


def test_lists_of_voc_are_splits(tmp_path):
    for seed, name in enumerate("abc"):
        write_image(tmp_path / f"JPEGImages/{name}.jpg", seed=seed)
        write(tmp_path / f"Annotations/{name}.xml", voc_xml(("cat", 1, 1, 20, 15), filename=f"{name}.jpg"))
    write(tmp_path / "ImageSets/Main/train.txt", "a\n")
    write(tmp_path / "ImageSets/Main/trainval.txt", "a\nb\n")
    write(tmp_path / "ImageSets/Main/val.txt", "b\n")
    write(tmp_path / "ImageSets/Main/cat_val.txt", "b 1\n")
    assert {name: [i.id for i in images] for name, images in read_folder(tmp_path).splits().items()} == {
        "train": ["a"],
        "val": ["b"],
    }


def test_a_list_that_names_images_that_are_not_there_is_told(tmp_path):
    for seed, name in enumerate("ab"):
        write_image(tmp_path / f"JPEGImages/{name}.jpg", seed=seed)
        write(tmp_path / f"Annotations/{name}.xml", voc_xml(("cat", 2, 2, 20, 15), filename=f"{name}.jpg"))
    path = write(tmp_path / "ImageSets/Main/trainval.txt", "a\n../../../etc/passwd\ngone 1\n")
    (problem,) = [problem for problem in read_folder(tmp_path).problems if problem.kind == "listed"]
    assert problem.message == (
        f"{path}: names 2 images that are not there (../../../etc/passwd, gone); add or drop them"
    )


def test_of_two_images_the_one_that_the_annotation_names_is_taken(tmp_path):
    write_image(tmp_path / "img1.jpg")
    write_image(tmp_path / "img1.png", size=(60, 50))
    write(tmp_path / "img1.xml", voc_xml(("cat", 11, 6, 55, 45), filename="img1.png", size=(60, 50)))
    assert read_folder(tmp_path).images[0].path.name == "img1.png"
    write(tmp_path / "img1.xml", voc_xml(("cat", 11, 6, 20, 15), filename="photo.png"))
    with pytest.raises(SppdetError, match=r"img1\.xml: may belong to img1\.jpg and img1\.png; rename or remove one"):
        read_folder(tmp_path)


def test_an_annotation_of_another_name_is_of_the_image_that_it_names(tmp_path):
    write_image(tmp_path / "images/a.jpg")
    write(tmp_path / "xml/0001.xml", voc_xml(("cat", 11, 6, 20, 15)))
    assert objects_of(read_folder(tmp_path)) == {"a": [("cat", 10, 5, 20, 15)]}


def test_names_that_differ_by_composition_case_or_unseen_characters_are_one(tmp_path):
    write_image(tmp_path / "Cafe\u0301.JPG")
    write(tmp_path / "caf\u00e9\u200b.xml", voc_xml(("cat", 11, 6, 20, 15)))
    assert list(objects_of(read_folder(tmp_path)).values()) == [[("cat", 10, 5, 20, 15)]]


def test_cvat_s_names_of_lists_are_splits(tmp_path):
    for seed, (name, split) in enumerate({"a": "Train", "b": "Validation"}.items()):
        write_image(tmp_path / f"JPEGImages/{name}.jpg", seed=seed)
        write(tmp_path / f"Annotations/{name}.xml", voc_xml(("cat", 1, 1, 20, 15), filename=f"{name}.jpg"))
        write(tmp_path / f"imagesets/main/{split}.txt", f"{name}\n")
    assert {name: [i.id for i in images] for name, images in read_folder(tmp_path).splits().items()} == {
        "train": ["a"],
        "val": ["b"],
    }


@pytest.mark.parametrize("content", ["", "<annotation><obj"])
def test_an_annotation_that_is_cut_off_is_an_error_whatever_its_name(tmp_path, content):
    for seed, name in enumerate("ab"):
        write_image(tmp_path / f"{name}.jpg", seed=seed)
        write(tmp_path / f"0{name}.xml", voc_xml(("cat", 1, 1, 20, 15), filename=f"{name}.jpg"))
    write(tmp_path / "0b.xml", content)
    with pytest.raises(SppdetError, match=r"0b\.xml: is not well-formed XML"):
        read_folder(tmp_path)
