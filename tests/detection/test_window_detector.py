"""What a detector does with an image whose proposals are known, derived by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from detectors import WINDOWS, A, C, FixedSearch, random_detector
from device import DEVICE

from sppdet.detection.detections import Detections
from sppdet.detection.detector import Detector
from sppdet.detection.ensemble import Ensemble
from sppdet.detection.linear_layers import BoxRegressors, LinearSVMs, Softmax
from sppdet.features.crop_features import CropFeatures
from sppdet.features.warp import Crop
from sppdet.ops import boxes as geometry

SIZE = (64, 64)


def test_detections_by_hand(by_hand, conv_map):
    # red: A 3 - 1, B 2.5 - 1, C and D -1. B overlaps A by 32 / (64 + 64 - 32) = 1/3 and is suppressed.
    # blue: C alone, 2 - 1.
    detections = by_hand.detect([[conv_map]], WINDOWS, SIZE)
    assert detections.xyxy.tolist() == [A, C]
    assert detections.labels.tolist() == [0, 1] and detections.scores.tolist() == [2, 1]
    assert detections.classes == ("red", "blue")


def test_the_mirror_image_is_read_where_flip_is_set(camera, image, conv_map):
    assert camera.model.read_mirror_image(image) is None
    camera.model.with_detection(flip=True).predict(image)
    np.testing.assert_array_equal(camera.seen[0], image)
    np.testing.assert_array_equal(camera.seen[1], image[:, ::-1])


def test_features_of_crops_have_to_know_the_proposals(by_hand, monkeypatch, image):
    """The proposals of the mirror image are mirrored."""
    known = []
    features = CropFeatures(channels=2, crop=Crop("warp", 64, 4), levels=(1,))
    monkeypatch.setattr(CropFeatures, "read", lambda self, backbone, image, boxes: known.append(boxes))
    model = replace(by_hand, features=features).with_detection(flip=True)
    assert model.needs_windows and not by_hand.needs_windows
    model.read(image, WINDOWS), model.read_mirror_image(image, WINDOWS)
    np.testing.assert_array_equal(known[0], WINDOWS)
    np.testing.assert_array_equal(known[1], geometry.mirror(WINDOWS, 64))


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
        detections = model.predict(np.zeros((64, 64, 3), np.uint8))
        assert detections.boxes.tolist() == [A, C]
        concat_pooled = engine == "opencv" and threads > 1
        assert seen == [threads - concat_pooled] and torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_the_mirror_image_has_half_of_the_weight(by_hand, conv_map):
    mirrored = np.ascontiguousarray(conv_map[:, ::-1])
    upright = by_hand.detect([[conv_map]], WINDOWS, SIZE)
    same = by_hand.detect([[conv_map]], WINDOWS, SIZE, [[mirrored]])
    assert same.xyxy.tolist() == upright.xyxy.tolist() and same.scores.tolist() == upright.scores.tolist()
    # Window A, x from 8 to 16 of 64, lies from 48 to 56 in the mirror image: cell 13 instead of 2.
    assert mirrored[2, 13, 0] == 3
    mirrored[2, 13, 0] = 2.8
    detections = by_hand.detect([[conv_map]], WINDOWS, SIZE, [[mirrored]])
    assert detections.xyxy.tolist() == [A, C] and detections.scores.tolist() == pytest.approx([(2 + 1.8) / 2, 1])


@pytest.mark.parametrize("rescore", [0.0, 0.5])
def test_an_image_and_its_mirror_image_have_mirrored_detections(by_hand, rescore):
    rng = np.random.default_rng(0)
    maps, mirrored = (rng.random((16, 16, 2), np.float32) for _ in range(2))
    weight = rng.normal(size=(2, 4, 2)).astype(np.float32) / 10
    model = replace(by_hand, regressors=BoxRegressors(weight, np.zeros((2, 4), np.float32)))
    model = model.with_detection(rescore=rescore)
    detections = model.detect([[maps]], WINDOWS, SIZE, [[mirrored]])
    other = model.detect([[mirrored]], geometry.mirror(WINDOWS, 64), SIZE, [[maps]])
    assert len(detections) and detections.scores.tolist() == other.scores.tolist()
    np.testing.assert_allclose(geometry.mirror(other.xyxy, 64), detections.xyxy, atol=1e-4)
    model = model.with_detection(move_penalty=0.75)  # by an IoU that mirrored coordinates round otherwise
    detections = model.detect([[maps]], WINDOWS, SIZE, [[mirrored]])
    other = model.detect([[mirrored]], geometry.mirror(WINDOWS, 64), SIZE, [[maps]])
    assert len(detections) and detections.scores.tolist() == pytest.approx(other.scores.tolist(), abs=1e-6)


@pytest.mark.parametrize(("blue", "expected"), [(2.5, [2, 1]), (4, [2, 1 - 0.5 * 1.5]), (9, [2])])
def test_windows_lose_margin_where_the_svm_of_the_whole_image_is_negative(by_hand, conv_map, blue, expected):
    # The highest values of the image are 3 and 2: its margins are 3 - 1 for red and 2.5 - `blue` for blue.
    # Half of a negative margin counts.
    image_svms = LinearSVMs(np.eye(2, dtype=np.float32), np.array([-1, 0.5 - blue], np.float32))
    model = replace(by_hand, image_svms=image_svms).with_detection(context=0.5)
    detections = model.detect([[conv_map]], WINDOWS, SIZE)
    assert detections.scores.tolist() == expected
    without = replace(model, detection=by_hand.detection).detect([[conv_map]], WINDOWS, SIZE)
    assert without.scores.tolist() == [2, 1]


def test_the_svms_of_whole_images_see_the_mirror_image_too(by_hand, conv_map):
    image_svms = LinearSVMs(np.eye(2, dtype=np.float32), np.array([-1, -3], np.float32))
    model = replace(by_hand, image_svms=image_svms).with_detection(context=0.5)
    mirrored = np.ascontiguousarray(conv_map[:, ::-1])
    mirrored[0, 0, 1] = 4  # outside of the windows: 4 - 3 in the mirror image, 2 - 3 in the image
    detections = model.detect([[conv_map]], WINDOWS, SIZE, [[mirrored]])
    assert detections.scores.tolist() == [2, 1 - 0.5 * 1 / 2]


# The path of GPUs, on the CPU


def on_device(detector: Detector) -> Detector:
    return replace(detector, features=replace(detector.features, device=DEVICE))


def random_image(detector: Detector) -> tuple[list, list, np.ndarray]:
    """Maps of an image of 120 x 120 pixels and of its mirror image, and proposals."""
    rng = np.random.default_rng(1)
    maps, mirrored = (
        [rng.random((side, side, detector.features.channels), np.float32) for side in (30, 40)] for _ in range(2)
    )
    corner = rng.integers(0, 80, (200, 2))
    proposals = np.concatenate([corner, corner + rng.integers(20, 40, (200, 2))], axis=1).astype(np.float32)
    return maps, mirrored, proposals


def check_that_they_are_equal(there: Detections, here: Detections) -> None:
    assert len(here) > 5
    np.testing.assert_array_equal(there.labels, here.labels)
    np.testing.assert_allclose(there.scores, here.scores, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(there.xyxy, here.xyxy, atol=1e-2)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("voting", "rescore"), [(0.0, 0.0), (0.5, 0.0), (0.5, 0.5)])
@pytest.mark.parametrize("layer", [None, "fc6", "pool5+fc7"])
def test_a_device_detects_what_the_compiled_path_detects(layer, voting, rescore, flip):
    changes = {"vote": voting, "rescore": rescore, "move_penalty": rescore, "flip": flip}
    changes |= {"min_margin": -100, "max_candidates": 90}
    detector = random_detector(layer).with_detection(**changes)
    maps, mirrored, proposals = random_image(detector)
    of_image = [[maps], proposals, (120, 120), [mirrored] if flip else None]
    compiled = detector.detect_both(*of_image)
    scores = on_device(detector).window_scores(*of_image)
    assert all(isinstance(of_part.margins, torch.Tensor) for _, of_part in scores)
    for there, here in zip(on_device(detector).detect_both(*of_image), compiled):
        check_that_they_are_equal(there, here)


def test_a_softmax_on_a_device():
    detector = random_detector("fc7", False).with_detection(context=0, min_margin=-100)
    rng = np.random.default_rng(2)
    weight = rng.normal(size=(4, detector.features.dimension)).astype(np.float32)
    detector = replace(detector, classifier=Softmax(weight, rng.normal(size=4).astype(np.float32)))
    maps, _, proposals = random_image(detector)
    there, here = (model.detect([maps], proposals, (120, 120)) for model in (on_device(detector), detector))
    check_that_they_are_equal(there, here)


def test_parts_of_an_ensemble_that_are_not_on_the_device_bring_the_others_back():
    """R-CNN's vectors are on the CPU, whatever the device."""
    parts = [random_detector().with_detection(min_margin=-100), random_detector("fc6").with_detection(min_margin=-100)]
    maps, _, proposals = random_image(parts[0])
    mixed, compiled = (
        Ensemble((first, parts[1]), (0.5, 0.5), first.detection).detect([maps, maps], proposals, (120, 120))
        for first in (on_device(parts[0]), parts[0])
    )
    check_that_they_are_equal(mixed, compiled)


def test_no_window_above_the_lowest_margin_on_a_device():
    for voting in (0.0, 0.5):
        detector = on_device(random_detector()).with_detection(min_margin=1e6, vote=voting)
        maps, _, proposals = random_image(detector)
        for detections in detector.detect_both([maps], proposals, (120, 120)):
            assert detections.xyxy.shape == (0, 4)
