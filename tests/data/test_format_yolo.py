"""YOLO's text files, with and without names."""

from __future__ import annotations

import re

import pytest
from labelled import kinds_of, objects_of, write, write_image

from sppdet.data.labelled_folder import read_folder
from sppdet.utils.errors import SppdetError

LINE = "1 0.5 0.5 0.25 0.5\n"  # of 40 x 30 pixels: 15, 7.5, 25, 22.5


def test_roboflow_names_classes_in_data_yaml_as_they_are_written(tmp_path):
    for seed, split in enumerate(("train", "valid", "test")):
        write_image(tmp_path / split / f"images/a{seed}.jpg", seed=seed)
        write(tmp_path / split / f"labels/a{seed}.txt", LINE.replace("1", str(seed), 1))
    paths = "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n"
    write(tmp_path / "data.yaml", f"{paths}\nnc: 3\nnames: [0018, 12:30, no]\n")
    folder = read_folder(tmp_path)
    assert folder.format == "yolo" and kinds_of(folder) == ["class name"]  # a file cannot be called 12:30
    assert [names for (names,) in (image.names for image in folder.images)] == ["no", "0018", "12:30"]
    assert {name: images[0].id for name, images in folder.splits().items()} == {
        "train": "a0",
        "val": "a1",
        "test": "a2",
    }


def test_names_by_number_and_folders_of_another_machine(tmp_path):
    for seed, split in enumerate(("train", "val")):
        write_image(tmp_path / f"images/{split}/{seed}.png", seed=seed)
        write(tmp_path / f"labels/{split}/{seed}.txt", LINE)
    write(
        tmp_path / "my.yaml", "path: /home/me/data\ntrain: images/train\nval: images/val\nnames:\n  0: cat\n  1: dog\n"
    )
    folder = read_folder(tmp_path)
    assert objects_of(folder) == {"0": [("dog", 15, 7.5, 25, 22.5)], "1": [("dog", 15, 7.5, 25, 22.5)]}
    assert sorted(folder.splits()) == ["train", "val"]


def test_names_in_classes_txt_beside_the_images(tmp_path):
    write_image(tmp_path / "a.jpg")
    write(tmp_path / "a.txt", LINE)
    write(tmp_path / "classes.txt", "cat\ndog\n")
    assert objects_of(read_folder(tmp_path)) == {"a": [("dog", 15, 7.5, 25, 22.5)]}


def test_without_names_classes_have_their_numbers(tmp_path):
    write_image(tmp_path / "a.jpg")
    write_image(tmp_path / "b.jpg", seed=1)
    write(tmp_path / "a.txt", LINE + "0 0.1 0.2 0.9 0.2 0.5 0.8\n")  # the second one is a polygon
    write(tmp_path / "b.txt", "")
    folder = read_folder(tmp_path)
    assert objects_of(folder) == {"a": [("class 1", 15, 7.5, 25, 22.5), ("class 0", 4, 6, 36, 24)], "b": []}


def test_a_little_outside_is_clipped_and_rounding_passes(tmp_path):
    write_image(tmp_path / "a.jpg")
    write(tmp_path / "a.txt", "0 0.100001 0.5 0.2001 0.5\n0 0.95 0.5 0.2 0.5\n")
    folder = read_folder(tmp_path)
    assert kinds_of(folder) == ["clipped"]
    assert objects_of(folder) == {"a": [("class 0", 0, 7.5, 8, 22.5), ("class 0", 34, 7.5, 40, 22.5)]}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2 0.5 0.5 0.2 0.2", r"a\.txt: line 2 has class 2, but there are 2 names, from 0; correct one of them"),
        ("1 0.5 0.5 0.2 wide", "line 2 holds a word that is no number"),
        ("1 0.5 0.5 0.2", "line 2 has 4 numbers; write class, x, y, width, height"),
        ("1 0.5 nan 0.2 0.2", "line 2 has no class number from 0, or no finite numbers"),
        ("-1 0.5 0.5 0.2 0.2", "line 2 has no class number from 0"),
        ("nan 0.5 0.5 0.2 0.2", "line 2 has no class number from 0"),
        ("inf 0.5 0.5 0.2 0.2", "line 2 has no class number from 0"),
        ("1 20 15 10 10", r"object 2 \(dog\) has numbers that are no fractions of width and height"),
    ],
)
def test_lines_that_cannot_be_used_are_named(tmp_path, line, message):
    write_image(tmp_path / "a.jpg")
    write(tmp_path / "a.txt", f"{LINE}{line}\n")
    write(tmp_path / "classes.txt", "cat\ndog")
    with pytest.raises(SppdetError, match=message):
        read_folder(tmp_path)


