"""Windows on feature maps: the scale at which each window is read, and its rectangle in cells."""

from __future__ import annotations

import numpy as np

from sppdet.data import scaled_size
from sppdet.networks import CellGrid
from sppdet.ops import boxes as geometry


def scale_factor(width: int, height: int, scale: int, max_side: int) -> float:
    """Return the enlargement of an image whose shorter side becomes ``scale`` pixels, its longer at most ``max_side``.

    Examples:
        >>> scale_factor(500, 400, scale=480, max_side=2500)
        1.2
        >>> scale_factor(1000, 100, scale=480, max_side=2500)
        2.5
    """
    return min(scale / min(width, height), max_side / max(width, height))


def choose_scales(boxes: np.ndarray, factors: np.ndarray, target: int) -> np.ndarray:
    """Choose for each window the scale at which its number of pixels is closest to ``target`` squared.

    He et al. 2014, section 4.1: of the five scales the one "such that the scaled candidate window has the number of
    pixels closest to 224 x 224".

    Args:
        boxes: ``(N, 4)`` pixel edges in the image.
        factors: ``(S,)`` enlargement of the image at each scale.
        target: pixels per side.

    Returns:
        int64 ``(N,)`` index of the scale; a tie goes to the smaller index.

    Examples:
        >>> boxes = np.array([[0, 0, 100, 100], [0, 0, 200, 200]], np.float32)
        >>> choose_scales(boxes, np.array([1.0, 2.0]), target=224).tolist()
        [1, 0]
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
    """Round windows to rectangles of whole cells.

    This is the formula of the original program (SPP_net, spm_response_boxes.m), here 0-based. With l and r the first
    and last pixel of the window, moved to the scaled image by (short side scaled - 1) / (short side - 1)::

        first = floor((l - centre + shrink) / stride + 1/2)
        last  = ceil((r - centre - shrink) / stride - 1/2)

    With ``shrink`` half a stride this is the mapping of the paper (appendix A), floor((l - centre) / stride) + 1 and
    ceil((r - centre) / stride) - 1: the cells whose centres lie between the edges.

    Where last < first, both become the middle, (first + last) // 2; then both are clamped to the map.

    Args:
        boxes: ``(N, 4)`` pixel edges in the image.
        image_size: ``(width, height)`` of the image.
        factor: enlargement of the image.
        grid: where the trunk's cells lie in the scaled image.
        map_size: ``(width, height)`` of the map in cells.
        shrink: pixels of the scaled image by which both edges move inwards first; 6.5 in the program, for stride 16.

    Returns:
        int32 ``(N, 4)`` half-open ``x1, y1, x2, y2`` in cells, at least one cell each.

    Examples:
        >>> window = np.array([[16, 16, 48, 48]], np.float32)
        >>> project(window, (100, 100), 1.0, CellGrid(16, 0.0), (7, 7), shrink=8.0).tolist()
        [[2, 2, 3, 3]]
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
    """Move windows to a map without rounding them to its cells.

    An edge moves with the image: width and height are enlarged by what each becomes after rounding to pixels. The
    middle of pixel p of the scaled image is at p + 1/2, the middle of cell i at i + 1/2, and the cell is centred on
    pixel ``centre + stride * i``; so ``edge = (x - 1/2 - centre) / stride + 1/2``. RoIAlign takes such edges with
    ``aligned``.

    Edges further than half a cell outside the map, where RoIAlign would read zeros, move to half a cell outside. A
    window keeps at least a pixel per side.

    Args:
        boxes: ``(N, 4)`` pixel edges in the image.
        image_size: ``(width, height)`` of the image.
        factor: enlargement of the image.
        grid: where the trunk's cells lie in the scaled image.
        map_size: ``(width, height)`` of the map in cells.

    Returns:
        float32 ``(N, 4)`` edges ``x1, y1, x2, y2`` in cells; cell i reaches from i to i + 1.

    Examples:
        >>> window = np.array([[16, 32, 48, 40]], np.float32)
        >>> locate(window, (100, 100), 1.0, CellGrid(16, 7.5), (7, 7)).tolist()
        [[1.0, 2.0, 3.0, 2.5]]
    """
    ratio = np.array(scaled_size(*image_size, factor)) / image_size
    edges = (boxes.astype(np.float64) * np.tile(ratio, 2) - 0.5 - grid.centre) / grid.stride + 0.5
    pixel, furthest = 1 / grid.stride, np.array(map_size) + 0.5
    first = np.clip(edges[:, :2], -0.5, furthest - pixel)
    last = np.clip(edges[:, 2:], first + pixel, furthest)
    return np.concatenate([first, last], axis=1).astype(np.float32)
