"""Images as arrays: every kind of file becomes ``(H, W, 3)`` uint8 RGB, turned as viewers display it."""

from __future__ import annotations

import io
import math
import os
import stat
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from sppdet.utils import SppdetError

if TYPE_CHECKING:  # imported late: only a program that has imported torch can give a tensor
    import torch

# The image that the thread reads, for the warnings of Pillow, which do not say.
being_read: ContextVar[str | os.PathLike | None] = ContextVar("being_read", default=None)

_JPEG = ("JPEG", "MPO")  # Pillow's names of the formats that are decoded as far as they go


# What to do about an image that is too large.
IN_TILES = "make it smaller, or read it in tiles (detect with --tiles, train with data.tiles=SIDE)"


class TooManyPixels(SppdetError):
    """An image is so large that Pillow takes it for a decompression bomb."""


def _most_pixels() -> float:
    """Return the number of pixels above which Pillow takes an image for a decompression bomb."""
    return 2 * Image.MAX_IMAGE_PIXELS if Image.MAX_IMAGE_PIXELS else math.inf


def is_too_large(width: int, height: int) -> bool:
    """Whether `read_image` refuses an image of so many pixels."""
    return width * height > _most_pixels()


ImageLike: TypeAlias = "str | os.PathLike[str] | bytes | Image.Image | np.ndarray | torch.Tensor"

# Transposition for display, by the value of the EXIF orientation tag (EXIF 2.3, tag 0x0112).
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(path: str | os.PathLike) -> np.ndarray:
    """Read the image in a file.

    EXIF orientation is applied. Grey is repeated in the three channels. Transparency is laid over white, and ignored
    where all pixels are transparent. An animation gives its first frame. A JPEG that is cut off at the end is decoded
    as far as it goes, with a warning.

    Values of more than 8 bits become 8 bits as follows, all channels of an image by one rule:

    - Values from 0 to 255 stay as they are (rounded); for floating point that is so if the largest is above 1.
    - Values that span at least half of 0 to 65535, or half of 0 to 1 (floating point), are scaled so that 65535, or
      1, becomes 255. An image of one value counts among these.
    - Other values, such as 12 bits stored as 16, are scaled by their own range: the smallest becomes 0, the
      largest 255. NaN and infinities count as the smallest or largest.

    Returns:
        RGB uint8 array ``(H, W, 3)``, C-contiguous.

    Raises:
        SppdetError: the file is missing, empty, a folder, broken, cut short, no image, or so large that Pillow takes
            it for a decompression bomb (about 179 million pixels). The message names the file.
    """
    array, truncated = decode_image(path)
    if truncated:
        warnings.warn(f"{path}: is cut off at the end, decoded as far as it goes; copy it again", stacklevel=2)
    return array


