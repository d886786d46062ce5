"""LabelMe's JSON."""

from __future__ import annotations

import pytest
from labelled import kinds_of, objects_of, write, write_image

from sppdet.data.labelled_folder import read_folder
from sppdet.utils.errors import SppdetError


def labelme(*shapes: tuple, image: str = "a.jpg") -> dict:
    """Return a file; a shape is ``(label, kind, points)``."""
    entries = [{"label": label, "shape_type": kind, "points": points, "flags": {}} for label, kind, points in shapes]
    sides = {"imageHeight": 30, "imageWidth": 40}
    return {"version": "5.2.1", "flags": {}, "shapes": entries, "imagePath": image, "imageData": "AAAA"} | sides


def test_corners_in_any_order_polygons_and_circles(tmp_path):
    write_image(tmp_path / "a.jpg")
    shapes = [
        ("cat", "rectangle", [[20.5, 15], [10, 5]]),
        ("dog", "polygon", [[1, 2], [9.5, 3], [4, 8]]),
        ("cat", "circle", [[20, 15], [23, 19]]),
        ("cat", "line", [[1, 1], [2, 2]]),
    ]
    write(tmp_path / "a.json", labelme(*shapes, image="..\\images\\a.jpg"))
    folder = read_folder(tmp_path)
    assert folder.format == "labelme" and kinds_of(folder) == ["object left out"]
    assert objects_of(folder) == {"a": [("cat", 10, 5, 20.5, 15), ("dog", 1, 2, 9.5, 8), ("cat", 15, 10, 25, 20)]}


def test_a_file_of_another_form_is_named(tmp_path):
    write_image(tmp_path / "a.jpg")
    write(tmp_path / "a.json", labelme() | {"shapes": [{"label": "cat"}]})
    with pytest.raises(SppdetError, match=r"a\.json: is not as LabelMe's JSON should be \('points' is missing\)"):
        read_folder(tmp_path)


def test_a_file_that_is_not_json_is_an_error(tmp_path):
    for seed, name in enumerate("ab"):
        write_image(tmp_path / f"{name}.jpg", seed=seed)
        write(tmp_path / f"{name}.json", labelme(("cat", "rectangle", [[20.5, 15], [10, 5]]), image=f"{name}.jpg"))
    for name in "ba":  # beside one that is, then alone
        write(tmp_path / f"{name}.json", (tmp_path / f"{name}.json").read_text()[:150])
        with pytest.raises(SppdetError, match=rf"{name}\.json: is not JSON"):
            read_folder(tmp_path)
