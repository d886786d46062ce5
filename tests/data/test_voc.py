"""The VOC reader: conventions, tolerance, and one line for each file that cannot be used; and the writer."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from sppdet.data.voc import read_voc, write_voc_annotation
from sppdet.utils.errors import SppdetError

SHARED = Path(__file__).parents[3] / "shared"


def object_xml(name="cat", xmin=11, ymin=6, xmax=20, ymax=15, extra="<difficult>0</difficult>"):
    """Return the XML of one object."""
    corners = f"<xmin>{xmin}</xmin><ymin>{ymin}</ymin><xmax>{xmax}</xmax><ymax>{ymax}</ymax>"
    return f"<object><name>{name}</name>{extra}<bndbox>{corners}</bndbox></object>"


def add(root, image_id, *objects, size=(40, 30), suffix=".png"):
    """Add an image of ``size`` (width, height) and its objects to the split ``train``."""
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(root / "JPEGImages" / f"{image_id}{suffix}")
    xml = f"<annotation>{''.join(objects)}</annotation>"
    (root / "Annotations" / f"{image_id}.xml").write_text(xml, encoding="utf-8")
    with open(root / "ImageSets" / "Main" / "train.txt", "a") as split:
        split.write(f"{image_id}\n")


def error_lines(root, match, **options):
    """Return the lines of the error that reading raises; the error matches ``match``."""
    with pytest.raises(SppdetError, match=match) as caught:
        read_voc(root, "train", **options)
    return str(caught.value).splitlines()


@pytest.fixture(autouse=True)
def no_unexpected_warnings():
    """Turn warnings that a test does not expect into errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_corners_are_1_based_and_inclusive(tmp_path):
    # The whole image and its first pixel, as VOC writes them; the last one is one pixel wide.
    add(tmp_path, "a", object_xml("cat", 1, 1, 40, 30), object_xml("dog", 1, 1, 1, 2), object_xml("cat", 7, 3, 7, 12))
    data = read_voc(tmp_path, "train")
    (sample,) = data
    assert data.classes == ("cat", "dog") and len(data) == 1 and data[0] is sample
    assert (sample.id, sample.path, sample.width, sample.height) == (
        "a",
        tmp_path / "JPEGImages/a.png",
        40,
        30,
    )
    assert sample.boxes.tolist() == [[0, 0, 40, 30], [0, 0, 1, 2], [6, 2, 7, 12]]
    assert sample.labels.tolist() == [0, 1, 0]
    assert (sample.boxes.dtype, sample.labels.dtype, sample.difficult.dtype) == (np.float32, np.int64, bool)


def test_objects_without_the_flag_are_not_difficult(tmp_path):
    add(tmp_path, "a", object_xml(extra="<difficult>1</difficult>"), object_xml(xmax=21), object_xml(xmax=22, extra=""))
    assert read_voc(tmp_path, "train")[0].difficult.tolist() == [True, False, False]


def test_fractions_of_a_pixel_are_kept(tmp_path):
    add(tmp_path, "a", object_xml(xmin=1.5, xmax=8.25))
    assert read_voc(tmp_path, "train")[0].boxes.tolist() == [[0.5, 5, 8.25, 15]]


def test_an_image_may_have_no_objects(tmp_path):
    add(tmp_path, "a")
    sample = read_voc(tmp_path, "train", classes=["cat"])[0]
    assert sample.boxes.shape == (0, 4) and sample.labels.shape == sample.difficult.shape == (0,)
    assert (sample.boxes.dtype, sample.labels.dtype, sample.difficult.dtype) == (np.float32, np.int64, bool)


def test_boxes_of_parts_are_passed_over(tmp_path):
    part = object_xml("head", 2, 2, 3, 3).replace("object>", "part>")
    add(tmp_path, "a", object_xml("person", extra=part))
    data = read_voc(tmp_path, "train")
    assert data.classes == ("person",)
    assert data[0].boxes.tolist() == [[10, 5, 20, 15]]


def test_classes_do_not_depend_on_the_limit(tmp_path):
    add(tmp_path, "a", object_xml("zebra"))
    add(tmp_path, "b", object_xml("ant"))
    data = read_voc(tmp_path, "train", limit=1)
    assert data.classes == ("ant", "zebra")
    assert [sample.id for sample in data] == ["a"] and data[0].labels.tolist() == [1]


