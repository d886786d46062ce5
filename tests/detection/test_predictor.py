"""Images in, and which of their detections are returned."""

from __future__ import annotations

import io
import types

import numpy as np
import pytest
import torch
from detectors import A, C
from PIL import Image

from sppdet.config.settings import DEFAULT_THRESHOLD
from sppdet.utils.errors import SppdetError


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
        (io.BytesIO(b"a file"), "an image cannot be an open file: give its path, or its bytes by read"),
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
