"""Where tiles lie, and which objects they show."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sppdet.config.settings import DataSettings
from sppdet.data.dataset import EVERY_CLASS, Dataset, Sample
from sppdet.data.tiles import Tiles, in_whole_image, tile_dataset, tile_sample
from sppdet.utils.errors import SppdetError


def sample_of(boxes, width=170, height=80, path=Path("a.png")):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    return Sample("a", path, width, height, boxes, np.arange(len(boxes)), np.zeros(len(boxes), bool))


@pytest.mark.parametrize("length", [64, 100, 101, 180, 181, 1000, 1234])
def test_every_interval_no_longer_than_the_overlap_lies_in_a_tile(length):
    tiles = Tiles(100, 20)
    spans = [(start, min(start + 100, length)) for start in tiles.starts(length)]
    assert spans[0][0] == 0 and spans[-1][1] == length
    for first in range(length - 20 + 1):
        assert any(start <= first and first + 20 <= end for start, end in spans)


@pytest.mark.parametrize("side, overlap", [(63, 0), (100, 51), (100, -1)])
def test_tiles_that_cannot_be_are_refused(side, overlap):
    with pytest.raises(SppdetError, match=r"^tiles: .*give"):
        Tiles(side, overlap)


def test_the_settings_name_the_tiles():
    assert Tiles.of(DataSettings()) is None
    assert Tiles.of(DataSettings(tiles=200)) == Tiles(200, 50)
    assert Tiles.of(DataSettings(tiles=200, tile_overlap=80)) == Tiles(200, 80)


def test_objects_lie_in_the_tiles_that_show_them():
    """The tiles end at 100 and begin at 70; the third object shows 8 of 20 columns, the fourth 14."""
    sample = sample_of([[10, 10, 30, 30], [75, 10, 95, 30], [92, 40, 112, 60], [64, 40, 84, 60]])
    left, right = tile_sample(sample, Tiles(100, 20))
    assert (left.id, left.width, left.height, left.tile) == ("a@0,0", 100, 80, (0, 0, 100, 80))
    assert (right.id, right.width, right.tile) == ("a@70,0", 100, (70, 0, 170, 80))
    assert left.labels.tolist() == [0, 1, 3]
    assert left.ignored.tolist() == [[92, 40, 100, 60]] and left.ignored_labels.tolist() == [2]
    assert right.labels.tolist() == [1, 2, 3] and right.boxes.tolist()[0] == [5, 10, 25, 30]
    assert not len(right.ignored) and right.boxes[2].tolist() == [0, 40, 14, 60]  # 70% of it


def test_ignored_regions_lie_in_the_tiles_that_show_them():
    regions = np.array([[60, 0, 80, 20], [120, 0, 140, 20]], np.float32)
    sample = replace(sample_of([]), ignored=regions, ignored_labels=np.array([EVERY_CLASS, 1]))
    left, right = tile_sample(sample, Tiles(100, 20))
    assert left.ignored.tolist() == [[60, 0, 80, 20]] and left.ignored_labels.tolist() == [EVERY_CLASS]
    assert right.ignored.tolist() == [[0, 0, 10, 20], [50, 0, 70, 20]] and right.ignored_labels.tolist() == [-1, 1]


def test_a_box_of_a_tile_in_the_whole_image():
    sample = sample_of([])
    left, right = tile_sample(sample, Tiles(100, 20))
    assert in_whole_image(right, [0, 1, 2, 3]) == (sample.id, [70, 1, 72, 3])
    assert in_whole_image(left, [0, 1, 2, 3]) == in_whole_image(sample, [0, 1, 2, 3]) == (sample.id, [0, 1, 2, 3])


def test_a_tile_reads_its_part_of_the_image(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (80, 170, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    _, right = tile_sample(sample_of([], path=tmp_path / "a.png"), Tiles(100, 20))
    np.testing.assert_array_equal(right.read(), pixels[:, 70:])
    np.testing.assert_array_equal(right.mirror().read(), pixels[:, 70:][:, ::-1])


def test_images_no_larger_than_a_tile_stay():
    small, large = sample_of([], 100, 80), sample_of([], 240, 80)
    dataset = Dataset(("x",), (small, large))
    assert tile_dataset(dataset, None) is dataset
    pieces = tile_dataset(dataset, Tiles(100, 20))
    assert pieces[0] is small and [piece.tile[0] for piece in pieces[1:]] == [0, 70, 140]
