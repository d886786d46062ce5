"""Which way and how steeply an image's brightness changes: the texture of selective search (IJCV 2013, section 3.2).

As OpenCV's SelectiveSearchSegmentationStrategyTexture has it: Scharr's derivatives along x and y, and along x and y of
the image turned by 45 degrees, turned back. What rises and what falls are two images each, stretched to the range
they have in the whole image.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sppdet.utils import compiled

DIRECTIONS = 4
SLOPES = 20  # bins of one derivative: 10 of what falls, steepest first, 10 of what rises, steepest last

_AXES = ((1, 0), (0, 1))


def bins_of_slopes(image: np.ndarray) -> np.ndarray:
    """The bin of each pixel of a uint8 image ``(H, W, C)``: uint8 ``(4, H, W * C)``; level ones count as falling."""
    height, width, channels = image.shape
    bins = np.empty((DIRECTIONS, height, width * channels), np.uint8)
    for own, (slopes, first) in zip(bins, derivatives(image)):
        _quantise(slopes, first, channels, own)
    return bins


def derivatives(image: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
    """The four derivatives of a uint8 image ``(H, W, C)``: float32 ``(H, n)``, and where a row's ``W * C`` begin.

    They share memory: each holds until the next is asked for. (Fresh memory costs more than the arithmetic.)
    """
    import cv2

    height, width, channels = image.shape
    slopes = None
    for axis in _AXES:
        slopes = cv2.Scharr(image, cv2.CV_32F, *axis, dst=slopes)
        yield slopes.reshape(height, -1), 0
    turned, back, (left, top) = _turned(image)
    back[:, 2] += back[:, 1] * top  # turned back as far as it is needed: rows from `top` on, columns up to the last one
    slopes, straight, linear = None, None, cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    for axis in _AXES:
        slopes = cv2.Scharr(turned, cv2.CV_32F, *axis, dst=slopes)
        straight = cv2.warpAffine(slopes, back, (left + width, height), straight, linear)
        yield straight.reshape(height, -1), left * channels


def _turned(image: np.ndarray) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """An image turned by 45 degrees, the map from its turning back to it, and where the image then begins."""
    import cv2

    height, width = image.shape[:2]
    centre = (width / 2, height / 2)
    corners = cv2.boxPoints((centre, (width, height), 45.0))
    size = (np.ceil(corners.max(axis=0)) - np.floor(corners.min(axis=0))).astype(int) + 1
    turn = cv2.getRotationMatrix2D(centre, 45.0, 1.0)
    turn[:, 2] += size / 2 - centre
    back = cv2.invertAffineTransform(cv2.getRotationMatrix2D((size // 2).tolist(), -45.0, 1.0))
    left, top = np.maximum(size - (width, height), 0) // 2  # a long image's turned box is shorter than the image
    return cv2.warpAffine(image, turn, size.tolist()), back, (int(left), int(top))


@compiled()
def _quantise(slopes, first, channels, bins):
    """``bins`` ``(H, W * C)`` of one derivative: each channel's rising and falling part are stretched to 0 to 255."""
    height, length = bins.shape
    lowest, highest = slopes[0, first : first + length].copy(), slopes[0, first : first + length].copy()
    for y in range(1, height):
        row = slopes[y, first : first + length]
        for i in range(length):
            lowest[i] = min(lowest[i], row[i])
            highest[i] = max(highest[i], row[i])
    # Of every number of a row: what it is multiplied with and what is added, where it rises and where it falls.
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
def _stretch(low, high):
    """Factor and summand that bring numbers from ``low`` to ``high`` to the range from 0 to 255."""
    if low == high:
        return np.float32(0), np.float32(255)
    return np.float32(255 / (high - low)), np.float32(-255 * low / (high - low))
