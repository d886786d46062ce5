"""Reading images: every kind becomes (H, W, 3) uint8 RGB, every bad file an error of one line that names it."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import ExifTags, Image

from sppdet.data.images import image_size, read_image, scaled_size, to_rgb
from sppdet.utils.errors import SppdetError

RED, WHITE = [255, 0, 0], [255, 255, 255]


def save(path, image, **options):
    image.save(path, **options)
    return path


def test_rgb_is_read_unchanged(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    image = read_image(save(tmp_path / "a.png", Image.fromarray(pixels)))
    assert image.dtype == np.uint8 and image.flags.c_contiguous
    np.testing.assert_array_equal(image, pixels)


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [
        ("1", 1, WHITE),
        ("L", 40, [40, 40, 40]),
        ("LA", (40, 255), [40, 40, 40]),
        ("LA", (40, 0), WHITE),
        ("RGBA", (255, 0, 0, 255), RED),
        ("RGBA", (255, 0, 0, 0), WHITE),
        ("RGBA", (0, 0, 0, 51), [204, 204, 204]),  # a fifth of black over white
        ("CMYK", (0, 255, 255, 0), RED),
        ("I;16", 65535, WHITE),
        ("I;16", 257 * 40, [40, 40, 40]),
        ("I", 257 * 40, [40, 40, 40]),
        ("F", 1.0, WHITE),
        ("F", 40.0, [40, 40, 40]),
    ],
)
def test_every_mode_becomes_rgb(tmp_path, mode, value, expected):
    pillow_image = Image.new(mode, (3, 2), value)
    image = read_image(save(tmp_path / "a.tif", pillow_image))
    assert image.shape == (2, 3, 3) and image.dtype == np.uint8 and image.flags.c_contiguous
    assert image[1, 2].tolist() == expected
    np.testing.assert_array_equal(to_rgb(image), image)


def test_a_transparent_colour_of_a_palette_becomes_white(tmp_path):
    pillow_image = Image.new("P", (2, 1))
    pillow_image.putpalette([255, 0, 0, 0, 0, 255])
    pillow_image.putpixel((1, 0), 1)
    assert read_image(save(tmp_path / "a.png", pillow_image)).tolist() == [[RED, [0, 0, 255]]]
    assert read_image(save(tmp_path / "b.png", pillow_image, transparency=1)).tolist() == [[RED, WHITE]]


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize(
    ("orientation", "shown"),
    [
        (1, [[0, 50, 100], [150, 200, 250]]),
        (2, [[100, 50, 0], [250, 200, 150]]),
        (3, [[250, 200, 150], [100, 50, 0]]),
        (4, [[150, 200, 250], [0, 50, 100]]),
        (5, [[0, 150], [50, 200], [100, 250]]),
        (6, [[150, 0], [200, 50], [250, 100]]),
        (7, [[250, 100], [200, 50], [150, 0]]),
        (8, [[100, 250], [50, 200], [0, 150]]),
        (9, [[0, 50, 100], [150, 200, 250]]),  # no valid orientation: ignored
    ],
)
def test_exif_orientation_is_applied(tmp_path, suffix, orientation, shown):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    stored = Image.fromarray(np.array([[0, 50, 100], [150, 200, 250]], np.uint8))
    path = save(tmp_path / f"a.{suffix}", stored, exif=exif)
    assert read_image(path)[..., 0].tolist() == shown
    assert image_size(path) == (len(shown[0]), len(shown))


def test_the_size_needs_the_header_alone(tmp_path):
    path = save(tmp_path / "a.jpg", Image.new("RGB", (640, 480)))
    path.write_bytes(path.read_bytes()[:700])
    assert image_size(path) == (640, 480)
    with pytest.raises(SppdetError, match=r"a\.jpg"):
        read_image(path)


@pytest.mark.parametrize("read", [read_image, image_size, to_rgb])
@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("missing.jpg", None, "no such image"),
        ("empty.jpg", b"", "is empty"),
        ("text.jpg", b"not an image", "no image"),
        ("cut.png", b"\x89PNG\r\n\x1a\n\x00\x00", "cut.png"),
    ],
)
def test_bad_files_are_named_in_one_line(tmp_path, read, name, content, reason):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SppdetError, match=reason) as caught:
        read(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("read", [read_image, image_size])
def test_a_folder_is_refused(tmp_path, read):
    with pytest.raises(SppdetError, match="is a folder"):
        read(tmp_path)


def test_an_image_of_too_many_pixels_is_refused(tmp_path, monkeypatch):
    path = save(tmp_path / "bomb.png", Image.new("1", (100, 100)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)
    with pytest.raises(SppdetError, match=r"bomb\.png: has over 8,000 pixels"):
        read_image(path)


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1), (4, 5, 3)])
def test_grey_and_rgb_arrays_become_contiguous_rgb(shape):
    array = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    image = to_rgb(array[:, ::-1])
    assert image.flags.c_contiguous
    np.testing.assert_array_equal(image, np.broadcast_to(array[:, ::-1].reshape(4, 5, -1), (4, 5, 3)))


def test_an_rgb_array_is_not_copied():
    array = np.zeros((4, 5, 3), np.uint8)
    assert to_rgb(array) is array


def test_transparency_of_arrays_is_laid_over_white():
    array = np.array([[[255, 0, 0, 255], [255, 0, 0, 0], [0, 0, 0, 51]]], np.uint8)
    assert to_rgb(array).tolist() == [[RED, WHITE, [204, 204, 204]]]


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((4, 5, 3), np.float32),
        np.zeros((4, 5, 2), np.uint8),
        np.zeros(4, np.uint8),
        np.zeros((1, 4, 5, 3), np.uint8),
        np.zeros((0, 5, 3), np.uint8),
        None,
    ],
)
def test_arrays_of_other_kinds_are_refused(bad):
    with pytest.raises(SppdetError, match="an image cannot be"):
        to_rgb(bad)


def test_scaled_sizes_are_rounded_and_at_least_1():
    assert scaled_size(500, 375, 0.5) == (250, 188)  # 187.5 to the even number
    assert scaled_size(333, 500, 1.5) == (500, 750)
    assert scaled_size(1000, 3, 0.1) == (100, 1)


def test_a_jpeg_that_is_cut_off_is_decoded_as_far_as_it_goes(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (160, 120, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "whole.jpg")
    content = (tmp_path / "whole.jpg").read_bytes()
    whole = read_image(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes(content[: int(0.8 * len(content))])
    with pytest.warns(UserWarning, match=r"cut\.jpg: is cut off at the end, decoded as far as it goes; copy it again"):
        cut = read_image(tmp_path / "cut.jpg")
    same = (cut == whole).all(axis=(1, 2))
    assert 0.6 < same.mean() < 0.85 and same[: int(0.6 * len(same))].all()
    (tmp_path / "stub.jpg").write_bytes(content[: int(0.3 * len(content))])
    with pytest.raises(SppdetError, match=r"stub\.jpg: is cut off, with more than half of it missing; copy it again"):
        read_image(tmp_path / "stub.jpg")
