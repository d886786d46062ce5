"""Reading a folder whatever tool wrote it: its format, its problems, and what cannot be read."""

from __future__ import annotations

import pytest
from labelled import kinds_of, objects_of, voc_xml, write, write_image

from sppdet.data.labelled_folder import read_folder
from sppdet.utils.errors import SppdetError


def add(root, name: str, *objects: tuple, seed: int = 0) -> None:
    """Add an image with XML beside it."""
    write_image(root / f"{name}.jpg", seed=seed)
    write(root / f"{name}.xml", voc_xml(*(objects or [("cat", 11, 6, 20, 15)]), filename=f"{name}.jpg"))


def refused(root, **options) -> list[str]:
    """Return the lines of the error with which a folder is refused."""
    with pytest.raises(SppdetError) as caught:
        read_folder(root, **options)
    return str(caught.value).splitlines()


def test_folders_without_images_annotations_or_objects(tmp_path):
    assert refused(tmp_path / "none") == [
        f"{tmp_path / 'none'}: no such folder; give a folder of images and annotations"
    ]
    assert refused(tmp_path) == [
        f"{tmp_path}: no images in this folder or below; give the folder of images and annotations"
    ]
    write_image(tmp_path / "a.jpg")
    expected = "expected VOC, CVAT, COCO, Label Studio, LabelMe, YOLO or CSV"
    remedy = "label the images with a tool that writes one of these, and give the folder of both"
    assert refused(tmp_path) == [f"{tmp_path}: no annotations; {expected}; {remedy}"]
    write(tmp_path / "a.json", {"images": 3})
    assert refused(tmp_path) == [f"{tmp_path}: no annotations; {expected} (a.json is none); {remedy}"]
    assert refused(tmp_path, format="coco") == [f"{tmp_path}: no annotations; expected coco (a.json is none); {remedy}"]
    assert refused(tmp_path, format="voc2") == [
        "data.format: voc2 is none of voc, cvat, coco, labelstudio, labelme, yolo, csv; give one of these"
    ]
    write(tmp_path / "a.xml", voc_xml())
    assert refused(tmp_path) == [f"{tmp_path}: no image has an object with a box (voc); label some images"]


@pytest.mark.parametrize(
    ("name", "remedy"),
    [("images.zip", "unpack images.zip first"), ("IMG_1.HEIC", "convert IMG_1.HEIC to JPEG or PNG")],
)
def test_what_lies_in_place_of_images_is_named(tmp_path, name, remedy):
    write(tmp_path / name, "")
    write(tmp_path / "a.xml", voc_xml(("cat", 1, 1, 9, 9)))
    assert refused(tmp_path) == [f"{tmp_path}: no images in this folder or below; {remedy}"]


def test_two_formats_that_say_the_same_are_one(tmp_path):
    add(tmp_path, "a")
    write(tmp_path / "labels.csv", "filename,width,height,class,xmin,ymin,xmax,ymax\na.jpg,40,30,cat,11,6,20,15\n")
    folder = read_folder(tmp_path)
    assert folder.format == "voc" and kinds_of(folder) == ["format"]


def test_two_formats_that_differ_are_asked_about(tmp_path):
    add(tmp_path, "a")
    write(tmp_path / "a.txt", "0 0.5 0.5 0.5 0.5\n")
    assert refused(tmp_path) == [
        f"{tmp_path}: holds voc (a.xml) and yolo (a.txt), which differ; say which to read with data.format=voc or "
        "data.format=yolo"
    ]
    assert objects_of(read_folder(tmp_path, "yolo")) == {"a": [("class 0", 10, 7.5, 30, 22.5)]}


def test_every_problem_is_told_at_once_and_skip_bad_leaves_out_what_cannot_be_used(tmp_path):
    for seed, name in enumerate("abcdefg"):
        add(tmp_path, name, seed=seed)
    (tmp_path / "a.jpg").write_bytes(b"no image")
    write(tmp_path / "b.xml", "<annotation>")
    (tmp_path / "c.jpg").unlink()
    write(tmp_path / "d.xml", voc_xml(("cat", 21, 6, 20, 15)))
    write_image(tmp_path / "unlabelled.jpg", seed=9)
    lines = refused(tmp_path)
    assert sorted(line.split(":")[0].rsplit("/")[-1] for line in lines[:-1]) == ["a.jpg", "b.xml", "c.xml", "d.xml"]
    assert lines[-1] == (
        f"{tmp_path}: `sppdet check` lists every problem; data.skip_bad=true leaves out what cannot be used"
    )
    folder = read_folder(tmp_path, skip_bad=True)
    assert list(objects_of(folder)) == ["e", "f", "g"] and folder.left_out == 4
    assert kinds_of(folder) == [
        "annotation",
        "inverted",
        "no annotation",
        "no annotation",
        "no image",
        "unreadable image",
    ]


