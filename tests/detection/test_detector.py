"""The detector: scores of windows, copies with other settings, and its text form."""

from __future__ import annotations

import dataclasses
from dataclasses import replace

import numpy as np
import pytest
import torch
from detectors import WINDOWS, A, hand_made_map, random_detector

from sppdet.detection.detector import Detector, class_list
from sppdet.detection.linear_layers import BoxRegressors, LinearSVMs
from sppdet.features.crop_features import CropFeatures
from sppdet.features.warp import Crop
from sppdet.utils.errors import SppdetError


def test_scores_by_hand(by_hand):
    # A, the last window, holds 3 in channel 0; its class moves boxes by 0.1 of the vector.
    weight = np.zeros((2, 4, 2), np.float32)
    weight[0, :, 0] = 0.1
    model = replace(by_hand, regressors=BoxRegressors(weight, np.full((2, 4), 0.25, np.float32)))
    scores = model.score([hand_made_map()], WINDOWS, (64, 64))
    assert scores.margins.tolist() == [[-1, -1], [2.5 - 1, -1], [-1, 2 - 1], [3 - 1, -1]]
    deltas = scores.deltas(np.array([3, 3, 0]), np.array([0, 1, 0]))
    np.testing.assert_allclose(deltas, [[0.3 + 0.25] * 4, [0.25] * 4, [0.25] * 4], rtol=1e-6)


def test_scores_in_the_mirror_image_are_in_the_frame_of_the_image(by_hand):
    # Right in the mirror image is left in the image; all other components stay.
    bias = np.tile(np.array([0.5, 0.25, 0.125, 1], np.float32), (2, 1))
    model = replace(by_hand, regressors=BoxRegressors(np.zeros((2, 4, 2), np.float32), bias))
    mirrored_map = np.ascontiguousarray(hand_made_map()[:, ::-1])
    scores = model.score([mirrored_map], WINDOWS, (64, 64), mirrored=True)
    np.testing.assert_array_equal(scores.margins, model.score([hand_made_map()], WINDOWS, (64, 64)).margins)
    assert scores.deltas(np.array([0]), np.array([1])).tolist() == [[-0.5, 0.25, 0.125, 1]]


def test_a_detector_without_box_regression_has_no_deltas(by_hand):
    assert by_hand.score([hand_made_map()], WINDOWS, (64, 64)).deltas is None
    assert not by_hand.regresses_all_windows


