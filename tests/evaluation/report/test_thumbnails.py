"""Thumbnails: what they show, how large they may become, and images that cannot be read."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from evaluation_data import dataset_of, image_of
from PIL import Image

from sppdet.evaluation.report import thumbnails
from sppdet.evaluation.report.examples import Example, Marked
from sppdet.evaluation.report.thumbnails import make_thumbnails

BOX = np.array([300, 200, 400, 260], np.float32)


@pytest.fixture
def dataset(tmp_path):
    """A grey image with a red box, and one whose file is broken; both are 640 x 480."""
    pixels = np.full((480, 640, 3), 128, np.uint8)
    pixels[200:260, 300:400] = (255, 0, 0)
    Image.fromarray(pixels).save(tmp_path / "red.png")
    (tmp_path / "broken.jpg").write_bytes(b"not an image")
    return dataset_of(*(image_of(name, path=str(tmp_path / name)) for name in ("red.png", "broken.jpg")))


def example(image: int, box=BOX, others=()) -> Example:
    return Example(image, Marked(np.asarray(box, np.float32), True, "cat 1.00"), "why", list(others))


def pixels_of(uri: str) -> np.ndarray:
    kind, content = uri.split(",")
    assert kind == "data:image/jpeg;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))), int)


def test_the_box_lies_where_it_is_in_the_image(dataset):
    outside = Marked(np.array([0, 0, 5, 5], np.float32), False, "dog")
    (thumbnail,) = make_thumbnails(dataset, [example(0, others=[outside])], 1)
    (x, y, width, height, marked) = thumbnail.boxes[-1]
    assert len(thumbnail.boxes) == 1 and marked.text == "cat 1.00" and (width, height) == (100, 60)
    assert thumbnail.size == (190, 144) and thumbnail.name == "red.png"
    image = pixels_of(thumbnail.uri)
    factor = image.shape[1] / thumbnail.size[0]
    red = (image[..., 0] > 200) & (image[..., 1] < 60)
    rows, columns = np.flatnonzero(red.any(axis=1)), np.flatnonzero(red.any(axis=0))
    expected = np.array([x, y, x + width, y + height]) * factor
    np.testing.assert_allclose([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], expected, atol=3)


@pytest.mark.parametrize("box", [(0, 0, 640, 480), (630, 470, 640, 480), (0, 0, 3, 480), (0, 200, 640, 203)])
def test_the_surroundings_stay_inside_the_image(dataset, box):
    (thumbnail,) = make_thumbnails(dataset, [example(0, box)], 1)
    x, y, width, height, _ = thumbnail.boxes[-1]
    assert (width, height) == (box[2] - box[0], box[3] - box[1])
    assert x >= 0 and y >= 0 and x + width <= thumbnail.size[0] <= 640 and y + height <= thumbnail.size[1] <= 480


def test_an_image_that_cannot_be_read_costs_its_thumbnail_alone(dataset):
    broken, red = make_thumbnails(dataset, [example(1), example(0)], 1)
    assert broken.uri == "" and "broken.jpg" in broken.problem and red.uri and not red.problem


def test_the_size_of_one_and_of_all_is_bounded(dataset, tmp_path, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 255, (480, 640, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "red.png")
    (thumbnail,) = make_thumbnails(dataset, [example(0, (0, 0, 640, 480))], 1)
    size = len(base64.b64decode(thumbnail.uri.split(",")[1]))
    assert size < 30_000
    monkeypatch.setattr(thumbnails, "_TOTAL", 2.5 * size)
    problems = [entry.problem for entry in make_thumbnails(dataset, [example(0, (0, 0, 640, 480))] * 4, 1)]
    assert problems == ["", "", *["left out: the report would become too large"] * 2]