@pytest.mark.parametrize("entry", ["pictures/train", "images/*.png"])
def test_a_yaml_file_that_names_missing_folders(tmp_path, entry):
    write_image(tmp_path / "images/a.jpg")
    write(tmp_path / "labels/a.txt", LINE)
    write(tmp_path / "data.yaml", f"train: {entry}\nnames: [cat, dog]\n")
    message = rf"data\.yaml: train names {re.escape(entry)}, which is not in .*; correct it or"
    with pytest.raises(SppdetError, match=message):
        read_folder(tmp_path)
    write(tmp_path / "data.yaml", "train: images\nval: ../valid/images\nnames: [cat, dog]\n")
    assert kinds_of(read_folder(tmp_path)) == ["missing folder"]


def test_one_label_file_for_two_images_is_ambiguous(tmp_path):
    write_image(tmp_path / "a.jpg")
    write_image(tmp_path / "a.png", seed=1)
    write(tmp_path / "a.txt", LINE)
    with pytest.raises(SppdetError, match=r"a\.txt: may belong to a\.jpg and a\.png; rename or remove one"):
        read_folder(tmp_path)


def test_equal_names_in_several_splits_are_several_images(tmp_path):
    for seed, split in enumerate(("train", "test")):
        write_image(tmp_path / f"images/{split}/a.jpg", seed=seed)
        write(tmp_path / f"labels/{split}/a.txt", LINE.replace("1", str(seed), 1))
    assert {i: names for i, ((names, *_),) in objects_of(read_folder(tmp_path)).items()} == {
        "images_test_a": "class 1",
        "images_train_a": "class 0",
    }


def test_exports_that_number_classes_differently_lie_side_by_side(tmp_path):
    """Each label file has the names nearest above it, so that 1 is a dog in one export and a cat in the other."""
    for seed, (export, names) in enumerate({"p1": "[cat, dog]", "p2": "[dog, cat]"}.items()):
        for split in ("train", "valid"):
            write_image(tmp_path / export / split / f"images/{export}{split}.jpg", seed=10 * seed + ord(split[0]))
            write(tmp_path / export / split / f"labels/{export}{split}.txt", LINE)
        write(tmp_path / export / "data.yaml", f"train: ../train/images\nval: ../valid/images\nnames: {names}\n")
    folder = read_folder(tmp_path)
    assert {i: names for i, ((names, *_),) in objects_of(folder).items()} == {
        "p1train": "dog",
        "p1valid": "dog",
        "p2train": "cat",
        "p2valid": "cat",
    }
    splits = {name: [image.id for image in images] for name, images in folder.splits().items()}
    assert splits == {"train": ["p1train", "p2train"], "val": ["p1valid", "p2valid"]}
    assert folder.classes == ("cat", "dog") and kinds_of(folder) == []


def test_names_lie_beside_the_labels_or_beside_the_images(tmp_path):
    for seed, (person, names) in enumerate({"alice": "cat\ndog\n", "bob": "dog\ncat\n"}.items()):
        write_image(tmp_path / f"images/{person}/{person}.jpg", seed=seed)
        write(tmp_path / f"labels/{person}/{person}.txt", LINE)
        write(tmp_path / ("images" if person == "bob" else "labels") / person / "classes.txt", names)
    assert {i: names for i, ((names, *_),) in objects_of(read_folder(tmp_path)).items()} == {
        "alice": "dog",
        "bob": "cat",
    }


