"""From images to detections: hand-derived ones from hand-built feature maps."""

from __future__ import annotations

import io
import types
from dataclasses import replace

import numpy as np
import pytest
import torch
from detectors import WINDOWS, A, B, C, FixedSearch, hand_made_detector, hand_made_map
from PIL import Image

from sppdet.config.settings import DEFAULT_THRESHOLD
from sppdet.detection.detector import Detector
from sppdet.detection.linear_layers import BoxRegressors, LinearSVMs
from sppdet.features.crop_features import CropFeatures
from sppdet.features.warp import Crop
from sppdet.ops import boxes as geometry
from sppdet.utils.errors import SppdetError

SIZE = (64, 64)
NO_REGRESSION = BoxRegressors(np.zeros((2, 4, 2), np.float32), np.zeros((2, 4), np.float32))


@pytest.fixture
def conv_map() -> np.ndarray:
    return hand_made_map()


@pytest.fixture
def by_hand(tiny_features) -> Detector:
    return hand_made_detector(tiny_features)


# Images in


@pytest.fixture
def camera(by_hand, conv_map) -> types.SimpleNamespace:
    """``model``, the hand-made detector with a network that appends each image that it is run on to ``seen``."""
    seen = []

    def network(image: np.ndarray, factor: float) -> np.ndarray:
        seen.append(image)
        return conv_map

    return types.SimpleNamespace(model=replace(by_hand, backbone=network, search=FixedSearch()), seen=seen)


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)


def encoded(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "png")
    return file.getvalue()


KINDS = {
    "array": lambda image: image,
    "PIL image": Image.fromarray,
    "bytes of a file": encoded,
    "bytearray": lambda image: bytearray(encoded(image)),
    "RGBA": lambda image: np.dstack([image, np.full((64, 64), 255, np.uint8)]),
    "uint8 tensor": lambda image: torch.from_numpy(image).permute(2, 0, 1),
    "float tensor": lambda image: (torch.from_numpy(image).permute(2, 0, 1) / 255).requires_grad_(),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_image_is_the_same_image(camera, image, kind):
    assert camera.model.predict(KINDS[kind](image)).xyxy.tolist() == [A, C]
    np.testing.assert_array_equal(camera.seen[0], image)


def test_images_are_read_from_paths(camera, image, tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(image))
    for path in (tmp_path / "a.png", str(tmp_path / "a.png")):
        assert len(camera.model.predict(path)) == 2
        np.testing.assert_array_equal(camera.seen.pop(), image)


def test_grey_images_have_three_equal_channels(camera, image):
    camera.model.predict([image[..., 0], torch.from_numpy(image[None, ..., 0])])
    for seen in camera.seen:
        np.testing.assert_array_equal(seen, image[..., [0, 0, 0]])


def test_channels_of_opencv_are_put_in_order(camera, image):
    frames = [image[..., ::-1], torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1)]
    camera.model.predict([*frames, np.dstack([frames[0], np.full((64, 64), 255, np.uint8)])], bgr=True)
    camera.model.predict(encoded(image), bgr=True)  # a file says itself which channel is which
    assert len(camera.seen) == 4
    for seen in camera.seen:
        np.testing.assert_array_equal(seen, image)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (3, "an image cannot be a int: give a path, the bytes of a file, a PIL image, a uint8 array or a tensor"),
        (None, "an image cannot be a NoneType"),
        (np.zeros((4, 4, 3)), r"a float64 array of shape \(4, 4, 3\)"),
        (torch.zeros(8, 4, 3, dtype=torch.uint8), r"a torch.uint8 tensor of shape \(8, 4, 3\)"),
        (torch.full((3, 4, 4), 200.0), r"a torch.float32 tensor of shape \(3, 4, 4\), values from 200 to 200: give"),
        (torch.zeros(3, 4, 4, dtype=torch.int8), "a torch.int8 tensor"),
        (torch.zeros(3, 0, 4), "a torch.float32 tensor"),
        (b"no image", "the encoded image: is no image Pillow knows"),
        ("none.jpg", "none.jpg: no such image"),
    ],
)
def test_what_is_no_image_is_named(camera, wrong, message):
    with pytest.raises(SppdetError, match=message) as caught:
        camera.model.predict(wrong)
    assert "\n" not in str(caught.value)


