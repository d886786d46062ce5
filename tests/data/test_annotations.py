"""From annotated boxes to pixel edges: units, implausible numbers, clipping, orientation and names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from labelled import kinds_of, objects_of, voc_xml, write, write_image
from PIL import ExifTags, Image

from sppdet.data.annotations import Annotation, Object, decide_fractions, locate
from sppdet.data.image_facts import ImageFacts
from sppdet.data.labelled_folder import read_folder
from sppdet.data.problems import Problem


def located(*corners: tuple, unit: str = "edges", size=(40, 30), orientation: int = 1, said=None):
    """Return the located boxes of cats, and the problems as ``(kind, fatal)``."""
    objects = [Object("cat", numbers) for numbers in corners]
    problems: list[Problem] = []
    annotation = Annotation(Path("a.xml"), Path("a.jpg"), objects, unit, said)
    item = locate(annotation, Path("a.jpg"), ImageFacts(size, orientation), problems)
    return (None if item is None else item.boxes.tolist()), [(p.kind, p.fatal) for p in problems], problems


def test_units():
    assert located((11, 6, 20, 15), unit="voc")[:2] == ([[10, 5, 20, 15]], [])
    assert located((10.5, 5, 20, 15))[:2] == ([[10.5, 5, 20, 15]], [])
    assert located((0.25, 0.1, 0.5, 0.5), unit="fractions")[:2] == ([[10, 3, 20, 15]], [])


@pytest.mark.parametrize("unit", ["voc", "edges"])
def test_fractions_where_pixels_are_expected_are_multiplied_with_a_remark(unit):
    boxes, problems, (problem,) = located((0.15, 0.2, 0.87, 0.6), (0, 0.5, 1, 1), unit=unit)
    np.testing.assert_allclose(boxes, [[6, 6, 34.8, 18], [0, 15, 40, 30]], rtol=1e-6)
    assert problems == [("fractions", False)] and "corners from 0 to 1 are no pixels" in problem.message


def test_decimals_well_inside_the_image_are_not_outside():
    """In float32, 39.98 - 1 and 40 - 1 round otherwise than in float64."""
    rng = np.random.default_rng(0)
    low = np.round(rng.uniform(1, 300, (5000, 2)), 2)
    high = np.round(low + rng.uniform(2, 190, (5000, 2)), 2)
    for corners in np.concatenate([low, high], axis=1):
        assert located(tuple(corners), unit="voc", size=(500, 500))[1] == []


@pytest.mark.parametrize(
    ("corners", "kind", "text"),
    [
        ((-9.8e8, 6, 20, 15), "absurd", "object 1 (cat) has a coordinate of -9.8e+08, far beyond the image"),
        ((11, 6, 20, 1e9), "absurd", "a coordinate of 1e+09"),
        ((21, 6, 20, 15), "inverted", "is inverted (xmin=21, ymin=6, xmax=20, ymax=15); swap its corners"),
        ((11, float("nan"), 20, 15), "absurd", "has a corner that is no finite number (xmin=11, ymin=nan, xmax=20,"),
        ((11, 6, float("inf"), 15), "absurd", "has a corner that is no finite number"),
        ((41, 6, 60, 15), "outside", "cat (xmin=41, ymin=6, xmax=60, ymax=15) lies outside the image"),
    ],
)  # fmt: skip
def test_boxes_that_cannot_be_used(corners, kind, text):
    boxes, problems, (problem,) = located(corners, unit="voc")
    assert boxes is None and problems == [(kind, True)]
    assert problem.message.startswith("a.xml: ") and text in problem.message


def test_boxes_without_area_are_left_out_and_equal_ones_used_once():
    boxes, problems, _ = located((5, 5, 5, 9), (1, 2, 30, 20), (1, 2, 30, 20), (1, 2, 30, 20.5), (0, 0, 40, 30))
    assert boxes == [[1, 2, 30, 20], [1, 2, 30, 20.5], [0, 0, 40, 30]]
    assert problems == [("no area", False), ("twice", False), ("covers", False), ("nearly twice", False)]


@pytest.mark.parametrize(
    ("size", "orientation", "said", "kinds"),
    [
        ((40, 30), 1, (40, 30), []),
        ((40, 30), 1, (80, 60), ["size"]),
        ((40, 30), 6, (40, 30), []),  # annotated as displayed
        ((40, 30), 6, (30, 40), ["size"]),  # annotated on raw pixels
        ((40, 30), 6, None, ["turned"]),
        ((40, 30), 3, (40, 30), ["turned"]),  # 180 degrees: the size does not tell
        ((40, 30), 2, (40, 30), ["turned"]),  # mirrored
        ((30, 30), 8, (30, 30), ["turned"]),  # a square
    ],
)
def test_orientation_is_remarked_upon_wherever_the_size_does_not_settle_it(size, orientation, said, kinds):
    _, problems, _ = located((1, 2, 20, 15), size=size, orientation=orientation, said=said)
    assert problems == [(kind, False) for kind in kinds]


@pytest.mark.parametrize("orientation", [2, 3, 6])
def test_orientation_is_read_from_the_file(tmp_path, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    write_image(tmp_path / "a.jpg", size=(30, 30), exif=exif)
    write(tmp_path / "a.xml", voc_xml(("cat", 11, 6, 20, 15), size=(30, 30)))
    folder = read_folder(tmp_path)
    assert kinds_of(folder) == ["turned"]
    assert f"a.xml: its image has EXIF orientation {orientation}; check" in folder.problems[0].message


def test_names_that_differ_by_unseen_characters_are_one_class_and_others_are_reported(tmp_path):
    names = [
        "caf\u00e9",
        "cafe\u0301",
        "\ufeffcaf\u00e9",
        "caf\u00e9\u200b ",
        "Caf\u00e9",
        "traffic light",
        "traffic_light",
    ]
    for seed, name in enumerate(names):
        write_image(tmp_path / f"{seed}.jpg", seed=seed)
        write(tmp_path / f"{seed}.xml", voc_xml((name, 11, 6, 20, 15), filename=f"{seed}.jpg"))
    folder = read_folder(tmp_path)
    assert folder.objects() == {"caf\u00e9": 4, "Caf\u00e9": 1, "traffic light": 1, "traffic_light": 1}
    assert kinds_of(folder) == ["similar classes"] * 2 + ["unseen characters"] * 3
    messages = " ".join(problem.message for problem in folder.problems)
    assert "classes 'Caf\u00e9' and 'caf\u00e9' differ by case or spaces alone" in messages
    assert objects_of(folder)["1"] == [("caf\u00e9", 10, 5, 20, 15)]


def test_corners_of_one_file_are_fractions_together_or_not_at_all():
    def decided(*boxes: tuple) -> list[Annotation]:
        images = [Annotation(Path("x.csv"), None, [Object("cat", box)]) for box in boxes]
        decide_fractions(images)
        return images

    assert [image.fractions for image in decided((0.2, 0.3, 0.5, 0.9), (1, 2, 30, 20))] == [False, False]
    fractions = decided((0.2, 0.1, 0.5, 1.004), (0, 0, 1, 1))
    assert [image.fractions for image in fractions] == [True, True]
    problems: list[Problem] = []
    item = locate(fractions[1], Path("a.jpg"), ImageFacts((40, 30)), problems)
    assert item.boxes.tolist() == [[0, 0, 40, 30]] and problems[0].kind == "fractions"
