"""Label Studio's JSON in its two forms."""

from __future__ import annotations

import pytest
from labelled import kinds_of, objects_of, write, write_image

from sppdet.data.labelled_folder import read_folder
from sppdet.utils.errors import SppdetError

SIZE = {"original_width": 40, "original_height": 30, "image_rotation": 0}


def rectangle(label: str, x: float, y: float, width: float, height: float, rotation: float = 0) -> dict:
    value = {"x": x, "y": y, "width": width, "height": height, "rotation": rotation, "rectanglelabels": [label]}
    return {
        "id": f"{label}{x}",
        "type": "rectanglelabels",
        "from_name": "label",
        "to_name": "image",
        "value": value,
    } | SIZE


def task(image: str, *results: dict, **annotation) -> dict:
    return {"id": 1, "annotations": [{"id": 3, "result": list(results)} | annotation], "data": {"image": image}}


def test_percents_uploads_and_local_files(tmp_path):
    for seed, name in enumerate(("a b.jpg", "c.jpg", "d.jpg", "e.jpg")):
        write_image(tmp_path / "images" / name, seed=seed)
    polygon = {"value": {"points": [[10, 10], [50, 20], [30, 90]], "polygonlabels": ["dog"]}} | SIZE
    tasks = [
        task("/data/upload/1/0123abcd-a%20b.jpg", rectangle("cat", 25, 10, 50, 40)),
        task("/data/local-files/?d=images/c.jpg", polygon),
        task("s3://bucket/x/d.jpg"),
        {"id": 4, "annotations": [], "data": {"image": "e.jpg"}},
    ]
    write(tmp_path / "export.json", tasks)
    folder = read_folder(tmp_path)
    assert objects_of(folder) == {"a_b": [("cat", 10, 3, 30, 15)], "c": [("dog", 4, 3, 20, 27)], "d": []}
    assert folder.format == "labelstudio" and kinds_of(folder) == ["no annotation"]


def test_shapes_whose_label_is_another_result_cancelled_and_turned_ones(tmp_path):
    write_image(tmp_path / "a.jpg")
    shape, label = rectangle("cat", 50, 50, 10, 20), rectangle("cat", 50, 50, 10, 20)
    del shape["value"]["rectanglelabels"]
    label["value"] = {**shape["value"], "labels": ["cat"]}
    entry = task("a.jpg", shape, label, rectangle("dog", 50, 50, 10, 20, rotation=90))
    entry["annotations"].insert(0, {"was_cancelled": True, "result": [rectangle("bird", 1, 1, 9, 9)]})
    write(tmp_path / "x.json", [entry])
    # The turned box is 4 x 6 pixels, turned clockwise about its top left corner (20, 15).
    assert objects_of(read_folder(tmp_path)) == {"a": [("cat", 20, 15, 24, 21), ("dog", 14, 15, 20, 19)]}


def test_the_short_form(tmp_path):
    write_image(tmp_path / "a.jpg")
    label = {"x": 25, "y": 10, "width": 50, "height": 40, "rotation": 0, "rectanglelabels": ["cat"]} | SIZE
    entry = {"image": "/data/upload/0123abcd-a.jpg", "id": 1, "label": [label], "annotator": 1, "annotation_id": 2}
    write(tmp_path / "min.json", [entry])
    assert objects_of(read_folder(tmp_path)) == {"a": [("cat", 10, 3, 30, 15)]}


@pytest.mark.parametrize("data", [{}, {"image": None}, {"image": 3.5}])
def test_a_task_that_names_no_image_is_one_line(tmp_path, data):
    write_image(tmp_path / "a.jpg")
    write(tmp_path / "x.json", [task("a.jpg") | {"data": data}])
    with pytest.raises(SppdetError, match=r"x.json: .*a task names no image"):
        read_folder(tmp_path)


def test_the_short_form_has_the_names_of_the_project_s_controls(tmp_path):
    write_image(tmp_path / "a.jpg")
    bbox = [{"x": 25, "y": 10, "width": 50, "height": 40, "rotation": 0, "rectanglelabels": ["cat"]} | SIZE]
    poly = [{"points": [[10, 10], [50, 20], [30, 90]], "polygonlabels": ["dog"]} | SIZE]
    entry = {"image": "a.jpg", "id": 1, "bbox": bbox, "poly": poly, "weather": ["sunny"], "annotation_id": 2}
    write(tmp_path / "min.json", [entry])
    assert objects_of(read_folder(tmp_path)) == {"a": [("cat", 10, 3, 30, 15), ("dog", 4, 3, 20, 27)]}


def test_turned_ellipses(tmp_path):
    write_image(tmp_path / "a.jpg")
    value = {"x": 50, "y": 50, "radiusX": 20, "radiusY": 10, "rotation": 90, "ellipselabels": ["cat"]}
    write(tmp_path / "x.json", [task("a.jpg", {"id": "e", "value": value} | SIZE)])
    # Radii of 8 and 3 pixels about (20, 15), turned by 90 degrees.
    assert objects_of(read_folder(tmp_path)) == {"a": [("cat", 17, 7, 23, 23)]}


def test_uploads_whose_names_label_studio_changed(tmp_path):
    write_image(tmp_path / "my photo (1).jpg")
    write_image(tmp_path / "b.jpg", seed=1)
    tasks = [task("/data/upload/1/0123abcd-my_photo_1.jpg", rectangle("cat", 25, 10, 50, 40)), task("b.jpg")]
    write(tmp_path / "x.json", tasks)
    assert objects_of(read_folder(tmp_path)) == {"b": [], "my_photo_(1)": [("cat", 10, 3, 30, 15)]}


def test_a_file_that_is_not_json_is_an_error(tmp_path):
    write_image(tmp_path / "a.jpg")
    path = write(tmp_path / "x.json", [task("a.jpg", rectangle("cat", 25, 10, 50, 40))])
    write(path, path.read_text()[:-9])
    with pytest.raises(SppdetError, match=r"x\.json: is not JSON"):
        read_folder(tmp_path)