def test_names_that_lie_elsewhere_must_agree(tmp_path):
    write_image(tmp_path / "images/a.jpg")
    write(tmp_path / "labels/a.txt", LINE)
    for name in ("one", "two"):
        write(tmp_path / f"configs/{name}.yaml", "names: [cat, dog]\n")
    assert objects_of(read_folder(tmp_path)) == {"a": [("dog", 15, 7.5, 25, 22.5)]}
    write(tmp_path / "configs/two.yaml", "names: [dog, cat]\n")
    with pytest.raises(SppdetError, match=r"one\.yaml: names other classes than .*two\.yaml; remove one, or put each"):
        read_folder(tmp_path)
    write(tmp_path / "data.yaml", "names: [bird, cow]\n")  # nearer than both
    assert objects_of(read_folder(tmp_path)) == {"a": [("cow", 15, 7.5, 25, 22.5)]}


def test_cvat_has_a_folder_per_subset_and_names_in_obj_names(tmp_path):
    for seed, subset in enumerate(("Train", "Validation")):
        write_image(tmp_path / f"obj_{subset}_data/{seed}.jpg", seed=seed)
        write(tmp_path / f"obj_{subset}_data/{seed}.txt", LINE)
    write(tmp_path / "obj.names", "cat\ndog\n")
    folder = read_folder(tmp_path)
    assert {name: images[0].id for name, images in folder.splits().items()} == {"train": "0", "val": "1"}
    assert folder.classes == ("dog",)


@pytest.mark.parametrize("test_list", ["test.txt", "mine.txt"])
def test_darknet_lists_the_images_of_each_split_and_names_classes_in_any_names_file(tmp_path, test_list):
    for seed in range(3):
        write_image(tmp_path / f"data/obj/{seed}.jpg", seed=seed)
        write(tmp_path / f"data/obj/{seed}.txt", LINE)
    write(tmp_path / "data/train.txt", "data/obj/0.jpg\ndata/obj/2.jpg\n")
    write(tmp_path / f"data/{test_list}", "data/obj/1.jpg\n")
    write(tmp_path / "data/animals.names", "cat\ndog\n")
    write(tmp_path / "data/obj.data", f"classes = 2\ntrain = data/train.txt\nvalid = data/{test_list}\n")
    folder = read_folder(tmp_path)
    assert {name: [image.id for image in images] for name, images in folder.splits().items()} == {
        "train": ["0", "2"],
        "val": ["1"],
    }
    assert folder.classes == ("dog",)


@pytest.mark.parametrize("pattern", ["images/a*/*.jpg", "images/a*", "/home/me/images/**/a*.jpg"])
def test_a_yaml_file_names_images_and_folders_by_patterns(tmp_path, pattern):
    for seed, name in enumerate(("a1/a.jpg", "a2/ab.jpg", "b/b.jpg")):
        write_image(tmp_path / "images" / name, seed=seed)
        write(tmp_path / "labels" / name.replace(".jpg", ".txt"), LINE)
    write(tmp_path / "data.yaml", f"train: {pattern!r}\nval: ['images/[b]/*.jpg']\nnames: [cat, dog]\n")
    folder = read_folder(tmp_path)
    assert {name: [image.id for image in images] for name, images in folder.splits().items()} == {
        "train": ["a", "ab"],
        "val": ["b"],
    }
    assert kinds_of(folder) == []


def test_labels_of_jfif_images_are_read(tmp_path):
    write_image(tmp_path / "a.jfif")
    write(tmp_path / "a.txt", LINE)
    assert objects_of(read_folder(tmp_path)) == {"a": [("class 1", 15, 7.5, 25, 22.5)]}
