"""Reading images: every kind becomes (H, W, 3) uint8 RGB, every bad file an error of one line that names it."""

from __future__ import annotations

import os
import struct

import cv2
import numpy as np
import pytest
from PIL import ExifTags, Image

from sppdet.data.images import check_image, image_size, read_image, scaled_size, to_rgb
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
        ("LA", (40, 0), [40, 40, 40]),  # nothing is opaque: transparency is ignored
        ("RGBA", (255, 0, 0, 255), RED),
        ("RGBA", (255, 0, 0, 0), RED),
        ("RGBA", (0, 0, 0, 51), [204, 204, 204]),  # a fifth of black over white
        ("CMYK", (0, 255, 255, 0), RED),
        ("I;16", 65535, WHITE),
        ("I;16", 257 * 40, [40, 40, 40]),
        ("I", 257 * 40, [40, 40, 40]),
        ("F", 1.0, WHITE),
        ("I;16", 40, [40, 40, 40]),
        ("I;16B", 257 * 40, [40, 40, 40]),
        ("F", 40.0, [40, 40, 40]),
    ],
)
def test_every_mode_becomes_rgb(tmp_path, mode, value, expected):
    pillow_image = Image.new(mode, (3, 2), value)
    image = read_image(save(tmp_path / "a.tif", pillow_image))
    assert image.shape == (2, 3, 3) and image.dtype == np.uint8 and image.flags.c_contiguous
    assert image[1, 2].tolist() == expected
    np.testing.assert_array_equal(to_rgb(image), image)


GREY = np.linspace(0, 1, 256).reshape(16, 16)  # one pixel of every level of 8 bits
LEVELS = np.arange(256).reshape(16, 16)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.rint(GREY * 4095).astype(np.uint16), LEVELS),  # 12 bits stored as 16
        (np.rint(28000 + GREY * 4000).astype(np.uint16), LEVELS),  # a narrow range far from 0
        (LEVELS.astype(np.uint16) * 257, LEVELS),
        (LEVELS.astype(np.uint16), LEVELS),
        (LEVELS.clip(60, 200).astype(np.uint16) * 257, LEVELS.clip(60, 200)),
        ((GREY * 65535).astype(np.float32), LEVELS),
        (GREY.astype(np.float32), LEVELS),
        (LEVELS.astype(np.float32), LEVELS),
        ((GREY * 0.01).astype(np.float32), LEVELS),
        ((GREY * 2 - 1).astype(np.float32), LEVELS),
        (
            np.where(LEVELS == 255, np.inf, np.where(LEVELS == 0, np.nan, LEVELS)).astype(np.float32),
            LEVELS.clip(1, 254),
        ),
        ((GREY * 1e6).astype(np.int32), LEVELS),
        ((GREY * 4000 - 2000).astype(np.int32), LEVELS),
    ],
)
def test_grey_of_more_than_8_bits_keeps_its_content(tmp_path, values, expected):
    image = read_image(save(tmp_path / "a.tif", Image.fromarray(values)))
    np.testing.assert_array_equal(image[..., 0], expected)
    np.testing.assert_array_equal(image[..., 0], image[..., 2])


def colour_tiff(values, orientation):
    """Return a TIFF file of 16-bit RGB, which Pillow cannot write."""
    height, width = values.shape[:2]
    pixels = values.astype("<u2").tobytes()
    bits_at = 8 + 2 + 12 * 10 + 4  # the header, then the table of ten tags
    longs = {256: width, 257: height, 273: bits_at + 6, 278: height, 279: len(pixels)}
    shorts = {259: 1, 262: 2, 274: orientation, 277: 3}
    tags = [(tag, 4, 1, value) for tag, value in longs.items()] + [(tag, 3, 1, value) for tag, value in shorts.items()]
    table = b"".join(struct.pack("<HHII", *tag) for tag in sorted([*tags, (258, 3, 3, bits_at)]))
    return struct.pack("<2sHIH", b"II", 42, 8, 10) + table + bytes(4) + struct.pack("<3H", 16, 16, 16) + pixels


