"""Selective search (Uijlings et al., IJCV 2013) of our own: what OpenCV's does, each thing computed once.

An image is segmented in several colour spaces with several k (:mod:`sppdet.proposals.segmentation`), and each segmentation is
grouped by several mixes of similarities (:mod:`sppdet.proposals.grouping`). All regions' boxes, each once, are the windows.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial

import numpy as np

from sppdet.proposals import grouping, segmentation, texture
from sppdet.proposals.grouping import Regions, group
from sppdet.proposals.segmentation import segment
from sppdet.utils import marker

VERSION = 2  # of the windows: to be raised with every change that alters them
_MIN_SIZE = 100  # pixels of a segment: OpenCV's

# Weights of colour, texture, size and fill.
ALL = (0.25, 0.25, 0.25, 0.25)
NO_COLOUR = (0.0, 1 / 3, 1 / 3, 1 / 3)
SIZE = (0.0, 0.0, 1.0, 0.0)
FILL = (0.0, 0.0, 0.0, 1.0)


@dataclass(frozen=True)
class Recipe:
    """What is combined with what.

    Attributes:
        colours: names of colour spaces: hsv, lab, grey, blue, rgi (red, green, grey).
        segmentations: how many k.
        mixes: the similarities' weights of each grouping.
    """

    colours: tuple[str, ...]
    segmentations: int
    mixes: tuple[tuple[float, float, float, float], ...]


# `fast` and `quality` are OpenCV's switchToSelectiveSearchFast and switchToSelectiveSearchQuality. The latter means to
# take the hue, as the paper does, but writes the blue channel over it before it is used. `balanced` is `fast` with two
# more k, which cost little time here (docs/proposals.md).
RECIPES = {
    "fast": Recipe(("hsv", "lab"), 3, (ALL, NO_COLOUR)),
    "balanced": Recipe(("hsv", "lab"), 5, (ALL, NO_COLOUR)),
    "quality": Recipe(("hsv", "lab", "grey", "blue", "rgi"), 5, (ALL, NO_COLOUR, FILL, SIZE)),
}


def selective_search(
    image: np.ndarray, recipe: Recipe, base_k: float, inc_k: float, sigma: float, threads: int = 1
) -> np.ndarray:
    """Windows of an RGB uint8 image ``(H, W, 3)``, best first: int32 ``(N, 4)`` x1, y1, x2, y2, half-open.

    Neither they nor their order depend on ``threads``.
    """
    ks = [base_k + i * inc_k for i in range(recipe.segmentations)]
    with _announced(), _mapper(threads) as mapped:
        described = mapped(partial(_describe, image, ks=ks, sigma=sigma), recipe.colours)
        segmentations = list(itertools.chain.from_iterable(described))
        groupings = list(mapped(lambda work: group(*work), itertools.product(segmentations, recipe.mixes)))
    return _ranked(groupings, *image.shape[:2])


@contextmanager
def _announced() -> Iterator[None]:
    """Say so where what follows compiles first, and note on disk that it has."""
    if _in_memory():
        yield
        return
    done = marker(grouping._group, (segmentation.__file__, grouping.__file__, texture.__file__))
    if done is None or not done.exists():
        print("selective search is compiled: once, half a minute", file=sys.stderr, flush=True)
    yield
    with suppress(OSError):
        if done:
            done.touch()


def _in_memory() -> bool:
    """Whether the last function needed is compiled in this process."""
    return bool(grouping._group.signatures)


@contextmanager
def _mapper(threads: int) -> Iterator[Callable]:
    if threads < 2:
        yield map
        return
    with ThreadPoolExecutor(threads) as pool:
        yield pool.map


def _describe(image: np.ndarray, colour: str, ks: list[float], sigma: float) -> list[Regions]:
    """The regions of each segmentation in one colour space."""
    converted = in_colour(image, colour)
    pieces, labels = segment(converted, ks, sigma, _MIN_SIZE)
    regions = Regions.of(converted, pieces, labels.shape[1])
    return [regions.merged(row) for row in labels]


def in_colour(image: np.ndarray, colour: str) -> np.ndarray:
    """An RGB image in a colour space, as 8-bit OpenCV has them: uint8 ``(H, W, C)``."""
    import cv2

    if colour in ("hsv", "lab"):
        return cv2.cvtColor(image, {"hsv": cv2.COLOR_RGB2HSV, "lab": cv2.COLOR_RGB2LAB}[colour])
    if colour == "blue":
        return np.ascontiguousarray(image[:, :, 2:])
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[:, :, None]
    return grey if colour == "grey" else np.concatenate([image[:, :, :2], grey], axis=2)


def _ranked(groupings: list[np.ndarray], height: int, width: int) -> np.ndarray:
    """Each window once, best first.

    A grouping says -log(place / regions) for each of its windows, where the place is counted from its end: the last
    regions to be joined are the largest and fewest. A window's score is the sum over the groupings that found it. In
    order of score, the place of a window is then multiplied by the square of its number among the windows like it, so
    that a short list is not filled with copies of one region.
    """
    boxes = np.concatenate(groupings)
    # In whole steps: no machine's logarithm shows in its last bit, and sums are exact.
    scores = np.concatenate(
        [np.rint(-1024 * np.log(np.arange(len(found), 0, -1) / (len(found) + 1))) for found in groupings]
    )
    x1, y1, x2, y2 = boxes.T.astype(np.int64)
    keys = ((x1 * (height + 1) + y1) * (width + 1) + x2) * (height + 1) + y2
    _, first, window = np.unique(keys, return_index=True, return_inverse=True)
    boxes, scores = boxes[first], np.bincount(window, scores)
    order = np.argsort(-scores, kind="stable")
    boxes = boxes[order]
    places = np.arange(1, len(boxes) + 1) * _number_within(_cells(boxes)) ** 2
    return boxes[np.argsort(places, kind="stable")]


def _cells(boxes: np.ndarray) -> np.ndarray:
    """A whole number for each box, the same for boxes that are alike: sides within 1.3, middles within a third."""
    bounds = np.unique(np.rint(1.3 ** np.arange(50)).astype(np.int64))
    bins = np.searchsorted(bounds, boxes[:, 2:] - boxes[:, :2], side="right") - 1
    middles = (boxes[:, :2] + boxes[:, 2:]) // (2 * np.maximum(bounds[bins] // 3, 1))
    (w, h), (x, y) = bins.T, middles.T
    return ((w * len(bounds) + h) * (x.max() + 1) + x) * (y.max() + 1) + y


def _number_within(groups: np.ndarray) -> np.ndarray:
    """1 for the first item of each group, 2 for the second, ..."""
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=groups[order[0]] - 1))
    numbers = np.empty(len(groups), np.int64)
    numbers[order] = np.arange(1, len(groups) + 1) - np.repeat(starts, np.diff(starts, append=len(groups)))
    return numbers