def decode_image(path: str | os.PathLike) -> tuple[np.ndarray, bool]:
    """Return what `read_image` does, and whether the file is a JPEG that is cut off at the end.

    Raises:
        SppdetError: as `read_image`; or more than half of the rows are missing.
    """
    with _opened(path) as image:
        try:
            return _as_array(image), False
        except OSError:
            if image.format not in _JPEG:
                raise
    # libjpeg fills what is missing with grey where it meets the mark of the image's end.
    with _errors_naming(path):
        content = Path(path).read_bytes() + b"\xff\xd9"
        with Image.open(io.BytesIO(content)) as image:
            array, turn = _as_array(image), _TURNS.get(_orientation(image))
            stored = array if turn is None else np.asarray(image.convert("RGB"))
    filled = (stored == stored[-1:]).all(axis=(1, 2))  # rows like the last one
    if filled[len(filled) // 2 :].all():
        raise SppdetError(f"{path}: is cut off, with more than half of it missing; copy it again")
    return array, True


def image_size(path: str | os.PathLike) -> tuple[int, int]:
    """Return width and height in pixels of the image as displayed.

    Only the header of the file is read; no pixel is decoded.

    Raises:
        SppdetError: an error of `read_image` that the header shows.
    """
    return image_header(path)[:2]


def image_header(path: str | os.PathLike) -> tuple[int, int, int]:
    """Return width and height in pixels of the image as displayed, and its EXIF orientation, 1 to 8.

    Raises:
        SppdetError: an error of `read_image` that the header shows.
    """
    with _opened(path) as image:
        (width, height), orientation = image.size, _orientation(image)
        # Orientations from 5 on swap the sides.
        return (height, width, orientation) if orientation >= 5 else (width, height, orientation)


def check_image(path: str | os.PathLike) -> None:
    """Decode all of an image, of a whole JPEG file at an eighth of its size, to see whether `read_image` can read it.

    Raises:
        SppdetError: an error of `read_image`.
    """
    with _opened(path) as image:
        try:
            image.draft(None, (1, 1))
            image.load()
            return
        except OSError:
            if image.format not in _JPEG:
                raise
    decode_image(path)


def to_rgb(image: ImageLike, bgr: bool = False) -> np.ndarray:
    """Convert an image to a C-contiguous ``(H, W, 3)`` uint8 RGB array.

    Args:
        image: a path; the bytes of an image file; a PIL image; a uint8 array: grey ``(H, W)`` or ``(H, W, 1)``, RGB
            ``(H, W, 3)`` or RGBA ``(H, W, 4)``; or a tensor of 1, 3 or 4 channels ``(C, H, W)``, uint8 or floating
            point from 0 to 1. An RGB array is returned as it is, not copied.
        bgr: whether the channels of arrays and tensors are blue, green, red, as in OpenCV's images.

    Raises:
        SppdetError: if the image cannot be read, or is none of the above.

    Examples:
        >>> to_rgb(np.array([[[255, 0, 0]]], np.uint8), bgr=True).tolist()
        [[[0, 0, 255]]]
    """
    if isinstance(image, (str, os.PathLike)):
        return read_image(image)
    if isinstance(image, (bytes, bytearray, memoryview)):
        with _errors_naming("the encoded image"), Image.open(io.BytesIO(image)) as decoded:
            return _as_array(decoded)
    if isinstance(image, Image.Image):
        with _errors_naming(getattr(image, "filename", "") or "the Pillow image"):
            return _as_array(image)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(image, torch.Tensor):
        image = _tensor_as_array(image)
    if isinstance(image, np.ndarray):
        if bgr and image.ndim == 3 and image.shape[2] in (3, 4):
            image = image[..., [2, 1, 0, 3][: image.shape[2]]]
        return _array_as_rgb(image)
    raise SppdetError(
        f"an image cannot be a {type(image).__name__}: "
        "give a path, the bytes of a file, a PIL image, a uint8 array or a tensor"
    )


@contextmanager
def _opened(path: str | os.PathLike) -> Iterator[Image.Image]:
    """Open an image with Pillow and close it again."""
    # Not Image.open(path): with a path, Pillow maps an uncompressed grey TIFF into memory and, where an orientation
    # swaps the sides, takes rows for columns (seen with Pillow 13.0).
    with _errors_naming(path):
        mode = os.stat(path).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # reading a pipe would wait for ever
            raise SppdetError(f"{path}: is a pipe or a device, no file; give an image file")
        with open(path, "rb") as file, Image.open(file) as image:
            yield image


@contextmanager
def _errors_naming(path: str | os.PathLike) -> Iterator[None]:
    """Turn every error about an image into a `SppdetError` of one line that names the file."""
    token = being_read.set(path)
    try:
        yield
    except SppdetError:
        raise
    except FileNotFoundError:
        raise SppdetError(f"{path}: no such image; check the path") from None
    except Image.DecompressionBombError:
        raise TooManyPixels(
            f"{path}: has over {_most_pixels():,} pixels, too many to read at once; {IN_TILES}"
        ) from None
    except UnidentifiedImageError:
        what = "is empty" if Path(path).is_file() and Path(path).stat().st_size == 0 else "is no image Pillow knows"
        raise SppdetError(f"{path}: {what}; replace it by a JPEG or PNG file") from None
    except Exception as error:
        # Pillow's decoders raise errors of many types (SyntaxError, struct.error, ValueError) on damaged files.
        if Path(path).is_dir():
            raise SppdetError(f"{path}: is a folder; give an image file") from None
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise SppdetError(
            f"{path}: cannot be read ({' '.join(reason.split())}); copy it again or save it anew"
        ) from error
    finally:
        being_read.reset(token)


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation that is still to be applied, 1 for none."""
    # Pillow itself turns TIFF images and their size.
    if image.format == "TIFF":
        return 1
    try:
        # The base class's getexif: that of PNG images decodes all pixels to see whether EXIF follows them.
        orientation = int(Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1))
    except Exception:
        return 1  # the EXIF block is damaged; the image may be sound
    return orientation if orientation in _TURNS else 1


def _as_array(image: Image.Image) -> np.ndarray:
    """Return a Pillow image as an RGB uint8 array ``(H, W, 3)``."""
    turn = _TURNS.get(_orientation(image))
    deep = _deep_colours(image)
    if deep is not None:
        image = Image.fromarray(deep)
    if turn is not None:
        image = image.transpose(turn)
    if image.mode.startswith("I") or image.mode == "F":
        return _array_as_rgb(_as_bytes(np.asarray(image)))
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("LA") if image.mode == "La" else image
        return _array_as_rgb(np.asarray(image.convert("RGBA")))
    return np.array(image.convert("RGB"))


def _deep_colours(image: Image.Image) -> np.ndarray | None:
    """Return the 8-bit form ``(H, W, 3 or 4)`` of a file of 16-bit colours, of which Pillow keeps the upper 8 bits.

    None for all other images.
    """
    if not isinstance(image, ImageFile.ImageFile) or image.fp is None or not image.tile or image.tell():
        return None
    arguments: Any = image.tile[0].args  # how the decoder stores values: a name, or a tuple that begins with it
    stored_as, highest = (*arguments, 0)[:2] if isinstance(arguments, tuple) else (arguments, 0)
    has_16_bits = ";16" in str(stored_as) or (image.format == "PPM" and highest > 255)
    if not has_16_bits or image.format not in ("PNG", "TIFF", "PPM") or image.mode not in ("LA", "RGB", "RGBA"):
        return None
    import cv2

    image.fp.seek(0)
    content = np.frombuffer(image.fp.read(), np.uint8)
    image.load()  # an error where the file is cut short, of which OpenCV returns a part
    stored = cv2.imdecode(content, cv2.IMREAD_UNCHANGED)
    if stored is None or stored.dtype != np.uint16 or stored.ndim != 3:
        return None  # a form that OpenCV does not know: Pillow's 8 bits
    colours = _as_bytes(stored[..., 2::-1])
    return colours if stored.shape[2] == 3 else np.dstack([colours, _bytes_of(stored[..., 3] / 257)])


def _as_bytes(values: np.ndarray) -> np.ndarray:
    """Convert values of more than 8 bits to uint8 by the rules of `read_image`."""
    is_float = values.dtype.kind == "f"
    values = values.astype(np.float64)
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    values = np.nan_to_num(values, nan=low, posinf=high, neginf=low)
    black, white = byte_range(low, high, is_float)
    return _bytes_of((values - black) * (255 / (white - black)))


def byte_range(low: float, high: float, is_float: bool = False) -> tuple[float, float]:
    """Return the values that become 0 and 255 in an image of more than 8 bits, by the rules of `read_image`.

    Args:
        low: the smallest value of the image.
        high: the largest value of the image.
        is_float: whether the values are floating point.

    Examples:
        >>> byte_range(12, 200), byte_range(0, 65535), byte_range(0, 4095)
        ((0, 255), (0, 65535), (0, 4095))
    """
    full = 1 if is_float and high <= 1 else 65535
    if low >= 0 and high <= 255 and full != 1:
        return 0, 255
    if low == high or (low >= 0 and high <= full and high - low >= full / 2):
        return 0, full
    return low, high


def _bytes_of(values: np.ndarray) -> np.ndarray:
    """Round numbers to uint8; values outside 0 to 255 become 0 or 255."""
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _tensor_as_array(tensor: torch.Tensor) -> np.ndarray:
    """Convert a tensor ``(C, H, W)``, uint8 or floating point from 0 to 1, to a uint8 array ``(H, W, C)``."""
    values = tensor.detach().cpu()
    if values.ndim == 3 and values.shape[0] in (1, 3, 4) and values.numel():
        if values.is_floating_point() and values.min() >= 0 and values.max() <= 1:
            return _bytes_of(values.permute(1, 2, 0).float().numpy() * 255)
        if str(values.dtype) == "torch.uint8":
            return values.permute(1, 2, 0).numpy()
    bounds = f", values from {values.min():g} to {values.max():g}" if values.numel() else ""
    raise SppdetError(
        f"an image cannot be a {values.dtype} tensor of shape {tuple(values.shape)}{bounds}: "
        "give (3, H, W), uint8 or floating point from 0 to 1"
    )


def _array_as_rgb(array: np.ndarray) -> np.ndarray:
    """Return a grey, RGB or RGBA uint8 array as RGB ``(H, W, 3)``."""
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or channels not in (1, 3, 4) or array.size == 0:
        raise SppdetError(
            f"an image cannot be a {array.dtype} array of shape {array.shape}: "
            "give uint8 of shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)"
        )
    if channels == 1:
        return np.repeat(array.reshape(*array.shape[:2], 1), 3, axis=2)
    if channels == 4:
        if not array[..., 3].any():  # a file that says nothing of opacity, such as many a BMP
            return np.ascontiguousarray(array[..., :3])
        opacity = array[..., 3:] / np.float32(255)
        return _bytes_of(array[..., :3] * opacity + 255 * (1 - opacity))
    return np.ascontiguousarray(array)


def scaled_size(width: int, height: int, factor: float) -> tuple[int, int]:
    """Return width and height in pixels of an image resized by ``factor``, each at least 1.

    Examples:
        >>> scaled_size(500, 375, 1.28)
        (640, 480)
    """
    return max(1, round(width * factor)), max(1, round(height * factor))