def test_a_list_of_images_gives_a_list(camera, image):
    several = camera.model.predict([image, image[::-1]])
    assert isinstance(several, list) and [len(detections) for detections in several] == [2, 2]
    np.testing.assert_array_equal(camera.seen[1], image[::-1])
    assert len(camera.model.predict((image,))) == 1 and camera.model.predict([]) == []


def test_an_iterator_gives_a_generator_that_reads_one_image_at_a_time(camera, image):
    taken = []

    def video():
        for n in range(3):
            taken.append(n)
            yield image

    frames = camera.model.predict(video(), threshold=1.5)
    assert isinstance(frames, types.GeneratorType) and taken == []
    assert next(frames).xyxy.tolist() == [A] and taken == [0]
    assert len(list(frames)) == 2 and taken == [0, 1, 2]


def test_the_threshold_is_the_lowest_score(camera, image):
    scores = {
        threshold: camera.model.predict(image, threshold).scores.tolist() for threshold in (2, 1, 1.01, 2.01, None)
    }
    assert scores == {2: [2], 1: [2, 1], 1.01: [2], 2.01: [], None: [2, 1]}


def test_the_default_threshold_is_that_of_the_command(camera, image):
    low = camera.model.with_detection(min_margin=-1.5, nms=0.34)
    assert len(low.predict(image, threshold=None)) == 4 + 4  # all windows, by class
    assert low.predict(image).scores.tolist() == low.predict(image, DEFAULT_THRESHOLD).scores.tolist() == [2, 1.5, 1]


def test_a_threshold_below_min_margin_holds_for_one_call(camera, image):
    model = camera.model.with_detection(min_margin=1.25)
    assert model.predict(image, threshold=0.9).scores.tolist() == model.predict(image).scores.tolist() == [2, 1]
    assert len(model.predict(image, threshold=-1.5)) == 3 + 3
    assert model.predict(image, threshold=None).scores.tolist() == [2]
    assert model.detection.min_margin == 1.25


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


# Margins


def test_detections_by_hand(by_hand, conv_map):
    # red: A 3 - 1, B 2.5 - 1, C and D -1. B overlaps A by 32 / (64 + 64 - 32) = 1/3 and is suppressed.
    # blue: C alone, 2 - 1.
    detections = by_hand.detect([[conv_map]], WINDOWS, SIZE)
    assert detections.xyxy.tolist() == [A, C]
    assert detections.labels.tolist() == [0, 1] and detections.scores.tolist() == [2, 1]
    assert detections.classes == ("red", "blue")


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


def test_an_image_and_its_mirror_image_have_mirrored_detections(by_hand):
    rng = np.random.default_rng(0)
    maps, mirrored = (rng.random((16, 16, 2), np.float32) for _ in range(2))
    weight = rng.normal(size=(2, 4, 2)).astype(np.float32) / 10
    model = replace(by_hand, regressors=BoxRegressors(weight, np.zeros((2, 4), np.float32)))
    detections = model.detect([[maps]], WINDOWS, SIZE, [[mirrored]])
    other = model.detect([[mirrored]], geometry.mirror(WINDOWS, 64), SIZE, [[maps]])
    assert len(detections) and detections.scores.tolist() == other.scores.tolist()
    np.testing.assert_allclose(geometry.mirror(other.xyxy, 64), detections.xyxy, atol=1e-4)


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


@pytest.mark.parametrize("regression", [False, True])
def test_no_proposals(by_hand, conv_map, regression):
    model = replace(by_hand, regressors=NO_REGRESSION) if regression else by_hand
    for detections in model.detect_both([[conv_map]], np.zeros((0, 4), np.float32), SIZE):
        assert detections.xyxy.shape == (0, 4) and len(detections) == 0 and detections.to_list() == []
