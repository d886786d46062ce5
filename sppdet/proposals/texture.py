"""Texture of selective search (IJCV 2013, section 3.2): the direction and steepness of brightness changes.

As in OpenCV's SelectiveSearchSegmentationStrategyTexture: Scharr's derivatives along x and y of the image, and along x
and y of the image turned by 45 degrees, turned back. Negative and positive values of a derivative count separately,
each stretched to its range in the whole image.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from sppdet.utils import compiled

DIRECTIONS = 4
SLOPES = 20  # bins of one derivative: 10 of negative values, steepest first, then 10 of positive ones, steepest last

_AXES = ((1, 0), (0, 1))
# A turned image has twice the pixels of a square image, but 480 million where the image measures 1 x 31,000: 7 GB with
# three channels and a derivative. It is held whole where it has at most 2^23 pixels (126 MB) or four times those of the
# image (which is not longer than about 6:1 then), and computed in tiles otherwise.
_LARGEST_TURNED = 1 << 23
_LARGEST_FACTOR = 4
_TILE = 1024  # pixels per side of a tile


def bins_of_slopes(image: np.ndarray) -> np.ndarray:
    """Return the bin of each pixel in each derivative.

    Args:
        image: uint8 ``(H, W, C)``.

    Returns:
        uint8 ``(4, H, W * C)``: 0 to 9 where the derivative is negative or 0, 10 to 19 where it is positive.
    """
    height, width, channels = image.shape
    bins = np.empty((DIRECTIONS, height, width * channels), np.uint8)
    for direction, (slopes, first) in zip(bins, derivatives(image)):
        _quantise(slopes, first, channels, direction)
    return bins


def derivatives(image: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
    """Compute the four derivatives of a uint8 image ``(H, W, C)``: along x, y and the two diagonals.

    Yields:
        A float32 array ``(H, n)`` and the column at which the ``W * C`` values of its rows begin. The next derivative
        overwrites the array: new memory costs more time than the arithmetic.
    """
    import cv2

    height, width = image.shape[:2]
    slopes = None
    for axis in _AXES:
        slopes = cv2.Scharr(image, cv2.CV_32F, *axis, dst=slopes)
        yield slopes.reshape(height, -1), 0
    turn = _Turn.of(image)
    whole = turn.width * turn.height <= max(_LARGEST_TURNED, _LARGEST_FACTOR * height * width)
    yield from _whole_diagonals(image, turn) if whole else _tiled_diagonals(image, turn)


class _Turn(NamedTuple):
    """Geometry of an image turned by 45 degrees, and of its way back."""

    width: int  # of the turned image
    height: int
    forward: np.ndarray  # (2, 3): from pixels of the turned image to pixels of the image
    back: np.ndarray  # (2, 3): from pixels of the image turned back to pixels of the turned image
    left: int  # where the image begins in the image turned back
    top: int

    @classmethod
    def of(cls, image: np.ndarray) -> _Turn:
        """Return the geometry that OpenCV computes for an image ``(H, W, C)``."""
        import cv2

        height, width = image.shape[:2]
        centre = (width / 2, height / 2)
        corners = cv2.boxPoints((centre, (width, height), 45.0))
        size = (np.ceil(corners.max(axis=0)) - np.floor(corners.min(axis=0))).astype(int) + 1
        turn = cv2.getRotationMatrix2D(centre, 45.0, 1.0)
        turn[:, 2] += size / 2 - centre
        back = cv2.invertAffineTransform(cv2.getRotationMatrix2D((size // 2).tolist(), -45.0, 1.0))
        left, top = np.maximum(size - (width, height), 0) // 2  # 0 where the turned image is shorter than the image
        return cls(int(size[0]), int(size[1]), cv2.invertAffineTransform(turn), back, int(left), int(top))


def _whole_diagonals(image: np.ndarray, turn: _Turn) -> Iterator[tuple[np.ndarray, int]]:
    """Compute the derivatives along the diagonals, as `derivatives` yields them."""
    import cv2

    height, width, channels = image.shape
    turned = _warp(image, turn.forward, 0, turn.height, turn.width)
    slopes, straight = None, None
    for axis in _AXES:
        slopes = cv2.Scharr(turned, cv2.CV_32F, *axis, dst=slopes)
        straight = _warp(slopes, turn.back, turn.top, height, turn.left + width, straight)
        yield straight.reshape(height, -1), turn.left * channels


def _tiled_diagonals(image: np.ndarray, turn: _Turn) -> Iterator[tuple[np.ndarray, int]]:
    """Compute the values of `_whole_diagonals` tile by tile, in little memory."""
    height, width = image.shape[:2]
    straight = np.empty((len(_AXES), *image.shape), np.float32)
    for y in range(0, height, _TILE):
        for x in range(0, width, _TILE):
            tile = straight[:, y : y + _TILE, x : x + _TILE]
            _compute_tile(image, turn, x, y, tile)
    for slopes in straight:
        yield slopes.reshape(height, -1), 0


def _compute_tile(image: np.ndarray, turn: _Turn, x: int, y: int, tile: np.ndarray) -> None:
    """Write the derivatives along both diagonals to the tile ``(2, h, w, C)`` whose first pixel is ``x, y``."""
    import cv2

    _, height, width, channels = tile.shape
    left, top = turn.left + x, turn.top + y
    corners = np.array([(u, v, 1) for u in (left, left + width) for v in (top, top + height)]) @ turn.back.T
    # The pixels of the turned image that are needed, with two more: for Scharr's filter and for the interpolation.
    x1, y1 = np.maximum(np.floor(corners.min(axis=0)).astype(int) - 2, 0).tolist()
    x2, y2 = np.minimum(np.ceil(corners.max(axis=0)).astype(int) + 3, (turn.width, turn.height)).tolist()
    if x1 >= x2 or y1 >= y2:
        tile[:] = 0
        return
    turned = _warp(image, turn.forward, y1, y2 - y1, x2)[:, x1:]
    back = turn.back - np.array([[0, 0, x1], [0, 0, y1]])
    for out, axis in zip(tile, _AXES):
        straight = _warp(cv2.Scharr(turned, cv2.CV_32F, *axis), back, top, height, left + width)
        out[:] = straight.reshape(height, -1, channels)[:, left:]


def _warp(
    source: np.ndarray, matrix: np.ndarray, top: int, height: int, width: int, out: np.ndarray | None = None
) -> np.ndarray:
    """Return ``height`` rows, from row ``top`` on, of an image warped to ``width`` columns.

    Columns always begin at 0: OpenCV rounds a pixel's position in two terms, one for its column and one for its row,
    so that other rows can be left out but a first column other than 0 would change the values.

    Args:
        source: ``(H, W, C)``.
        matrix: ``(2, 3)`` from pixels of the result to pixels of ``source``.
        out: array of the result's shape to write to.
    """
    import cv2

    matrix = matrix.copy()
    matrix[:, 2] += matrix[:, 1] * top
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(source, matrix, (width, height), out, flags)


@compiled()
def _quantise(slopes: np.ndarray, first: int, channels: int, bins: np.ndarray) -> None:
    """Write the ``bins`` ``(H, W * C)`` of one derivative, whose rows begin at column ``first`` of ``slopes``.

    For each channel, the negative and the positive values are stretched to 0 to 255 and cut into ten bins.
    """
    height, length = bins.shape
    lowest, highest = slopes[0, first : first + length].copy(), slopes[0, first : first + length].copy()
    for y in range(1, height):
        row = slopes[y, first : first + length]
        for i in range(length):
            lowest[i] = min(lowest[i], row[i])
            highest[i] = max(highest[i], row[i])
    # For every column: the factor and the summand of its channel.
    rising, falling = np.empty((2, length), np.float32), np.empty((2, length), np.float32)
    for c in range(channels):
        low, high = np.float64(lowest[c::channels].min()), np.float64(highest[c::channels].max())
        rising[0, c::channels], rising[1, c::channels] = _stretch(max(low, 0.0), max(high, 0.0))
        falling[0, c::channels], falling[1, c::channels] = _stretch(min(low, 0.0), min(high, 0.0))
    for y in range(height):
        row = slopes[y, first : first + length]
        for i in range(length):
            slope = row[i]
            if slope > 0:
                level = np.rint(slope * rising[0, i] + rising[1, i])
            else:
                level = np.rint(slope * falling[0, i] + falling[1, i])
            bins[y, i] = (np.int32(level) * np.int32(10) >> 8) + (np.int32(10) if slope > 0 else np.int32(0))


@compiled()
def _stretch(low: float, high: float) -> tuple[np.float32, np.float32]:
    """Return factor and summand that map the numbers from ``low`` to ``high`` to the range from 0 to 255."""
    if low == high:
        return np.float32(0), np.float32(255)
    return np.float32(255 / (high - low)), np.float32(-255 * low / (high - low))