@pytest.mark.parametrize("suffix", ["png", "tif", "ppm"])
@pytest.mark.parametrize("highest", [4095, 65535])
def test_16_bit_colours_keep_their_content(tmp_path, suffix, highest):
    values = np.rint(np.stack([GREY, GREY.T, 1 - GREY], axis=2) * highest).astype(np.uint16)
    expected = np.stack([LEVELS, LEVELS.T, 255 - LEVELS], axis=2)
    path = tmp_path / f"a.{suffix}"
    cv2.imwrite(str(path), values[..., ::-1])
    for image in (read_image(path), to_rgb(path.read_bytes()), to_rgb(Image.open(path))):
        np.testing.assert_array_equal(image, expected)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(SppdetError, match=f"a.{suffix}"):
        read_image(path)


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_16_bit_colours_are_turned(tmp_path, orientation):
    values = np.arange(6).reshape(2, 3, 1) * np.full(3, 13107)
    path = tmp_path / "a.tif"
    path.write_bytes(colour_tiff(values, orientation))
    turned = np.rot90(values, {1: 0, 3: 2, 6: -1}[orientation])
    np.testing.assert_array_equal(read_image(path), turned // 257)


def test_16_bit_transparency(tmp_path):
    colours = np.array([[[0, 0, 65535, 65535], [0, 0, 65535, 0], [0, 0, 0, 257 * 51]]], np.uint16)  # blue, green, red
    cv2.imwrite(str(tmp_path / "a.png"), colours)
    assert read_image(tmp_path / "a.png").tolist() == [[RED, WHITE, [204, 204, 204]]]


def test_a_bmp_whose_opacity_is_0_everywhere_shows_its_colours(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 4, 4), np.uint8)
    pixels[..., 3] = 0
    path = save(tmp_path / "a.png", Image.fromarray(pixels))
    np.testing.assert_array_equal(read_image(path), pixels[..., :3])
    # 32 bits per pixel with a mask for opacity (BITMAPV4HEADER), the last row first, blue first
    header = struct.pack("<IiiHHIIiiII", 108, 4, 4, 1, 32, 3, 64, 0, 0, 0, 0)
    header += struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000).ljust(108 - 40, b"\0")
    bmp = struct.pack("<2sIHHI", b"BM", 14 + 108 + 64, 0, 0, 14 + 108) + header
    (tmp_path / "a.bmp").write_bytes(bmp + pixels[::-1, :, [2, 1, 0, 3]].tobytes())
    assert Image.open(tmp_path / "a.bmp").mode == "RGBA"
    np.testing.assert_array_equal(read_image(tmp_path / "a.bmp"), pixels[..., :3])


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


@pytest.mark.parametrize("read", [read_image, image_size, check_image])
def test_a_pipe_is_refused_and_not_waited_for(tmp_path, read):
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(SppdetError, match=r"a\.jpg: is a pipe or a device, no file; give an image file"):
        read(tmp_path / "a.jpg")


def test_the_check_of_an_image_sees_that_its_end_is_missing(tmp_path):
    for name, kept, message in (
        ("a.jpg", 0.3, "is cut off, with more than half of it missing"),
        ("a.png", 0.9, "cannot"),
    ):
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
        path = save(tmp_path / name, Image.fromarray(noise))
        check_image(path)
        content = path.read_bytes()
        path.write_bytes(content[: int(kept * len(content))])
        with pytest.raises(SppdetError, match=f"{name}: {message}"):
            check_image(path)


def test_the_check_of_an_image_accepts_a_jpeg_that_is_decoded_as_far_as_it_goes(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    path = save(tmp_path / "a.jpg", Image.fromarray(noise))
    path.write_bytes(path.read_bytes()[:-600])
    check_image(path)
