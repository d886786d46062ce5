"""From margins to detections: hand-derived ones from hand-built maps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hand_made import WINDOWS, A, B, C, hand_made_detector, hand_made_map

from sppdet.config.settings import DetectionSettings
from sppdet.detection.detector import Detector
from sppdet.detection.linear_layers import BoxRegressors, LinearSVMs
from sppdet.ops import boxes as geometry
from sppdet.proposals.search import SelectiveSearch
from sppdet.utils.errors import SppdetError


@pytest.fixture
def conv_map() -> np.ndarray:
    return hand_made_map()


@pytest.fixture
def by_hand(tiny_features) -> Detector:
    return hand_made_detector(tiny_features)


def test_detections_by_hand(by_hand, conv_map):
    # red: A 3 - 1, B 2.5 - 1, C and D -1. B overlaps A by 32 / (64 + 64 - 32) = 1/3 and goes. blue: C alone, 2 - 1.
    found = by_hand.detect([conv_map], WINDOWS, (64, 64))
    assert found.boxes.tolist() == [A, C]
    assert found.labels.tolist() == [0, 1] and found.scores.tolist() == [2, 1]
    assert found.classes == ("red", "blue")


def test_the_mirror_image_has_half_the_say(by_hand, conv_map):
    mirrored = np.ascontiguousarray(conv_map[:, ::-1])
    by_itself = by_hand.detect([conv_map], WINDOWS, (64, 64))
    same = by_hand.detect([conv_map], WINDOWS, (64, 64), [mirrored])
    assert same.boxes.tolist() == by_itself.boxes.tolist() and same.scores.tolist() == by_itself.scores.tolist()
    # Window A, x from 8 to 16 of 64, lies from 48 to 56 in the mirror image: cell 13 in place of 2.
    assert mirrored[2, 13, 0] == 3
    mirrored[2, 13, 0] = 2.8
    found = by_hand.detect([conv_map], WINDOWS, (64, 64), [mirrored])
    assert found.boxes.tolist() == [A, C] and found.scores.tolist() == pytest.approx([(2 + 1.8) / 2, 1])


def test_an_image_and_its_mirror_image_are_found_alike_by_a_detector_that_looks_at_both(by_hand):
    rng = np.random.default_rng(0)
    maps, mirrored = (rng.random((16, 16, 2), np.float32) for _ in range(2))
    weight = rng.normal(size=(2, 4, 2)).astype(np.float32) / 10
    model = replace(by_hand, regressors=BoxRegressors(weight, np.zeros((2, 4), np.float32)))
    found = model.detect([maps], WINDOWS, (64, 64), [mirrored])
    there = model.detect([mirrored], geometry.mirror(WINDOWS, 64), (64, 64), [maps])
    assert len(found) and found.scores.tolist() == there.scores.tolist()
    np.testing.assert_allclose(geometry.mirror(there.boxes, 64), found.boxes, atol=1e-4)


@pytest.mark.parametrize(("blue", "expected"), [(2.5, [2, 1]), (4, [2, 1 - 0.5 * 1.5]), (9, [2])])
def test_windows_lose_margin_where_the_image_says_no(by_hand, conv_map, blue, expected):
    # The image's highest values are 3 and 2: yes to red, 3 - 1; to blue 2.5 - `blue`, and half of it counts.
    image = LinearSVMs(np.eye(2, dtype=np.float32), np.array([-1, 0.5 - blue], np.float32))
    model = replace(by_hand, context=image, detection=replace(by_hand.detection, context=0.5))
    found = model.detect([conv_map], WINDOWS, (64, 64))
    assert found.scores.tolist() == expected
    without = replace(model, detection=by_hand.detection).detect([conv_map], WINDOWS, (64, 64))
    assert without.scores.tolist() == [2, 1]


def test_both_views_of_an_image_are_asked(by_hand, conv_map):
    image = LinearSVMs(np.eye(2, dtype=np.float32), np.array([-1, -3], np.float32))
    model = replace(by_hand, context=image, detection=replace(by_hand.detection, context=0.5))
    mirrored = np.ascontiguousarray(conv_map[:, ::-1])
    mirrored[0, 0, 1] = 4  # outside of the windows: 4 - 3 in one view, 2 - 3 in the other
    found = model.detect([conv_map], WINDOWS, (64, 64), [mirrored])
    assert found.scores.tolist() == [2, 1 - 0.5 * 1 / 2]


def test_context_that_was_not_learned_is_refused(by_hand):
    with pytest.raises(SppdetError, match=r"detection\.context: this model has no SVMs of whole images; train with"):
        replace(by_hand, detection=replace(by_hand.detection, context=0.5))


class FixedSearch(SelectiveSearch):
    def __call__(self, image: np.ndarray) -> np.ndarray:
        return WINDOWS


@pytest.mark.parametrize("engine", ["opencv", "native"])
@pytest.mark.parametrize("threads", [1, 3])
def test_predict_searches_beside_the_network_where_the_search_has_one_thread(by_hand, conv_map, threads, engine):
    seen = []

    def network(image: np.ndarray, factor: float) -> np.ndarray:
        seen.append(torch.get_num_threads())
        return conv_map

    model = replace(by_hand, backbone=network, search=FixedSearch(engine=engine))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        found = model.predict(np.zeros((64, 64, 3), np.uint8))
        assert found.boxes.tolist() == [A, C]
        concat_pooled = engine == "opencv" and threads > 1
        assert seen == [threads - concat_pooled] and torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_thresholds(by_hand, conv_map):
    def detect(**changes):
        changed = replace(by_hand, detection=replace(by_hand.detection, **changes))
        found = changed.detect([conv_map], WINDOWS, (64, 64))
        return list(zip(found.boxes.tolist(), found.labels.tolist()))

    assert detect(nms=0.34) == [(A, 0), (B, 0), (C, 1)]  # an overlap of a third is not above it
    assert detect(nms=0.34, max_per_class=1) == [(A, 0), (C, 1)]
    assert detect(min_margin=1.0) == [(A, 0)]  # C's 1 is not above 1
    assert len(detect(min_margin=-1.5)) == 3 + 3  # everything that overlaps nothing better, of both classes
    assert detect(min_margin=5.0) == []


def test_windows_that_share_cells_are_all_detected(by_hand, conv_map):
    # A and a window of the same cells a pixel narrower: both survive if suppression is off.
    changed = replace(by_hand, detection=DetectionSettings(nms=1.0, min_margin=1.5))
    found = changed.detect([conv_map], np.array([A, [8, 8, 15, 16]], np.float32), (64, 64))
    assert sorted(found.boxes.tolist()) == [[8, 8, 15, 16], A] and found.scores.tolist() == [2, 2]


def test_box_regression_by_hand(by_hand, conv_map):
    # red: half a width to the right and twice as wide: A, 8 wide on (12, 12), becomes 16 wide on (16, 12).
    # blue: 2.25 heights down: C on (44, 44) moves to (44, 62), and 66 is cut to the image's 64.
    bias = np.array([[0.5, 0, np.log(2), 0], [0, 2.25, 0, 0]], np.float32)
    detector = replace(by_hand, regressors=BoxRegressors(np.zeros((2, 4, 2), np.float32), bias))
    plain, moved = detector.detect_both([conv_map], WINDOWS, (64, 64))
    assert plain.boxes.tolist() == [A, C]
    np.testing.assert_allclose(moved.boxes, [[8, 8, 24, 16], [40, 58, 48, 64]], atol=1e-4)
    assert moved.scores.tolist() == plain.scores.tolist() == [2, 1]
    assert moved.labels.tolist() == [0, 1]


def test_each_class_has_its_own_regressor_of_the_pooled_vector(by_hand, conv_map):
    # dx = 0.1 x the vector's own channel: A's is 3, C's is 2, of 8 pixels each.
    weight = np.zeros((2, 4, 2), np.float32)
    weight[0, 0, 0] = weight[1, 0, 1] = 0.1
    detector = replace(by_hand, regressors=BoxRegressors(weight, np.zeros((2, 4), np.float32)))
    moved = detector.detect([conv_map], WINDOWS, (64, 64))
    np.testing.assert_allclose(moved.boxes[:, 0], [8 + 2.4, 40 + 1.6], atol=1e-4)


def test_boxes_that_regression_moves_together_are_suppressed(by_hand, conv_map):
    weight = np.zeros((2, 4, 2), np.float32)
    bias = np.zeros((2, 4), np.float32)
    bias[0, 2] = np.log(3)  # red boxes become three times as wide: A 0..24, B 4..28, an overlap of 20 / 28
    detector = replace(
        by_hand, regressors=BoxRegressors(weight, bias), detection=DetectionSettings(nms=0.5, min_margin=-0.5)
    )
    plain, moved = detector.detect_both([conv_map], WINDOWS, (64, 64))
    assert plain.boxes.tolist() == [A, B, C]
    np.testing.assert_allclose(moved.boxes, [[0, 8, 24, 16], C], atol=1e-4)


def test_boxes_around_a_survivor_vote(by_hand, conv_map):
    # Nothing is moved; A scores 2 and B 1.5, they overlap by a third: B goes, and its vote counts exp(-1.5) of A's.
    regressors = BoxRegressors(np.zeros((2, 4, 2), np.float32), np.zeros((2, 4), np.float32))

    def boxes(overlap):
        detector = replace(by_hand, detection=DetectionSettings(nms=0.3, min_margin=-0.5, vote=overlap))
        alone = detector.detect([conv_map], WINDOWS, (64, 64))
        plain, moved = replace(detector, regressors=regressors).detect_both([conv_map], WINDOWS, (64, 64))
        for found in (alone, plain, moved):
            assert found.boxes.tolist() == alone.boxes.tolist()
            assert found.scores.tolist() == [2, 1] and found.labels.tolist() == [0, 1]
        return alone.boxes

    share = np.exp(-1.5) / (1 + np.exp(-1.5))
    np.testing.assert_allclose(boxes(0.33), [[8 + 4 * share, 8, 16 + 4 * share, 16], C], atol=1e-4)
    assert boxes(0.34).tolist() == [A, C]


@pytest.mark.parametrize("regression", [False, True])
def test_no_proposals(by_hand, conv_map, regression):
    if regression:
        by_hand.regressors = BoxRegressors(np.zeros((2, 4, 2), np.float32), np.zeros((2, 4), np.float32))
    for found in by_hand.detect_both([conv_map], np.zeros((0, 4), np.float32), (64, 64)):
        assert found.boxes.shape == (0, 4) and len(found) == 0 and found.to_list() == []
