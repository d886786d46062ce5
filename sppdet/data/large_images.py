"""Images read part by part: small ones from memory, large ones from their file, so that memory does not grow with them.

A file of more than 64 million pixels is read by libvips (the extra ``large``), which decodes what a part needs. Formats
that can only be decoded from their beginning, such as PNG, are decoded once into a temporary file on disk.
"""

from __future__ import annotations

import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from sppdet.data.images import ImageLike, TooManyPixels, byte_range, image_header, image_size, read_image, to_rgb
from sppdet.utils import SppdetError

if TYPE_CHECKING:
    import pyvips

_IN_MEMORY = 64_000_000  # pixels up to which a file is decoded as a whole: 192 MB
_OVERVIEW = 4000  # pixels of the longer side of the overview of an image that is not in memory, at most
_STRIP = 64  # rows of the overview that are read at a time


class Pixels(ABC):
    """The pixels of an image, of which parts can be read; the orientation of EXIF is applied.

    Attributes:
        width: of the whole image, in pixels.
        height: of the whole image, in pixels.
    """

    width: int
    height: int

    @abstractmethod
    def read(self, box: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the part ``x1, y1, x2, y2`` of the image as a contiguous RGB uint8 array ``(H, W, 3)``."""

    def overview(self) -> tuple[np.ndarray, float]:
        """Return the whole image ``(H, W, 3)``, shrunk if it is not in memory, and the factor by which it is.

        It is shrunk strip by strip: libvips would take as much memory as for the whole image.
        """
        import cv2

        step = -(-max(self.width, self.height) // _OVERVIEW)
        width, height = max(1, self.width // step), max(1, self.height // step)
        shrunk = np.empty((height, width, 3), np.uint8)
        for y in range(0, height, _STRIP):
            rows = min(_STRIP, height - y)
            strip = self.read((0, step * y, min(step * width, self.width), min(step * (y + rows), self.height)))
            shrunk[y : y + rows] = cv2.resize(strip, (width, rows), interpolation=cv2.INTER_AREA)
        return shrunk, 1 / step


class PixelsInMemory(Pixels):
    """An image that is an array, which may be mapped from a file.

    Examples:
        >>> PixelsInMemory(np.zeros((20, 30, 3), np.uint8)).read((10, 0, 30, 5)).shape
        (5, 20, 3)
    """

    def __init__(self, array: np.ndarray):
        self._array = array
        self.height, self.width = array.shape[:2]

    def read(self, box: Sequence[int] | np.ndarray) -> np.ndarray:
        x1, y1, x2, y2 = box
        return np.ascontiguousarray(self._array[y1:y2, x1:x2])

    def overview(self) -> tuple[np.ndarray, float]:
        return super().overview() if isinstance(self._array, np.memmap) else (self._array, 1.0)


class PixelsInFile(Pixels):
    """An image that libvips reads part by part.

    Args:
        path: the file.

    Raises:
        SppdetError: the file cannot be read, or its pixels are no colours.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self._path, self._lock = path, Lock()
        with _naming(path):
            self._image = _as_rgb(_open(path).autorot(), path)
        self.width, self.height = self._image.width, self._image.height

    def read(self, box: Sequence[int] | np.ndarray) -> np.ndarray:
        x1, y1, x2, y2 = (int(edge) for edge in box)
        with self._lock, _naming(self._path):
            return self._image.crop(x1, y1, x2 - x1, y2 - y1).numpy()


def open_pixels(image: ImageLike, bgr: bool = False) -> Pixels:
    """Open an image to read parts of it.

    Args:
        image: as `sppdet.data.to_rgb` takes it. An RGB array that is mapped from a file (`numpy.memmap`) stays there.
        bgr: whether the channels of arrays and tensors are blue, green, red.

    Raises:
        SppdetError: the image cannot be read; or it has more pixels than Pillow reads, and libvips is not installed.
    """
    if isinstance(image, np.memmap) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and not bgr:
        return PixelsInMemory(image)
    if not isinstance(image, (str, os.PathLike)):
        return PixelsInMemory(to_rgb(image, bgr))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # this is what parts are for
            width, height = image_size(image)
        if width * height <= _IN_MEMORY or not _has_vips():
            return PixelsInMemory(read_image(image))
    except TooManyPixels:
        _require_vips(image)
    return PixelsInFile(image)


def header_of_any_size(path: str | os.PathLike[str]) -> tuple[int, int, int]:
    """Return what `sppdet.data.images.image_header` does, also of an image with more pixels than Pillow reads.

    Raises:
        SppdetError: as `open_pixels`.
    """
    try:
        return image_header(path)
    except TooManyPixels:
        _require_vips(path)
    with _naming(path):
        image = _open(path)
        orientation = int(image.get("orientation")) if image.get_typeof("orientation") else 1
        width, height = image.width, image.height
    return (height, width, orientation) if orientation >= 5 else (width, height, orientation)


def read_tile(path: Path, tile: tuple[int, int, int, int]) -> np.ndarray:
    """Return the part ``x1, y1, x2, y2`` of the image in a file, as `Pixels.read` does.

    The last images stay open, as the tiles of an image are read one after another.

    Raises:
        SppdetError: the file is not there, or as `open_pixels`.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise SppdetError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    return _opened(path, status.st_mtime_ns, status.st_size).read(tile)


@lru_cache(maxsize=2)
def _opened(path: Path, *version: int) -> Pixels:
    return open_pixels(path)


def _has_vips() -> bool:
    """Whether libvips and its Python package are installed."""
    try:
        import pyvips  # noqa: F401
    except (ImportError, OSError):
        return False
    return True


def _require_vips(path: str | os.PathLike[str]) -> None:
    """Refuse an image that only libvips can read if that is not installed."""
    if not _has_vips():
        raise SppdetError(
            f"{path}: has more pixels than can be read at once; pip install 'sppdet[large]' to read it in parts, with "
            "--tiles or data.tiles"
        ) from None


@contextmanager
def _naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn errors of libvips about a file into a `SppdetError` of one line."""
    import pyvips

    try:
        yield
    except pyvips.Error as error:
        reason = " ".join(str(error).split())
        raise SppdetError(f"{path}: cannot be read ({reason}); copy it again or save it anew") from None


def _open(path: str | os.PathLike[str]) -> pyvips.Image:
    import pyvips

    pyvips.block_untrusted_set(True)  # only the loaders that libvips tests against damaged files
    # By its source, as libvips looks for options in the brackets of a file's name.
    source = pyvips.Source.new_from_file(os.fspath(path))
    image = pyvips.Image.new_from_source(source, "")
    # As Pillow does it, a JPEG that is cut off is decoded as far as it goes, and other damage is an error.
    is_jpeg = image.get("vips-loader").startswith("jpegload")
    return image if is_jpeg else pyvips.Image.new_from_source(source, "", fail_on="truncated")


def _as_rgb(image: Any, path: str | os.PathLike[str]) -> Any:
    """Return an image of libvips with three channels of 8 bits, by the rules of `sppdet.data.read_image`."""
    if image.interpretation == "cmyk":
        image = image.colourspace("srgb")
    colours = image.bands - 1 if image.hasalpha() else image.bands
    if colours not in (1, 3) or image.format not in ("uchar", "ushort"):
        raise SppdetError(
            f"{path}: has {image.bands} channels of type {image.format}; save it as RGB with 8 bits per channel"
        )
    opacity = image[colours] if image.hasalpha() else None
    image = image[0:colours]
    if image.format == "ushort":
        black, white = byte_range(image.min(), image.max())
        image = ((image - black) * (255 / (white - black))).rint().cast("uchar")
        opacity = opacity if opacity is None else (opacity / 257).rint().cast("uchar")
    image = (image if colours == 3 else image.bandjoin([image, image])).copy(interpretation="srgb")
    if opacity is None or opacity.max() == 0:  # nowhere opaque: a file that says nothing of opacity
        return image
    return image.bandjoin(opacity).flatten(background=255)
