"""Our engine of selective search (Uijlings et al., IJCV 2013): OpenCV's results, without its repeated work.

An image is segmented in several colour spaces with several k (`sppdet.proposals.segmentation`), and each
segmentation is grouped with several mixes of similarities (`sppdet.proposals.grouping`). The boxes of all regions,
each once, are the windows.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from sppdet.proposals import grouping, segmentation, texture
from sppdet.proposals.grouping import Regions, group
from sppdet.proposals.segmentation import segment
from sppdet.utils import marker

VERSION = 2  # of the windows; raise it with every change that alters windows or their order
_MIN_SIZE = 100  # pixels of a segment, as in OpenCV

# Mixes: weights of the similarities of colour, texture, size and fill.
ALL = (0.25, 0.25, 0.25, 0.25)
NO_COLOUR = (0.0, 1 / 3, 1 / 3, 1 / 3)
SIZE = (0.0, 0.0, 1.0, 0.0)
FILL = (0.0, 0.0, 0.0, 1.0)


@dataclass(frozen=True)
class Recipe:
    """The segmentations and groupings of a mode.

    Attributes:
        colours: colour spaces (`in_colour`): hsv, lab, grey, blue, rgi.
        segmentations: number of values of k.
        mixes: for each grouping the weights of colour, texture, size and fill.
    """

    colours: tuple[str, ...]
    segmentations: int
    mixes: tuple[tuple[float, float, float, float], ...]


# `fast` and `quality` are OpenCV's switchToSelectiveSearchFast and switchToSelectiveSearchQuality. The latter is meant
# to use the hue, as the paper does, but overwrites it with the blue channel first. `balanced` is `fast` with two more
# k, which cost little time in this engine (docs/proposals.md).
RECIPES = {
    "fast": Recipe(("hsv", "lab"), 3, (ALL, NO_COLOUR)),
    "balanced": Recipe(("hsv", "lab"), 5, (ALL, NO_COLOUR)),
    "quality": Recipe(("hsv", "lab", "grey", "blue", "rgi"), 5, (ALL, NO_COLOUR, FILL, SIZE)),
}


def selective_search(
    image: np.ndarray, recipe: Recipe, base_k: float, inc_k: float, sigma: float, threads: int = 1
) -> np.ndarray:
    """Search an image for windows that may hold objects.

    Args:
        image: RGB uint8 ``(H, W, 3)``.
        recipe: segmentations and groupings, one of `RECIPES` for example.
        base_k: lowest k of the graph segmentation.
        inc_k: step from one k to the next.
        sigma: smoothing before the segmentation, in pixels.
        threads: segmentations and groupings that run at the same time. They change neither windows nor order.

    Returns:
        int32 ``(N, 4)`` ``x1, y1, x2, y2`` in pixel edges, each once, best first.
    """
    ks = [base_k + i * inc_k for i in range(recipe.segmentations)]
    with _announcing_compilation(), _mapper(threads) as map_threads:
        regions = map_threads(partial(_regions, image, ks=ks, sigma=sigma), recipe.colours)
        segmentations = list(itertools.chain.from_iterable(regions))
        groupings = list(map_threads(lambda work: group(*work), itertools.product(segmentations, recipe.mixes)))
    return _ranked(groupings, *image.shape[:2])


@contextmanager
def _announcing_compilation() -> Iterator[None]:
    """Print a line if the code that follows must be compiled first, and remember on disk that it has been."""
    if _in_memory():
        yield
        return
    compiled_file = marker(grouping._group, (segmentation.__file__, grouping.__file__, texture.__file__))
    if compiled_file is None or not compiled_file.exists():
        print("selective search is compiled: once, about half a minute", file=sys.stderr, flush=True)
    yield
    with suppress(OSError):
        if compiled_file:
            compiled_file.touch()


def _in_memory() -> bool:
    """Whether this process has compiled the function that is needed last."""
    return bool(grouping._group.signatures)


@contextmanager
def _mapper(threads: int) -> Iterator[Callable[..., Iterator[Any]]]:
    """Return ``map``, or a ``map`` that runs in a pool of threads."""
    if threads < 2:
        yield map
        return
    with ThreadPoolExecutor(threads) as pool:
        yield pool.map


def _regions(image: np.ndarray, colour: str, ks: list[float], sigma: float) -> list[Regions]:
    """Return the regions of each segmentation, one for each k, in one colour space."""
    converted = in_colour(image, colour)
    pieces, labels = segment(converted, ks, sigma, _MIN_SIZE)
    regions = Regions.of(converted, pieces, labels.shape[1])
    return [regions.merged(row) for row in labels]


def in_colour(image: np.ndarray, colour: str) -> np.ndarray:
    """Convert an RGB uint8 image ``(H, W, 3)`` to a colour space of 8 bits per channel, as OpenCV defines them.

    Args:
        image: RGB uint8 ``(H, W, 3)``.
        colour: ``hsv``, ``lab``, ``grey``, ``blue`` (the blue channel alone) or ``rgi`` (red, green, grey).

    Returns:
        uint8 ``(H, W, C)``; C is 1 for ``grey`` and ``blue``, else 3.

    Examples:
        >>> in_colour(np.full((1, 1, 3), 90, np.uint8), "rgi").tolist()
        [[[90, 90, 90]]]
    """
    import cv2

    if colour in ("hsv", "lab"):
        return cv2.cvtColor(image, {"hsv": cv2.COLOR_RGB2HSV, "lab": cv2.COLOR_RGB2LAB}[colour])
    if colour == "blue":
        return np.ascontiguousarray(image[:, :, 2:])
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[:, :, None]
    return grey if colour == "grey" else np.concatenate([image[:, :, :2], grey], axis=2)


def _ranked(groupings: list[np.ndarray], height: int, width: int) -> np.ndarray:
    """Return the windows of all groupings, each once, best first: int32 ``(N, 4)``.

    A grouping of R regions in the order of joining gives its last one the rank 1, as regions joined late are large and
    few, and its first one the rank R. A region scores -log(rank / (R + 1)), and a window the sum of the scores of all
    regions with this box. Windows are sorted by score. Then the n-th window of a set of similar ones (`_cells`)
    has its position multiplied by n squared, and windows are sorted by the products: without this step, variants of
    one region would fill the first positions.
    """
    boxes = np.concatenate(groupings)
    # Rounded to integers, so that the last bit of a machine's logarithm does not matter and sums are exact.
    scores = np.concatenate([np.rint(-1024 * np.log(np.arange(len(g), 0, -1) / (len(g) + 1))) for g in groupings])
    x1, y1, x2, y2 = boxes.T.astype(np.int64)
    keys = ((x1 * (height + 1) + y1) * (width + 1) + x2) * (height + 1) + y2
    _, first, window = np.unique(keys, return_index=True, return_inverse=True)
    boxes, scores = boxes[first], np.bincount(window, scores)
    order = np.argsort(-scores, kind="stable")
    boxes = boxes[order]
    positions = np.arange(1, len(boxes) + 1) * _number_within(_cells(boxes)) ** 2
    return boxes[np.argsort(positions, kind="stable")]


def _cells(boxes: np.ndarray) -> np.ndarray:
    """Return an int ``(N,)`` that is equal for similar boxes.

    Widths and heights fall into bins whose bounds grow by 1.3, and centres into a grid whose cells measure a third of
    the lower bounds of these bins. Boxes with the same four numbers are similar.
    """
    bounds = np.unique(np.rint(1.3 ** np.arange(50)).astype(np.int64))
    bins = np.searchsorted(bounds, boxes[:, 2:] - boxes[:, :2], side="right") - 1
    centres = (boxes[:, :2] + boxes[:, 2:]) // (2 * np.maximum(bounds[bins] // 3, 1))
    (w, h), (x, y) = bins.T, centres.T
    return ((w * len(bounds) + h) * (x.max() + 1) + x) * (y.max() + 1) + y


def _number_within(groups: np.ndarray) -> np.ndarray:
    """Number the items of each group from 1 in their order: int64 ``(N,)``.

    Examples:
        >>> _number_within(np.array([7, 5, 7, 7, 5])).tolist()
        [1, 1, 2, 3, 2]
    """
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=groups[order[0]] - 1))
    numbers = np.empty(len(groups), np.int64)
    numbers[order] = np.arange(1, len(groups) + 1) - np.repeat(starts, np.diff(starts, append=len(groups)))
    return numbers