def test_classes_that_the_caller_names_keep_their_order(tmp_path):
    add(tmp_path, "a", object_xml("ant"))
    data = read_voc(tmp_path, "train", classes=["zebra", "ant"])
    assert data.classes == ("zebra", "ant") and data[0].labels.tolist() == [1]


def test_a_limit_below_one_is_refused(tmp_path):
    error_lines(tmp_path, "limit is 0", limit=0)


def test_split_files_are_read_tolerantly(tmp_path):
    for image_id in ("a", "b", "c 2"):
        add(tmp_path, image_id)
    text = "\ufeffa  1\r\n\r\nb -1\r\na\r\n  c 2  \r\n"
    (tmp_path / "ImageSets/Main/train.txt").write_bytes(text.encode())
    assert [sample.id for sample in read_voc(tmp_path, "train")] == ["a", "b", "c 2"]


def test_an_image_whose_name_ends_like_a_second_column_is_itself(tmp_path):
    for image_id in ("photo", "photo 0", "photo 1"):
        add(tmp_path, image_id)
    assert [sample.id for sample in read_voc(tmp_path, "train")] == ["photo", "photo 0", "photo 1"]


@pytest.mark.parametrize("suffix", [".JPG", ".jpeg", ".jfif", ".png", ".BMP", ".ppm"])
def test_images_of_several_formats_are_found(tmp_path, suffix):
    add(tmp_path, "a", suffix=suffix)
    assert read_voc(tmp_path, "train")[0].path.name == f"a{suffix}"


def test_the_size_is_that_of_the_image_as_displayed(tmp_path):
    add(tmp_path, "a", object_xml(xmax=30, ymax=40))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (40, 30)).save(tmp_path / "JPEGImages/a.png", exif=exif)
    with pytest.warns(UserWarning, match=r"EXIF turns or mirrors.*: 1 \(a\.xml\)"):
        sample = read_voc(tmp_path, "train")[0]
    assert (sample.width, sample.height) == (30, 40)
    assert sample.boxes.tolist() == [[10, 5, 30, 40]]


def test_the_devkit_folder_is_accepted_if_it_holds_one_data_set(tmp_path):
    (tmp_path / "VOCcode").mkdir()
    add(tmp_path / "VOC2007", "a")
    assert len(read_voc(tmp_path, "train")) == 1
    add(tmp_path / "VOC2012", "a")
    error_lines(tmp_path, "several VOC folders.*VOC2007, VOC2012")


def test_missing_folders_and_splits_are_named(tmp_path):
    error_lines(tmp_path / "nowhere", "nowhere: no such folder")
    error_lines(tmp_path, "ImageSets/Main is missing")
    (tmp_path / "ImageSets/Main").mkdir(parents=True)
    error_lines(tmp_path, "JPEGImages: no such folder")
    (tmp_path / "JPEGImages").mkdir()
    error_lines(tmp_path, r"train\.txt: no such split; there are: none")
    (tmp_path / "ImageSets/Main/val.txt").write_text("a\n")
    (tmp_path / "ImageSets/Main/test.txt").write_text("b\n")
    error_lines(tmp_path, r"train\.txt: no such split; there are: test, val")
    (tmp_path / "ImageSets/Main/train.txt").write_text("\n \n")
    error_lines(tmp_path, r"train\.txt: lists no image")


@pytest.mark.parametrize(
    ("objects", "reason"),
    [
        (["<object>"], "not well-formed XML"),
        ([object_xml(name=" ")], "object 1 has no name"),
        (["<object><name>cat</name></object>"], r"object 1 \(cat\) has no bndbox"),
        ([object_xml(), object_xml(xmax="wide")], r"object 2 \(cat\) .* no number .*xmax=wide"),
        ([object_xml(xmax="")], "xmax=missing"),
        ([object_xml(xmax="nan")], "xmax=nan"),
        ([object_xml(xmin=21)], r"inverted \(xmin=21, ymin=6, xmax=20, ymax=15\)"),
        ([object_xml(ymin=16)], "inverted"),
        ([object_xml(xmin=41, xmax=50)], "outside the image, which is 40 x 30"),
        ([object_xml(ymin=-9, ymax=0)], "outside the image"),
    ],
)
def test_unusable_annotations_are_named(tmp_path, objects, reason):
    add(tmp_path, "good", object_xml())
    add(tmp_path, "bad", *objects)
    (line,) = error_lines(tmp_path, reason)
    assert line.startswith(str(tmp_path / "Annotations" / "bad.xml"))


