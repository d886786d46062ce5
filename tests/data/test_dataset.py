"""Samples and data sets: what they show, how they are indexed, and mirror images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sppdet.data.dataset import Dataset, Sample


def sample_with(objects: int, path: Path = Path("a.png"), width: int = 30, height: int = 20) -> Sample:
    """Return a sample whose i-th object is i + 1 pixels wide, at the left edge."""
    boxes = np.array([[0, 5, i + 1, 10] for i in range(objects)], np.float32).reshape(-1, 4)
    return Sample(path.stem, path, width, height, boxes, np.zeros(objects, np.int64), np.zeros(objects, bool))


@pytest.fixture
def data() -> Dataset:
    """Images a, b, c and d with 0, 1, 2 and 3 objects."""
    return Dataset(("cat", "dog"), tuple(sample_with(i, Path(f"{name}.png")) for i, name in enumerate("abcd")))


def test_a_sample_shows_its_name_size_and_number_of_objects():
    assert repr(sample_with(1)) == "Sample('a', 30 x 20 pixels, 1 object)"
    assert repr(sample_with(2).mirror()) == "Sample('a', 30 x 20 pixels, 2 objects, mirrored)"


def test_a_data_set_shows_its_numbers_of_images_classes_and_objects(data):
    assert repr(data) == "Dataset(4 images, 2 classes, 6 objects)"
    assert repr(Dataset(("cat",), data.samples[1:2])) == "Dataset(1 image, 1 class, 1 object)"
    assert repr(Dataset((), ())) == "Dataset(0 images, 0 classes, 0 objects)"


def test_a_data_set_is_a_sequence_of_its_samples(data):
    assert len(data) == 4
    assert [sample.id for sample in data] == ["a", "b", "c", "d"]
    assert data[0] is data.samples[0] and data[-1] is data.samples[3] and data[np.int64(2)] is data.samples[2]
    with pytest.raises(IndexError):
        data[4]


@pytest.mark.parametrize(
    ("part", "ids"), [(slice(2), "ab"), (slice(1, 3), "bc"), (slice(None, None, -1), "dcba"), (slice(9, None), "")]
)
def test_a_slice_is_a_data_set_with_the_same_classes(data, part, ids):
    assert isinstance(data[part], Dataset)
    assert data[part].classes == ("cat", "dog")
    assert "".join(sample.id for sample in data[part]) == ids


def test_a_mirror_image_is_flipped_together_with_its_boxes(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    sample = sample_with(2, tmp_path / "a.png")
    mirrored = sample.mirror()
    np.testing.assert_array_equal(sample.read(), pixels)
    np.testing.assert_array_equal(mirrored.read(), pixels[:, ::-1])
    assert mirrored.read().flags.c_contiguous
    assert mirrored.boxes.tolist() == [[29, 5, 30, 10], [28, 5, 30, 10]]
    assert (mirrored.id, mirrored.labels.tolist()) == ("a", [0, 0])


def test_a_mirror_image_of_a_mirror_image_is_the_image():
    sample = sample_with(2)
    twice = sample.mirror().mirror()
    assert not twice.mirrored
    np.testing.assert_array_equal(twice.boxes, sample.boxes)
