"""Ensembles: means of margins and box regressions, derived by hand."""

from __future__ import annotations

import dataclasses
from dataclasses import replace

import numpy as np
import pytest
from detectors import WINDOWS, A, C, FixedSearch, hand_made_map

from sppdet.detection.detections import Detections
from sppdet.detection.detector import Detector
from sppdet.detection.ensemble import Ensemble
from sppdet.detection.linear_layers import BoxRegressors, LinearSVMs
from sppdet.utils.errors import SppdetError

SIZE = (64, 64)


def shifting(detector: Detector, across: float) -> Detector:
    """A detector that moves every box to the right, by ``across`` times its width."""
    bias = np.zeros((2, 4), np.float32)
    bias[:, 0] = across
    return replace(detector, regressors=BoxRegressors(np.zeros((2, 4, 2), np.float32), bias))


def detect(
    first: Detector, second: Detector, weights: tuple[float, float], maps: list, mirrored: list | None = None
) -> Detections:
    return Ensemble((first, second), weights, first.detection).detect(maps, WINDOWS, SIZE, mirrored)


def test_margins_and_box_regressions_are_weighted_means(by_hand):
    # Red's window A scores 3 - 1 in one map and 6 - 1 in the other, blue's C 2 - 1 and 4 - 1.
    maps = [[hand_made_map()], [2 * hand_made_map()]]
    detections = detect(shifting(by_hand, 0.25), shifting(by_hand, 1.25), (0.75, 0.25), maps)
    assert detections.scores.tolist() == [0.75 * 2 + 0.25 * 5, 0.75 * 1 + 0.25 * 3]
    # 0.75 of a quarter and 0.25 of 1.25 are half of the width of 8.
    np.testing.assert_allclose(detections.xyxy, np.array([A, C]) + np.array([4, 0, 4, 0]), atol=1e-5)


def test_only_detectors_with_box_regression_move_boxes(by_hand):
    maps = [[hand_made_map()], [hand_made_map()]]
    detections = detect(by_hand, shifting(by_hand, 1), (0.75, 0.25), maps)
    np.testing.assert_allclose(detections.xyxy, np.array([A, C]) + np.array([8, 0, 8, 0]), atol=1e-5)
    assert detect(by_hand, by_hand, (0.5, 0.5), maps).xyxy.tolist() == [A, C]


def test_an_image_and_its_mirror_image_share_the_weight_of_a_detector(by_hand):
    upright, mirrored = hand_made_map(), np.ascontiguousarray(hand_made_map()[:, ::-1])
    mirrored[2, 13, 0] = 2.8  # instead of 3: A's margin is 1.8 there
    maps, mirrored_maps = [[upright], [2 * upright]], [[mirrored], [2 * upright[:, ::-1]]]
    detections = detect(by_hand, by_hand, (0.25, 0.75), maps, mirrored_maps)
    assert detections.scores[0] == pytest.approx(0.25 * (2 + 1.8) / 2 + 0.75 * 5)


def test_whole_images_count_for_detectors_that_have_svms_of_them(by_hand):
    no = LinearSVMs(np.zeros((2, 2), np.float32), np.array([-2, -2], np.float32))
    settings, maps = replace(by_hand.detection, context=0.5), [[hand_made_map()], [hand_made_map()]]
    model = Ensemble((replace(by_hand, image_svms=no), by_hand), (0.25, 0.75), settings)
    assert model.detect(maps, WINDOWS, SIZE).scores.tolist() == [2 - 0.25 * 0.5 * 2, 1 - 0.25 * 0.5 * 2]


def test_context_is_refused_where_no_detector_has_svms_of_whole_images(by_hand):
    model = Ensemble((by_hand, by_hand), (0.5, 0.5), by_hand.detection)
    with pytest.raises(SppdetError, match=r"detection\.context: none of these models"):
        model.with_detection(context=0.5)


def test_moved_boxes_are_scored_again_by_every_detector(by_hand):
    # Red's A moves by half of its width onto B: 3 - 1, then 2.5 - 1 in one map, 6 - 1, then 5 - 1 in the other.
    model = Ensemble((shifting(by_hand, 0.5),) * 2, (0.75, 0.25), replace(by_hand.detection, vote=0.9, rescore=0.5))
    scores = model.detect([[hand_made_map()], [2 * hand_made_map()]], WINDOWS, SIZE).scores
    assert scores[0] == pytest.approx(0.75 * (2 + 1.5) / 2 + 0.25 * (5 + 4) / 2)
    # Detectors without box regression score the boxes that others have moved.
    model = replace(model, detectors=(shifting(by_hand, 0.5), by_hand))
    again = model.detect([[hand_made_map()], [2 * hand_made_map()]], WINDOWS, SIZE).scores
    assert again.tolist() == scores.tolist()


def test_settings_of_the_ensemble_hold_for_its_detectors(by_hand):
    model = Ensemble((by_hand, by_hand), (0.5, 0.5), by_hand.detection)
    changed = model.with_detection(nms=0.34, vote=0.6)
    assert [part.detection for part in changed.parts] == [replace(by_hand.detection, nms=0.34, vote=0.6)] * 2
    maps = [[hand_made_map()]] * 2
    assert len(changed.detect(maps, WINDOWS, SIZE)) == 3 and len(model.detect(maps, WINDOWS, SIZE)) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        model.detection = changed.detection


def test_images_are_read_by_every_network(by_hand):
    first = replace(by_hand, backbone=lambda image, factor: hand_made_map(), search=FixedSearch())
    second = replace(by_hand, backbone=lambda image, factor: 3 * hand_made_map())
    model = Ensemble((first, second), (0.5, 0.5), by_hand.detection)
    assert model.predict(np.zeros((64, 64, 3), np.uint8)).scores.tolist() == [(2 + 8) / 2, (1 + 5) / 2]


def test_no_proposals(by_hand):
    model = Ensemble((shifting(by_hand, 1), by_hand), (0.5, 0.5), by_hand.detection)
    for detections in model.detect_both([[hand_made_map()]] * 2, np.zeros((0, 4), np.float32), SIZE):
        assert detections.to_list() == []


def test_the_text_form_names_what_matters(by_hand):
    assert repr(Ensemble((by_hand, by_hand), (0.75, 0.25), by_hand.detection)).splitlines() == [
        "Ensemble of 2 detectors (weights 0.75, 0.25) of 2 classes: red, blue",
        "  small (float32), pool5, max pooling 1, scales 64, fast selective search; "
        "small (float32), pool5, max pooling 1, scales 64, fast selective search",
        "  SVMs, no box regression, nms=0.3, min_margin=-0.5",
    ]
