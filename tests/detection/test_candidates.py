"""From window scores to detections, derived by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from detectors import WINDOWS, A, B, C

from sppdet.detection.linear_layers import BoxRegressors

SIZE = (64, 64)
NO_REGRESSION = BoxRegressors(np.zeros((2, 4, 2), np.float32), np.zeros((2, 4), np.float32))


def test_thresholds(by_hand, conv_map):
    def detect(**changes):
        detections = by_hand.with_detection(**changes).detect([[conv_map]], WINDOWS, SIZE)
        return list(zip(detections.xyxy.tolist(), detections.labels.tolist()))

    assert detect(nms=0.34) == [(A, 0), (B, 0), (C, 1)]  # an overlap of a third is not above it
    assert detect(nms=0.34, max_per_class=1) == [(A, 0), (C, 1)]
    assert detect(min_margin=1.0) == [(A, 0)]  # C's 1 is not above 1
    assert len(detect(min_margin=-1.5)) == 3 + 3  # all windows that overlap nothing better, of both classes
    assert detect(min_margin=5.0) == []


def test_windows_that_share_cells_are_all_detected(by_hand, conv_map):
    # A and a window of the same cells a pixel narrower: both survive without suppression.
    changed = by_hand.with_detection(nms=1.0, min_margin=1.5)
    detections = changed.detect([[conv_map]], np.array([A, [8, 8, 15, 16]], np.float32), SIZE)
    assert sorted(detections.xyxy.tolist()) == [[8, 8, 15, 16], A] and detections.scores.tolist() == [2, 2]


def test_box_regression_by_hand(by_hand, conv_map):
    # red: half a width to the right and twice as wide: A, 8 wide on (12, 12), becomes 16 wide on (16, 12).
    # blue: 2.25 heights down: C on (44, 44) moves to (44, 62), and 66 is cut to the image's 64.
    bias = np.array([[0.5, 0, np.log(2), 0], [0, 2.25, 0, 0]], np.float32)
    detector = replace(by_hand, regressors=BoxRegressors(np.zeros((2, 4, 2), np.float32), bias))
    plain, moved = detector.detect_both([[conv_map]], WINDOWS, SIZE)
    assert plain.xyxy.tolist() == [A, C]
    np.testing.assert_allclose(moved.xyxy, [[8, 8, 24, 16], [40, 58, 48, 64]], atol=1e-4)
    assert moved.scores.tolist() == plain.scores.tolist() == [2, 1]
    assert moved.labels.tolist() == [0, 1]


def test_each_class_has_a_regressor_of_the_pooled_vector(by_hand, conv_map):
    # dx = 0.1 x the channel of the class: 3 in A and 2 in C. Both are 8 pixels wide.
    weight = np.zeros((2, 4, 2), np.float32)
    weight[0, 0, 0] = weight[1, 0, 1] = 0.1
    detector = replace(by_hand, regressors=BoxRegressors(weight, np.zeros((2, 4), np.float32)))
    moved = detector.detect([[conv_map]], WINDOWS, SIZE)
    np.testing.assert_allclose(moved.xyxy[:, 0], [8 + 2.4, 40 + 1.6], atol=1e-4)


def test_boxes_that_regression_moves_together_are_suppressed(by_hand, conv_map):
    bias = np.zeros((2, 4), np.float32)
    bias[0, 2] = np.log(3)  # red boxes become three times as wide: A 0..24, B 4..28, an overlap of 20 / 28
    detector = replace(by_hand, regressors=replace(NO_REGRESSION, bias=bias)).with_detection(nms=0.5)
    plain, moved = detector.detect_both([[conv_map]], WINDOWS, SIZE)
    assert plain.xyxy.tolist() == [A, B, C]
    np.testing.assert_allclose(moved.xyxy, [[0, 8, 24, 16], C], atol=1e-4)


def test_boxes_around_a_survivor_vote(by_hand, conv_map):
    # No box is moved. A scores 2 and B 1.5, they overlap by a third: B goes, and its vote counts exp(-1.5) of A's.

    def boxes(overlap):
        detector = by_hand.with_detection(vote=overlap)
        alone = detector.detect([[conv_map]], WINDOWS, SIZE)
        plain, moved = replace(detector, regressors=NO_REGRESSION).detect_both([[conv_map]], WINDOWS, SIZE)
        for detections in (alone, plain, moved):
            assert detections.xyxy.tolist() == alone.xyxy.tolist()
            assert detections.scores.tolist() == [2, 1] and detections.labels.tolist() == [0, 1]
        return alone.xyxy

    share = np.exp(-1.5) / (1 + np.exp(-1.5))
    np.testing.assert_allclose(boxes(0.33), [[8 + 4 * share, 8, 16 + 4 * share, 16], C], atol=1e-4)
    assert boxes(0.34).tolist() == [A, C]


def test_moved_boxes_are_scored_again_where_they_lie(by_hand, conv_map):
    # Red boxes move by half of their width of 8: A, of margin 2, onto B, of 1.5; B onto 16..24, where red has 0 - 1.
    bias = np.zeros((2, 4), np.float32)
    bias[0, 0] = 0.5
    detector = replace(by_hand, regressors=replace(NO_REGRESSION, bias=bias)).with_detection(nms=0.4, vote=0.9)
    beyond = [16, 8, 24, 16]

    def scored(rescore):
        plain, moved = detector.with_detection(rescore=rescore).detect_both([[conv_map]], WINDOWS, SIZE)
        assert plain.xyxy.tolist() == [A, B, C] and plain.scores.tolist() == [2, 1.5, 1]
        return list(zip(moved.xyxy.round(3).tolist(), moved.scores.tolist()))

    assert scored(0) == [(B, 2), (beyond, 1.5), (C, 1)]
    assert scored(0.5) == [(B, 1.75), (C, 1), (beyond, 0.25)]
    assert scored(1) == [(B, 1.5), (C, 1)]  # -1 is below the lowest margin, -0.5


def test_what_box_regression_moves_far_loses_of_its_margin(by_hand, conv_map):
    # As above: red boxes move by half of their width, so that they overlap themselves by a third.
    bias = np.zeros((2, 4), np.float32)
    bias[0, 0] = 0.5
    detector = replace(by_hand, regressors=replace(NO_REGRESSION, bias=bias)).with_detection(nms=0.4, vote=0.9)

    def scored(**changes):
        moved = detector.with_detection(**changes).detect([[conv_map]], WINDOWS, SIZE)
        return list(zip(moved.xyxy.round(3).tolist(), moved.scores.astype(float).round(6).tolist()))

    beyond = [16, 8, 24, 16]
    assert scored(move_penalty=0.75) == [(B, 1.5), (beyond, 1), (C, 1)]
    assert scored(move_penalty=0.75, rescore=0.5) == [(B, 1.25), (C, 1), (beyond, -0.25)]
    assert scored(move_penalty=2.4, rescore=0.5) == [(C, 1), (B, 0.15)]  # -1.35 is below the lowest margin, -0.5


@pytest.mark.parametrize("regression", [False, True])
def test_no_proposals(by_hand, conv_map, regression):
    settings = {"rescore": 0.5, "move_penalty": 1.0}
    model = replace(by_hand, regressors=NO_REGRESSION).with_detection(**settings) if regression else by_hand
    for detections in model.detect_both([[conv_map]], np.zeros((0, 4), np.float32), SIZE):
        assert detections.xyxy.shape == (0, 4) and len(detections) == 0 and detections.to_list() == []
