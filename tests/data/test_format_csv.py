"""Tables of boxes."""

from __future__ import annotations

import pytest
from labelled import kinds_of, objects_of, write, write_image

from sppdet.data.labelled_folder import read_folder
from sppdet.utils.errors import SppdetError


def test_tables_of_tensorflow_tutorials_count_pixels_as_voc(tmp_path):
    write_image(tmp_path / "train/a.jpg")
    write_image(tmp_path / "test/b.jpg", seed=1)
    header = "filename,width,height,class,xmin,ymin,xmax,ymax\n"
    write(tmp_path / "train_labels.csv", f"{header}a.jpg,40,30,cat,11,6,20,15\na.jpg,40,30,dog,1,1,4,4\n")
    write(tmp_path / "test_labels.csv", f"{header}b.jpg,40,30,cat,11,6,20,15\n")
    folder = read_folder(tmp_path)
    assert folder.format == "csv" and sorted(folder.splits()) == ["test", "train"]
    assert objects_of(folder) == {"a": [("cat", 10, 5, 20, 15), ("dog", 0, 0, 4, 4)], "b": [("cat", 10, 5, 20, 15)]}


def test_open_images_has_fractions_codes_of_classes_and_names_without_suffix(tmp_path):
    write_image(tmp_path / "train/000026e7ee790996.jpg")
    rows = [
        "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside",
        "000026e7ee790996,xclick,/m/01yrx,1,0.25,0.5,0.1,0.5,0,0,0,0,0",
        "000026e7ee790996,xclick,/m/0b,1,0,1,0,0.5,0,0,1,0,0",
    ]
    write(tmp_path / "train-annotations-bbox.csv", "\n".join(rows))
    write(tmp_path / "class-descriptions-boxable.csv", "/m/01yrx,Cat\n/m/0b,Dog\n")
    folder = read_folder(tmp_path)
    assert objects_of(folder) == {"000026e7ee790996": [("Cat", 10, 3, 20, 15), ("Dog", 0, 0, 40, 15)]}
    assert folder.images[0].difficult.tolist() == [False, True]


def test_edges_in_other_separators_and_without_header(tmp_path):
    write_image(tmp_path / "a.jpg")
    write(tmp_path / "x.csv", "image;x1;y1;x2;y2;label\na.jpg;10;5;20.5;15;cat\n")
    assert objects_of(read_folder(tmp_path)) == {"a": [("cat", 10, 5, 20.5, 15)]}
    write_image(tmp_path / "b.jpg", seed=1)
    write(tmp_path / "x.csv", "/home/me/a.jpg,10,5,20,15,cat\nb.jpg,,,,,\n")
    assert objects_of(read_folder(tmp_path)) == {"a": [("cat", 10, 5, 20, 15)], "b": []}


def test_normalised_corners_are_multiplied_with_a_remark(tmp_path):
    write_image(tmp_path / "a.jpg")
    write(tmp_path / "x.csv", "filename,width,height,class,xmin,ymin,xmax,ymax\na.jpg,40,30,cat,0.25,0.1,0.5,0.5\n")
    folder = read_folder(tmp_path)
    assert objects_of(folder) == {"a": [("cat", 10, 3, 20, 15)]} and kinds_of(folder) == ["fractions"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a.jpg,40,30,cat,1,2,wide,4", "row 3 has a corner that is no number: 1, 2, wide, 4"),
        ("a.jpg,40,30,cat,1,2,nan,4", "row 3 has a corner that is no number: 1, 2, nan, 4"),
        ("a.jpg,40,30,cat,1,2,inf,4", "row 3 has a corner that is no number: 1, 2, inf, 4"),
        ("a.jpg,4", "row 3 has 2 col"),
        ('a.jpg,40,30,"cat,' + "x" * 131073, "field larger than field limit"),
    ],
)
def test_rows_that_cannot_be_used_are_named(tmp_path, row, message):
    write_image(tmp_path / "a.jpg")
    head = "filename,width,height,class,xmin,ymin,xmax,ymax\na.jpg,40,30,cat,1,2,3,4\n"
    write(tmp_path / "x.csv", f"{head}{row}\n")
    with pytest.raises(SppdetError, match=rf"x\.csv: is not as a table of boxes should be \({message}"):
        read_folder(tmp_path)


def test_corners_that_pandas_writes_as_nan_are_an_image_without_objects(tmp_path):
    write_image(tmp_path / "a.jpg")
    write_image(tmp_path / "b.jpg", seed=1)
    header = "filename,width,height,class,xmin,ymin,xmax,ymax\n"
    write(tmp_path / "x.csv", f"{header}a.jpg,nan,nan,nan,nan,nan,nan,NaN\nb.jpg,40,30,cat,11,6,20,15\n")
    assert objects_of(read_folder(tmp_path)) == {"a": [], "b": [("cat", 10, 5, 20, 15)]}
    write(tmp_path / "x.csv", "a.jpg,nan,nan,nan,nan,nan\nb.jpg,10,5,20,15,cat\n")
    assert objects_of(read_folder(tmp_path)) == {"a": [], "b": [("cat", 10, 5, 20, 15)]}


def test_fractions_are_a_matter_of_the_table_not_of_the_image(tmp_path):
    write_image(tmp_path / "a.jpg")
    write_image(tmp_path / "b.jpg", seed=1)
    write(tmp_path / "x.csv", "filename,class,x1,y1,x2,y2\na.jpg,cat,0.25,0.1,0.5,0.5\nb.jpg,cat,0,0,1,1\n")
    assert objects_of(read_folder(tmp_path)) == {"a": [("cat", 10, 3, 20, 15)], "b": [("cat", 0, 0, 40, 30)]}


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_tables_that_excel_and_powershell_write_are_decoded(tmp_path, encoding):
    write_image(tmp_path / "a.jpg")
    (tmp_path / "x.csv").write_text("filename,class,x1,y1,x2,y2\na.jpg,caf\u00e9,10,5,20,15\n", encoding=encoding)
    assert objects_of(read_folder(tmp_path)) == {"a": [("caf\u00e9", 10, 5, 20, 15)]}


def test_a_table_in_another_encoding_is_an_error_also_beside_others(tmp_path):
    header = "filename,class,x1,y1,x2,y2\n"
    for seed, name in enumerate(("train", "test")):
        write_image(tmp_path / f"{name}.jpg", seed=seed)
        write(tmp_path / f"{name}.csv", f"{header}{name}.jpg,cat,10,5,20,15\n")
    (tmp_path / "test.csv").write_text(f"{header}test.jpg,caf\u00e9,10,5,20,15\n", encoding="cp1252")
    with pytest.raises(SppdetError, match=r"test\.csv: is not UTF-8 text; save it as UTF-8"):
        read_folder(tmp_path)
