"""Parts of images, from memory and from files that libvips reads."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import ExifTags, Image

from sppdet.data import large_images
from sppdet.data.images import read_image
from sppdet.data.large_images import PixelsInFile, PixelsInMemory, header_of_any_size, open_pixels, read_tile
from sppdet.utils import SppdetError


def picture(height=60, width=90, channels=3, dtype=np.uint8, seed=0):
    values = np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, (height, width, channels), dtype)
    return values[..., 0] if channels == 1 else values


@pytest.fixture
def vips():
    return pytest.importorskip("pyvips", reason="needs the extra large: pip install 'sppdet[large]'")


def save(path, array, **options):
    Image.fromarray(array).save(path, **options)
    return path


@pytest.mark.parametrize(
    "name, array",
    [
        ("rgb.png", picture()),
        ("grey.png", picture(channels=1)),
        ("opacity.png", picture(channels=4)),
        ("unknown opacity.png", picture(channels=4) * np.array([1, 1, 1, 0], np.uint8)),
        ("rgb[1].tif", picture()),
        ("deep.png", picture(channels=1, dtype=np.uint16)),
        ("12 bits.png", picture(channels=1, dtype=np.uint16) // 16),
    ],
)
def test_libvips_reads_what_pillow_reads(tmp_path, vips, name, array):
    path = save(tmp_path / name, array)
    pixels = PixelsInFile(path)
    assert (pixels.width, pixels.height) == (90, 60)
    expected = read_image(path).astype(int)
    # Opacity is rounded by one rule here and another there.
    difference = np.abs(pixels.read((0, 0, 90, 60)).astype(int) - expected)
    assert difference.max() <= (1 if "opacity" in name else 0)
    np.testing.assert_array_equal(pixels.read((20, 10, 50, 40)), pixels.read((0, 0, 90, 60))[10:40, 20:50])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_is_applied(tmp_path, vips, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = save(tmp_path / "a.png", picture(), exif=exif)
    expected = read_image(path)
    pixels = PixelsInFile(path)
    np.testing.assert_array_equal(pixels.read((0, 0, pixels.width, pixels.height)), expected)


def test_the_overview_is_shrunk(tmp_path, monkeypatch):
    """It holds the means of 3 x 3 pixels; the rows and columns that are left over are not in it."""
    monkeypatch.setattr(large_images, "_OVERVIEW", 31)
    monkeypatch.setattr(large_images, "_STRIP", 6)
    np.save(tmp_path / "a.npy", picture(61, 91))
    overview, factor = open_pixels(np.load(tmp_path / "a.npy", mmap_mode="r")).overview()
    means = picture(61, 91)[:60, :90].reshape(20, 3, 30, 3, 3).mean(axis=(1, 3))
    assert overview.shape == (20, 30, 3) and factor == 1 / 3
    assert np.abs(overview - means).max() <= 0.5
    whole, factor = open_pixels(picture(61, 91)).overview()
    assert whole.shape == (61, 91, 3) and factor == 1


def test_large_files_are_read_in_parts_and_small_ones_at_once(tmp_path, vips, monkeypatch):
    path = save(tmp_path / "a.png", picture())
    assert isinstance(open_pixels(path), PixelsInMemory)
    monkeypatch.setattr(large_images, "_IN_MEMORY", 60 * 90 - 1)
    assert isinstance(open_pixels(path), PixelsInFile)


def test_what_pillow_takes_for_a_bomb_is_read_in_parts(tmp_path, vips, monkeypatch):
    path = save(tmp_path / "a.png", picture())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(SppdetError, match=r"a\.png: has over 2,000 pixels, too many to read at once; make it"):
        read_image(path)
    assert isinstance(open_pixels(path), PixelsInFile)


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_the_header_of_what_pillow_takes_for_a_bomb(tmp_path, vips, monkeypatch, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = save(tmp_path / "a.jpg", picture(), exif=exif)
    expected = header_of_any_size(path)
    assert expected == ((60, 90, 6) if orientation == 6 else (90, 60, orientation))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert header_of_any_size(path) == expected


@pytest.mark.parametrize("read", [open_pixels, header_of_any_size])
def test_without_libvips_the_error_names_the_extra(tmp_path, monkeypatch, read):
    path = save(tmp_path / "a.png", picture())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    monkeypatch.setattr(large_images, "_has_vips", lambda: False)
    with pytest.raises(SppdetError, match=r"a\.png: has more .*; pip install 'sppdet\[large\]' to read it in parts"):
        read(path)


def test_a_damaged_file_is_named(tmp_path, vips):
    path = save(tmp_path / "a.tif", picture(600, 900), compression="tiff_deflate")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(SppdetError, match=r"a\.tif: cannot be read \(.*\); copy it again"):
        pixels = PixelsInFile(path)
        pixels.read((0, 500, 900, 600))


def test_damage_in_the_middle_is_an_error(tmp_path, vips):
    path = save(tmp_path / "a.png", picture(100, 100))
    content = path.read_bytes()
    path.write_bytes(content[:5000] + bytes(100) + content[5100:])
    with pytest.raises(SppdetError, match=r"a\.png: cannot be read \(.*\); copy it again"):
        PixelsInFile(path).read((0, 0, 100, 100))


def test_a_jpeg_that_is_cut_off_is_decoded_as_far_as_it_goes(tmp_path, vips):
    path = save(tmp_path / "a.jpg", picture(160, 90))
    whole = PixelsInFile(path).read((0, 0, 90, 160))
    path.write_bytes(path.read_bytes()[:-300])
    np.testing.assert_array_equal(PixelsInFile(path).read((0, 0, 90, 160))[:100], whole[:100])


def test_channels_that_are_no_colours_are_refused(tmp_path, vips):
    path = tmp_path / "a.tif"
    vips.Image.black(30, 20, bands=7).write_to_file(str(path))
    with pytest.raises(SppdetError, match=r"a\.tif: has 7 channels of type uchar; save it as RGB"):
        PixelsInFile(path)


def test_an_array_in_a_file_stays_there(tmp_path):
    np.save(tmp_path / "a.npy", picture())
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    pixels = open_pixels(mapped)
    assert pixels._array is mapped
    np.testing.assert_array_equal(pixels.read((20, 10, 50, 40)), picture()[10:40, 20:50])


def test_a_tile_is_a_part_of_the_image_as_it_is_now(tmp_path):
    path = save(tmp_path / "a.png", picture())
    np.testing.assert_array_equal(read_tile(path, (20, 10, 50, 40)), picture()[10:40, 20:50])
    save(path, picture(61, 90, seed=1))
    np.testing.assert_array_equal(read_tile(path, (20, 10, 50, 40)), picture(61, 90, seed=1)[10:40, 20:50])