@pytest.mark.parametrize("layer", [None, "fc6", "pool5+fc7"])
def test_box_regressions_are_the_same_computed_for_all_windows_or_for_some(layer):
    detector, rng = random_detector(layer), np.random.default_rng(1)
    voting = detector.with_detection(vote=0.4)
    assert [detector.regresses_all_windows, voting.regresses_all_windows] == {
        None: [False, True],
        "fc6": [False, False],
        "pool5+fc7": [True, True],
    }[layer]
    maps, boxes = random_maps(detector, rng), random_boxes(rng)
    rows, labels = np.array([7, 3, 3]), np.array([2, 0, 1])
    vectors = detector.features if detector.regressors.of_head else detector.features.pooled
    weight, bias = detector.regressors.weight[labels], detector.regressors.bias[labels]
    expected = np.einsum("nid,nd->ni", weight, vectors.of_boxes(maps, boxes[rows], (120, 120))) + bias
    for model in (detector, voting):
        deltas = model.score(maps, boxes, (120, 120)).deltas(rows, labels)
        np.testing.assert_allclose(deltas, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("layer", [None, "pool5+fc7"])
def test_bfloat16_rounds_box_regressions_but_not_scores(layer):
    exact, rng = random_detector(layer).with_detection(vote=0.4), np.random.default_rng(1)
    coarse = replace(exact, features=replace(exact.features, half=True))
    maps = [torch.from_numpy(m).bfloat16().float().numpy() for m in random_maps(exact, rng)]
    boxes = random_boxes(rng)
    scores = [detector.score(maps, boxes, (120, 120)) for detector in (exact, coarse)]
    np.testing.assert_allclose(scores[0].margins, scores[1].margins, atol=2**-14 * np.abs(scores[0].margins).max())
    rows, labels = np.arange(50), rng.integers(0, 3, 50)
    deltas, rounded = (score.deltas(rows, labels) for score in scores)
    assert 0 < np.abs(rounded - deltas).max() < 0.01 < np.abs(deltas).max()


def random_maps(detector: Detector, rng: np.random.Generator) -> list[np.ndarray]:
    """Feature maps of an image of 120 x 120 pixels at the two scales of the random detector."""
    return [rng.random((side, side, detector.features.channels), np.float32) for side in (30, 40)]


def random_boxes(rng: np.random.Generator) -> np.ndarray:
    corner = rng.integers(0, 80, (50, 2))
    return np.concatenate([corner, corner + rng.integers(20, 40, (50, 2))], axis=1).astype(np.float32)


# Settings


def test_settings_are_changed_in_a_copy(by_hand):
    changed = by_hand.with_detection(nms=0.34)
    assert (changed.detection.nms, changed.detection.min_margin, by_hand.detection.nms) == (0.34, -0.5, 0.3)
    assert changed.backbone is by_hand.backbone
    assert changed.with_detection(by_hand.detection).detection == by_hand.detection
    assert changed.with_detection(by_hand.detection, vote=0.5).detection == replace(by_hand.detection, vote=0.5)
    # Cached values are those of the settings.
    assert by_hand.detect([[hand_made_map()]], WINDOWS, (64, 64)).xyxy[0].tolist() == A
    assert len(changed.detect([[hand_made_map()]], WINDOWS, (64, 64))) == 3


def test_settings_cannot_be_assigned(by_hand):
    with pytest.raises(dataclasses.FrozenInstanceError):
        by_hand.detection = replace(by_hand.detection, nms=0.34)


def test_settings_out_of_their_limits_are_refused(by_hand):
    with pytest.raises(SppdetError, match=r"nms: expected 0 to 1, found 7"):
        by_hand.with_detection(nms=7)


def test_context_is_refused_without_svms_of_whole_images(by_hand):
    with pytest.raises(SppdetError, match=r"detection\.context: this model has no SVMs of whole images; train with"):
        by_hand.with_detection(context=0.5)
    svms = LinearSVMs(np.eye(2, dtype=np.float32), np.zeros(2, np.float32))
    assert replace(by_hand, image_svms=svms).with_detection(context=0.5).detection.context == 0.5


def test_boxes_are_not_scored_again_on_crops(by_hand):
    crops = replace(by_hand, features=CropFeatures(channels=2, crop=Crop("warp", 64, 4), levels=(1,)))
    with pytest.raises(SppdetError, match=r"detection\.rescore: this model reads crops of the proposals"):
        crops.with_detection(rescore=0.5)


# Text form


def test_the_text_form_names_what_matters():
    detector = random_detector("fc6").with_detection(vote=0.4, rescore=0.5, flip=True)
    assert repr(detector).splitlines() == [
        "Detector of 3 classes: a, b c, ü",
        "  small (float32), fc6, max pooling 2 1, scales 120 160, fast selective search",
        "  SVMs, box regression, nms=0.4, min_margin=-0.2, vote=0.4, rescore=0.5, context=0.01, flip",
    ]


def test_the_text_form_with_features_of_crops(by_hand):
    features = CropFeatures(channels=2, crop=Crop("warp", 64, 4), levels=(1,))
    assert "small (float32), pool5, max pooling 1, warp crops of 64" in repr(replace(by_hand, features=features))


def test_long_lists_of_classes_are_cut():
    assert class_list(tuple("abcdefg")) == "7 classes: a, b, c, d, e, f, ..."
    assert class_list(("a",)) == "1 class: a"
