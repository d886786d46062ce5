"""Windows on conv maps: the scale at which each window is read, and its rectangle in conv cells."""

from __future__ import annotations

import numpy as np

from sppdet.data import scaled_size
from sppdet.networks import CellGrid
from sppdet.ops import boxes as geometry


def scale_factor(width: int, height: int, scale: int, max_side: int) -> float:
    """By how much an image is enlarged so that its shorter side is ``scale``, its longer at most ``max_side``."""
    return min(scale / min(width, height), max_side / max(width, height))


def choose_scales(boxes: np.ndarray, factors: np.ndarray, target: int) -> np.ndarray:
    """``(N,)`` index of the scale at which each window's number of pixels is closest to ``target`` squared.

    He et al. 2014, section 4.1: of the five scales the one "such that the scaled candidate window has the number of
    pixels closest to 224 x 224". A tie goes to the smaller index.

    Args:
        boxes: ``(N, 4)`` in image pixels.
        factors: ``(S,)`` enlargement of the image at each scale.
    """
    pixels = geometry.areas(boxes)[:, None].astype(np.float64) * np.asarray(factors, np.float64) ** 2
    return np.abs(pixels - float(target) ** 2).argmin(axis=1)


def project(
    boxes: np.ndarray,
    image_size: tuple[int, int],
    factor: float,
    grid: CellGrid,
    map_size: tuple[int, int],
    shrink: float,
) -> np.ndarray:
    """Windows as rectangles of conv cells: int32 ``(N, 4)`` half-open ``x1, y1, x2, y2``, at least one cell each.

    The original program's formula (SPP_net, spm_response_boxes.m), here 0-based. With l and r the first and last
    pixel of the window, moved to the scaled image by (short side scaled - 1) / (short side - 1)::

        first = floor((l - centre + shrink) / stride + 1/2)
        last  = ceil((r - centre - shrink) / stride - 1/2)

    With ``shrink`` half a stride this is the paper's own mapping (appendix A), floor((l - centre) / stride) + 1 and
    ceil((r - centre) / stride) - 1: the cells whose centres lie between the edges.

    Where last < first, both become the middle, (first + last) // 2; then both are clamped to the map.

    Args:
        boxes: ``(N, 4)`` pixel edges in the image, whose ``(width, height)`` is ``image_size``.
        factor: enlargement of the image.
        grid: the trunk's cells; ``map_size`` is their ``(width, height)``.
        shrink: pixels by which both edges move inwards first; the program's 6.5 for stride 16.
    """
    shorter = min(image_size)
    ratio = (shorter * factor - 1) / (shorter - 1) if shorter > 1 else factor
    pixels = boxes.astype(np.float64) - [0, 0, 1, 1]  # first and last pixel, 0-based
    cells = (pixels * ratio - grid.centre) / grid.stride
    inwards = shrink / grid.stride
    first = np.floor(cells[:, :2] + inwards + 0.5).astype(np.int64)
    last = np.ceil(cells[:, 2:] - inwards - 0.5).astype(np.int64)
    middle = (first + last) // 2
    crossed = first > last
    first, last = np.where(crossed, middle, first), np.where(crossed, middle, last)
    highest = np.array(map_size) - 1
    first, last = np.clip(first, 0, highest), np.clip(last, 0, highest)
    return np.concatenate([first, last + 1], axis=1).astype(np.int32)


def locate(
    boxes: np.ndarray, image_size: tuple[int, int], factor: float, grid: CellGrid, map_size: tuple[int, int]
) -> np.ndarray:
    """Windows on a map, not rounded to its cells: float32 ``(N, 4)`` edges in cells; cell i reaches from i to i + 1.

    Edges move with the image, each side by what it is enlarged after rounding. The middle of pixel p of the scaled
    image is at p + 1/2, the middle of cell i at i + 1/2, and the cell is centred on pixel ``centre + stride * i``;
    so ``edge = (x - 1/2 - centre) / stride + 1/2``. RoIAlign's ``aligned`` takes such edges as they are.

    Edges further out than half a cell from the map, where RoIAlign would read zeros, are moved there, and a window
    keeps at least a pixel a side. Arguments are those of :func:`project`.
    """
    ratio = np.array(scaled_size(*image_size, factor)) / image_size
    edges = (boxes.astype(np.float64) * np.tile(ratio, 2) - 0.5 - grid.centre) / grid.stride + 0.5
    pixel, furthest = 1 / grid.stride, np.array(map_size) + 0.5
    first = np.clip(edges[:, :2], -0.5, furthest - pixel)
    last = np.clip(edges[:, 2:], first + pixel, furthest)
    return np.concatenate([first, last], axis=1).astype(np.float32)
