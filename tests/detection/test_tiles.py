"""Which detections count where tiles meet, and how images are cut."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from detectors import random_detector

from sppdet.data.large_images import PixelsInMemory
from sppdet.data.tiles import Tiles
from sppdet.detection.detections import Detections
from sppdet.detection.detector import Detector
from sppdet.detection.saved_ensemble import load
from sppdet.detection.tiles import TilePlan, TrainedOn, detect_in_tiles, merge_tiles, plan_tiles
from sppdet.utils.errors import SppdetError

TILES = Tiles(100, 40)


def blobs(image: np.ndarray) -> Detections:
    """Detect bright rectangles, or what a tile shows of them; the score is the share of bright pixels of 1000."""
    import cv2

    _, _, stats, _ = cv2.connectedComponentsWithStats((image[..., 0] > 100).astype(np.uint8))
    x, y, width, height, area = stats[1:].T
    boxes = np.stack([x, y, x + width, y + height], axis=1)
    return Detections(boxes, np.zeros(len(boxes), np.int64), area / 1000, ("blob",))


def picture(*boxes, width=400, height=300) -> np.ndarray:
    image = np.zeros((height, width, 3), np.uint8)
    for x1, y1, x2, y2 in boxes:
        image[y1:y2, x1:x2] = 255
    return image


def found(image: np.ndarray, whole: bool = False) -> list[list[float]]:
    plan = TilePlan(TILES, whole)
    return sorted(detect_in_tiles(blobs, PixelsInMemory(image), plan, 0.3).xyxy.tolist())


@pytest.mark.parametrize("seed", range(5))
def test_objects_across_seams_are_found_once_and_whole(seed):
    """As in the whole image, wherever they lie: no object is larger than 7/8 of the overlap, 35 pixels."""
    rng, boxes = np.random.default_rng(seed), []
    for row in range(6):
        for column in range(8):
            w, h = rng.integers(5, 36, 2)
            x, y = 50 * column + rng.integers(0, 50 - w), 50 * row + rng.integers(0, 50 - h)
            boxes.append([x, y, x + w, y + h])
    image = picture(*boxes)
    assert found(image) == sorted(blobs(image).xyxy.tolist())


def test_a_tile_alone_would_leave_fragments():
    """The object crosses the right border of the first tile, which lies at 100."""
    image = picture([80, 50, 110, 80])
    assert blobs(image[:100, :100]).xyxy.tolist() == [[80, 50, 100, 80]]
    assert found(image) == [[80, 50, 110, 80]]


def test_objects_larger_than_the_overlap_are_found_in_the_whole_image():
    image = picture([30, 100, 250, 180], [300, 20, 320, 40])
    assert len(found(image)) > 2  # fragments, of which no tile shows more
    assert found(image, whole=True) == [[30, 100, 250, 180], [300, 20, 320, 40]]


def test_fragments_give_way_to_a_whole_object_of_lower_score():
    """And not the other way round; the whole image counts for large objects alone."""
    boxes = TILES.boxes(160, 80)
    none, one = Detections(np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0), ("x", "y")), np.zeros(1, np.int64)
    left = Detections([[50, 10, 100, 60]], one, [0.9], ("x", "y"))
    whole = Detections([[48, 10, 150, 60], [5, 5, 20, 20]], [0, 0], [0.1, 2], ("x", "y"))
    merged = merge_tiles([left, none], boxes, TILES, (160, 80), 0.3, whole)
    assert merged.xyxy.tolist() == [[48, 10, 150, 60]]
    other_class = replace(whole, labels=[1, 1])
    assert len(merge_tiles([left, none], boxes, TILES, (160, 80), 0.3, other_class)) == 2


def test_an_object_that_two_tiles_find_keeps_the_better_box():
    boxes = TILES.boxes(160, 80)  # from 0 and from 60
    label, names = np.zeros(1, np.int64), ("x",)
    left, right = (
        Detections([box], label, [score], names, [probability])
        for box, score, probability in (([70, 10, 90, 30], 0.5, 0.6), ([11, 10, 30, 30], 0.7, 0.8))
    )
    merged = merge_tiles([left, right], boxes, TILES, (160, 80), 0.3)
    assert merged.xyxy.tolist() == [[71, 10, 90, 30]] and merged.probabilities.tolist() == [np.float32(0.8)]


def test_many_tiles_give_what_few_give(monkeypatch):
    image = picture(*([40 * i, 25 * i, 40 * i + 20, 25 * i + 30] for i in range(9)))
    assert len(TILES.boxes(400, 300)) > 20
    in_threads = found(image)
    monkeypatch.setattr("sppdet.detection.tiles._FEW", 1000)
    assert found(image) == in_threads == sorted(blobs(image).xyxy.tolist())


# How images are cut

WHOLE_IMAGES = TrainedOn(image_side=500, object_side=120)
ON_TILES = TrainedOn(image_side=400, object_side=90, tiles=Tiles(400, 100))


@pytest.mark.parametrize(
    "trained_on, side, size, expected",
    [
        (WHOLE_IMAGES, "auto", (2000, 900), TilePlan(Tiles(500, 120), True)),
        (WHOLE_IMAGES, "auto", (750, 700), None),  # objects are hardly smaller than in training
        (WHOLE_IMAGES, 200, (750, 700), TilePlan(Tiles(200, 100), True)),
        (WHOLE_IMAGES, 0, (2000, 900), None),
        (WHOLE_IMAGES, 800, (750, 700), None),
        (ON_TILES, "auto", (500, 400), TilePlan(Tiles(400, 100), False)),
        (ON_TILES, 150, (500, 400), TilePlan(Tiles(150, 75), False)),
        (None, "auto", (2000, 900), TilePlan(Tiles(600, 200), True)),
        (None, 300, (2000, 900), TilePlan(Tiles(300, 100), True)),
    ],
)
def test_the_training_images_decide_how_images_are_cut(trained_on, side, size, expected):
    assert plan_tiles(trained_on, 600, size, side) == expected


@pytest.mark.parametrize("side", [63, -1, "many", 1.5])
def test_tiles_that_cannot_be_are_refused(side):
    with pytest.raises(SppdetError, match=r"^tiles: "):
        plan_tiles(None, 600, (2000, 900), side)


# Detectors


@pytest.fixture(scope="module")
def detector() -> Detector:
    return random_detector()


def test_a_model_remembers_how_it_was_trained(tmp_path, detector):
    detector.save(tmp_path)
    assert load(tmp_path).trained_on is None
    replace(detector, trained_on=ON_TILES).save(tmp_path)
    assert load(tmp_path).trained_on == ON_TILES
    replace(detector, trained_on=WHOLE_IMAGES).save(tmp_path)
    assert load(tmp_path).trained_on == WHOLE_IMAGES


def test_predict_cuts_images_where_it_is_asked_to_or_trained_so(detector):
    image = np.random.default_rng(0).integers(0, 256, (100, 220, 3), np.uint8)
    image[30:60, 60:100] = [250, 30, 30]
    whole, tiled = detector.predict(image), detector.predict(image, tiles=np.int64(100))
    plan = TilePlan(Tiles(100, 33), True)
    expected = detect_in_tiles(detector.predict, PixelsInMemory(image), plan, detector.detection.nms)
    np.testing.assert_array_equal(tiled.xyxy, expected.xyxy)
    assert len(tiled) and tiled.xyxy.tolist() != whole.xyxy.tolist()
    on_tiles = replace(detector, trained_on=TrainedOn(100, 40, Tiles(100, 40)))
    np.testing.assert_array_equal(on_tiles.predict(image).xyxy, on_tiles.predict(image, tiles="auto").xyxy)
    np.testing.assert_array_equal(on_tiles.predict(image, tiles=0).xyxy, whole.xyxy)