def test_a_jpeg_that_is_cut_off_is_used_with_a_problem(tmp_path):
    add(tmp_path, "a")
    write_image(tmp_path / "a.jpg", size=(40, 160))
    content = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(content[:-500])
    folder = read_folder(tmp_path)
    assert "truncated" in kinds_of(folder) and len(folder.images) == 1


def test_the_same_content_under_several_names(tmp_path):
    for seed, name in ((0, "a"), (0, "b"), (1, "c")):
        add(tmp_path, name, seed=seed)
    folder = read_folder(tmp_path)
    assert kinds_of(folder) == ["duplicate"]
    for split, seed in (("train", 3), ("test", 3)):
        add(tmp_path / split, split, seed=seed)
    assert kinds_of(read_folder(tmp_path)) == ["duplicate", "duplicate in splits", "no split"]


def test_ids_are_short_distinct_and_without_white_space(tmp_path):
    names = ["a b.c", "\u00e9t\u00e9 \U0001f600", "x" * 200, "x" * 199 + "y", "a_b.c"]
    for seed, name in enumerate(names):
        add(tmp_path, name, seed=seed)
    folder = read_folder(tmp_path)
    ids = [image.id for image in folder.images]
    assert len(set(ids)) == len(names) and all(len(i.encode()) <= 100 and not set(i) & set(" /") for i in ids)
    assert "\u00e9t\u00e9_\U0001f600" in ids and "a_b.c" in ids


def test_report_says_what_the_folder_holds(tmp_path):
    add(tmp_path, "a", ("cat", 11, 6, 20, 15), ("dog", 1, 1, 40, 30))
    assert read_folder(tmp_path).report().splitlines() == [
        f"{tmp_path}: voc, 1 image",
        "2 objects of 2 classes",
        "  cat: 1 object in 1 image",
        "  dog: 1 object in 1 image",
        "sizes of objects (root of the area, pixels): median 22, 90% from 11 to 33",
        "3 problems, 0 of them in images that cannot be used",
        "boxes that cover their whole image: 1",
        "  a.xml: object 2 (dog) covers the whole image",
        "classes with few objects: 2",
        f"  {tmp_path}: class 'cat' has 1 object; label more images of it",
        f"  {tmp_path}: class 'dog' has 1 object; label more images of it",
    ]


def test_images_outside_of_the_splits_and_names_that_files_cannot_have_are_told(tmp_path):
    for seed, name in enumerate(["train/a", "test/b", "new/c", "new/d"]):
        add(tmp_path, name, ("traffic/light", 3, 3, 20, 15), seed=seed)
    outside, name = (
        [problem.message for problem in read_folder(tmp_path).problems if problem.kind == kind]
        for kind in ("no split", "class name")
    )
    assert outside == [
        f"{tmp_path}: 2 images (c.jpg, d.jpg) in none of the splits test, train: neither learned from nor measured on; "
        "move them into one"
    ]
    assert name[0].startswith(f"{tmp_path}: class 'traffic/light': result files cannot have it in their names")


def test_images_beside_a_test_folder_alone_are_no_problem(tmp_path):
    for seed, name in enumerate(["test/a", "photos/b"]):
        add(tmp_path, name, seed=seed)
    folder = read_folder(tmp_path)
    assert kinds_of(folder) == [] and {name: len(images) for name, images in folder.splits().items()} == {
        "test": 1,
        "train": 1,
    }


def test_three_hundred_classes(tmp_path):
    for seed in range(3):
        add(tmp_path, f"{seed}", *((f"c{100 * seed + i}", 1, 1, 5 + i % 30, 20) for i in range(100)), seed=seed)
    data = read_folder(tmp_path).dataset()
    assert len(data.classes) == 300 and [len(sample.boxes) for sample in data] == [100, 100, 100]