def test_missing_and_broken_files_are_named_together(tmp_path):
    for image_id in ("a", "b", "c", "d"):
        add(tmp_path, image_id, object_xml())
    (tmp_path / "Annotations/a.xml").unlink()
    (tmp_path / "JPEGImages/a.png").write_bytes(b"")
    (tmp_path / "JPEGImages/b.png").unlink()
    (tmp_path / "JPEGImages/c.png").write_bytes(b"no image")
    lines = error_lines(tmp_path, "no such annotation")
    assert [line.split(":")[0].rsplit("/")[-1] for line in lines] == ["a.xml", "a.png", "b.jpg (or .png, ...)", "c.png"]


def test_an_unknown_class_is_named_with_the_nearest_one(tmp_path):
    add(tmp_path, "a", object_xml("persn"))
    (line,) = error_lines(tmp_path, "class 'persn'", classes=["cat", "person"])
    assert "a.xml" in line and "nearest: person" in line


def test_ten_problems_are_named_and_the_others_counted(tmp_path):
    for number in range(12):
        add(tmp_path, f"{number:02d}", object_xml(xmin=21))
    lines = error_lines(tmp_path, "inverted")
    assert len(lines) == 11 and "09.xml" in lines[9] and lines[10] == "and 2 more"


def test_boxes_beyond_the_image_are_clipped_with_one_warning(tmp_path):
    for image_id in "abcd":
        add(tmp_path, image_id, object_xml(xmax=45), object_xml(ymax=31))
    with pytest.warns(UserWarning) as caught:
        data = read_voc(tmp_path, "train")
    assert data[0].boxes.tolist() == [[10, 5, 40, 15], [10, 5, 20, 30]]
    (warning,) = caught
    assert "clipped: 8 (a.xml, b.xml, c.xml, ...)" in str(warning.message)
    assert "0-based" not in str(warning.message)


def test_a_0_based_file_is_warned_of(tmp_path):
    add(tmp_path, "a", object_xml(xmin=0))
    with pytest.warns(UserWarning, match=r"clipped: 1 \(a\.xml\).*0-based"):
        data = read_voc(tmp_path, "train")
    assert data[0].boxes.tolist() == [[0, 5, 20, 15]]


def test_a_box_of_a_single_pixel_is_kept_with_a_warning(tmp_path):
    add(tmp_path, "a", object_xml(xmin=3, ymin=4, xmax=3, ymax=4))
    with pytest.warns(UserWarning, match=r"single pixel.*kept: 1 \(a\.xml\)"):
        data = read_voc(tmp_path, "train")
    assert data[0].boxes.tolist() == [[2, 3, 3, 4]]


def test_an_image_of_another_size_than_its_annotation_says_is_warned_of(tmp_path):
    add(tmp_path, "a", "<size><width>30</width><height>40</height></size>", object_xml())
    add(tmp_path, "b", "<size><width>40</width><height>30</height></size>", object_xml())
    add(tmp_path, "c", "<size><width>0</width><height>0</height></size>", object_xml())  # as some tools write
    with pytest.warns(UserWarning, match=r"another size than their annotation says.*wrong: 1 \(a\.xml\)"):
        read_voc(tmp_path, "train")


def test_a_written_annotation_is_read_back(tmp_path):
    add(tmp_path, "a")
    boxes = np.array([[0, 0, 40, 30], [0.5, 5, 8.1, 15]], np.float32)
    path = tmp_path / "Annotations/a.xml"
    write_voc_annotation(path, "a.png", 40, 30, boxes, ["cat & <dog>", "ant"], [False, True])
    sample = read_voc(tmp_path, "train", classes=["ant", "cat & <dog>"])[0]
    np.testing.assert_allclose(sample.boxes, boxes, rtol=1e-6)
    assert sample.labels.tolist() == [1, 0] and sample.difficult.tolist() == [False, True]
    assert "<xmin>1</xmin>" in path.read_text() and "<xmax>40</xmax>" in path.read_text()
    assert [other.name for other in path.parent.iterdir()] == ["a.xml"]  # no temporary file is left


@pytest.mark.skipif(not (SHARED / "BCCD").is_dir(), reason="needs ../shared/BCCD, blood cells in VOC layout")
def test_a_real_data_set_with_stray_clicks_is_usable():
    with pytest.warns(UserWarning, match=r"kept: 2 \(BloodImage_00338\.xml, BloodImage_00343\.xml\)"):
        data = read_voc(SHARED / "BCCD", "trainval")
    assert len(data) == 292 and data.classes == ("Platelets", "RBC", "WBC")
