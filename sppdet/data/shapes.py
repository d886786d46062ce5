"""``shapes``: a synthetic detection data set in VOC's layout, drawn on demand.

Figures of six classes, turned and stretched, lie on a cluttered background among distractors, figures of no class.
Colour and texture are drawn independently of the class and figures hide parts of each other, so that only the form
tells the class.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from sppdet.data.voc import write_voc_annotation
from sppdet.utils import SppdetError, atomic_write, write_json

CLASSES = ("circle", "cross", "ring", "square", "star", "triangle")
_MARKER = "shapes.json"  # holds the parameters of the data set, and whether it is complete
_VISIBLE = 0.4  # an object is `difficult` if less than this share of its pixels is visible
_SMALLEST_SIDE = 64  # pixels


def make_shapes(
    root: str | os.PathLike,
    train: int = 300,
    test: int = 100,
    seed: int = 0,
    size: tuple[int, int] = (320, 240),
) -> Path:
    """Draw a data set in VOC's layout, with the splits ``train``, ``trainval`` (equal to ``train``) and ``test``.

    Image i of a split depends on ``seed`` and ``size`` alone, not on the number of images. A complete folder is left
    as it is; one whose drawing was interrupted is drawn again. Read the result with
    `sppdet.data.splits.read_dataset`.

    Args:
        root: folder to draw in: a new one, an empty one, or one that this function wrote.
        train: number of training images.
        test: number of test images.
        seed: of the random numbers, from 0.
        size: width and height in pixels. Images vary around it by 15%, and some are turned upright.

    Returns:
        ``root``.

    Raises:
        SppdetError: a parameter is out of range, or ``root`` holds other files or shapes of other parameters, which
            stay untouched.
    """
    if train < 1 or test < 1 or seed < 0 or min(size) < _SMALLEST_SIDE:
        raise SppdetError(
            f"shapes of train={train}, test={test}, seed={seed}, size={tuple(size)}: give at least one "
            f"image of each split, a seed from 0 and sides from {_SMALLEST_SIDE} pixels"
        )
    root = Path(root)
    parameters = {"version": 2, "train": train, "test": test, "seed": seed, "size": list(size)}
    if _is_complete(root, parameters):
        return root
    # Written first, too: it tells an interrupted folder, which may be drawn again, from a folder of other files.
    write_json(root / _MARKER, {**parameters, "complete": False})
    # Streams 0 and 1 of the seed, so that the images of a split do not depend on the size of the other split.
    train_ids = _draw_split(root, "train", train, (seed, 0), size)
    test_ids = _draw_split(root, "test", test, (seed, 1), size)
    for split, ids in (("train", train_ids), ("trainval", train_ids), ("test", test_ids)):
        _write_text(root / "ImageSets" / "Main" / f"{split}.txt", "\n".join(ids) + "\n")
    write_json(root / _MARKER, {**parameters, "complete": True})
    return root


def _draw_split(root: Path, split: str, count: int, stream: tuple[int, int], size: tuple[int, int]) -> list[str]:
    """Write the images and annotations of a split; return the image ids."""
    ids = [f"{split}_{index:05d}" for index in range(count)]
    for index, image_id in enumerate(ids):
        image, boxes, labels, difficult = draw_shapes(np.random.default_rng([*stream, index]), size)
        height, width = image.shape[:2]
        names = [CLASSES[label] for label in labels]
        file = f"{image_id}.jpg"
        _write_image(root / "JPEGImages" / file, image)
        annotation = root / "Annotations" / f"{image_id}.xml"
        write_voc_annotation(annotation, file, width, height, boxes, names, difficult.tolist())
    return ids


def draw_shapes(
    rng: np.random.Generator, size: tuple[int, int] = (320, 240)
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Draw one image with 1 to 5 objects.

    Args:
        rng: source of every choice.
        size: width and height in pixels, around which the size of the image is drawn.

    Returns:
        The image, RGB uint8 ``(H, W, 3)``; boxes of the whole figures, hidden parts included, cut to the image,
        float32 ``(N, 4)`` ``x1, y1, x2, y2`` in pixel edges from 0; labels that index `CLASSES`, int64
        ``(N,)``; and which objects are difficult, bool ``(N,)``.

    Examples:
        >>> image, boxes, labels, difficult = draw_shapes(np.random.default_rng(0))
        >>> image.shape, [CLASSES[label] for label in labels]
        ((333, 223, 3), ['circle', 'cross', 'cross', 'triangle', 'square'])
    """
    long, short = np.rint(np.array([max(size), min(size)]) * rng.uniform(0.85, 1.15, 2)).astype(int)
    upright = rng.random() < (0.35 if size[0] >= size[1] else 0.65)
    width, height = (short, long) if upright else (long, short)
    canvas = _background(rng, width, height)

    count = int(rng.choice(5, p=[0.2, 0.25, 0.25, 0.18, 0.12])) + 1
    labels = rng.integers(0, len(CLASSES), count)
    kinds = [*(CLASSES[label] for label in labels), *rng.choice(list(_DISTRACTORS), rng.integers(0, 3))]
    figures: dict[int, _Figure] = {}
    owner = np.full((height, width), -1, np.int16)  # number of the figure that each pixel shows
    # In random order: distractors lie both over and under objects.
    for index in rng.permutation(len(kinds)):
        figure = _placed_figure(rng, kinds[index], width, height, list(figures.values()))
        _paint(rng, canvas, figure)
        rows, columns = figure.window
        owner[rows, columns][figure.mask[figure.inside] >= 0.5] = index
        figures[index] = figure
    if rng.random() < 0.5:
        _draw_curves(rng, canvas, int(rng.integers(1, 3)))

    objects = [figures[index] for index in range(count)]
    boxes = np.array([_tight_box(figure) for figure in objects], np.float32)
    visible = [(owner == index).sum() / (figure.mask >= 0.5).sum() for index, figure in enumerate(objects)]
    return _develop(rng, canvas), boxes, labels, np.array(visible) < _VISIBLE


class _Figure(NamedTuple):
    """A figure on a small patch, and the position of the patch in the image."""

    mask: np.ndarray  # opacity of the patch's pixels, 0 to 1
    left: int  # of the patch in the image, pixels
    top: int
    inside: tuple[slice, slice]  # rows and columns of the patch that lie in the image
    window: tuple[slice, slice]  # rows and columns of the image that they cover


def _circle(radius: float = 1, start: float = 0, stop: float = 360) -> np.ndarray:
    """Return the points ``(72, 2)`` of a circle, or of its arc from ``start`` to ``stop`` degrees."""
    angle = np.radians(np.linspace(start, stop, 72, endpoint=stop - start < 360))
    return radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _corners(count: int, inner: float = 1) -> np.ndarray:
    """Return the corners of a regular polygon, or of a star where the radius ``inner`` of its notches is below 1."""
    angle = 2 * math.pi * np.arange(2 * count) / (2 * count) - np.pi / 2
    radius = np.where(np.arange(2 * count) % 2, inner, 1)[:, None]
    points = radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return points if inner < 1 else points[::2]


def _outline(*points: tuple[float, float]) -> np.ndarray:
    """Return points as an array ``(N, 2)``."""
    return np.array(points, float)


# Every figure is a list of closed contours around the origin; a second contour cuts a hole.
_FIGURES = {
    "circle": [_circle()],
    "ring": [_circle(), _circle(0.55)],
    "square": [_outline((-1, -1), (1, -1), (1, 1), (-1, 1))],
    "triangle": [_corners(3)],
    "star": [_corners(5, inner=0.42)],
    "cross": [
        _outline(
            *((-0.33, -1), (0.33, -1), (0.33, -0.33), (1, -0.33), (1, 0.33), (0.33, 0.33)),
            *((0.33, 1), (-0.33, 1), (-0.33, 0.33), (-1, 0.33), (-1, -0.33), (-0.33, -0.33)),
        )
    ],
}
# Figures of no class that resemble the classes.
_DISTRACTORS = {
    "half disc": [_circle(1, 0, 180)],
    "arc": [np.concatenate([_circle(1, 40, 320), _circle(0.6, 40, 320)[::-1]])],
    "hexagon": [_corners(6)],
    "bar": [_outline((-1, -0.22), (1, -0.22), (1, 0.22), (-1, 0.22))],
    "angle": [_outline((-1, -1), (-0.35, -1), (-0.35, 0.35), (1, 0.35), (1, 1), (-1, 1))],
    "tee": [_outline(*((-1, -1), (1, -1), (1, -0.4), (0.3, -0.4)), *((0.3, 1), (-0.3, 1), (-0.3, -0.4), (-1, -0.4)))],
    "arrow": [_outline((0, -1), (0.9, 0.1), (0.35, 0.1), (0.35, 1), (-0.35, 1), (-0.35, 0.1), (-0.9, 0.1))],
    "blob": [_circle() * (1 + 0.3 * np.sin(np.linspace(0, 6 * np.pi, 72, endpoint=False)))[:, None]],
}


def _placed_figure(rng: np.random.Generator, kind: str, width: int, height: int, others: list[_Figure]) -> _Figure:
    """Return a figure that overlaps the others little; in 15 of 100 cases, or after 12 attempts, any figure."""
    crowded = rng.random() < 0.15
    for _ in range(12):
        figure = _figure(rng, kind, width, height)
        if crowded or all(_overlap(figure, other) < 0.15 for other in others):
            break
    return figure


def _figure(rng: np.random.Generator, kind: str, width: int, height: int) -> _Figure:
    """Return a figure of random size, stretch, turn and position."""
    scale = min(width, height) / 240
    side = np.exp(rng.uniform(np.log(30), np.log(140))) * scale
    stretch = np.exp(rng.uniform(np.log(0.6), np.log(1.6)) / 2)
    half = np.clip([side * stretch / 2, side / stretch / 2], 12 * min(scale, 1), 80 * scale)
    turn = np.radians(rng.uniform(0, 360))
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    contours = [points * half @ rotation.T for points in {**_FIGURES, **_DISTRACTORS}[kind]]

    low, high = contours[0].min(axis=0), contours[0].max(axis=0)
    # Up to a tenth of a figure lies outside the image.
    slack = 0.1 * (high - low)
    corner = rng.uniform(-slack, np.maximum(np.array([width, height]) - (high - low) + slack, 1 - slack))
    left, top = np.floor(corner).astype(int) - 2
    offset = corner - low - (left, top)
    columns, rows = np.ceil(high + offset).astype(int) + 3
    mask = np.zeros((rows, columns), np.uint8)
    # OpenCV takes integers, here sixteenths of pixels, and counts from the centres of the pixels.
    fixed = [np.rint((points + offset - 0.5) * 16).astype(np.int32) for points in contours]
    cv2.fillPoly(mask, fixed, 255, cv2.LINE_AA, 4)

    x1, y1, x2, y2 = max(left, 0), max(top, 0), min(left + columns, width), min(top + rows, height)
    inside = (slice(y1 - top, y2 - top), slice(x1 - left, x2 - left))
    return _Figure(mask / np.float32(255), left, top, inside, (slice(y1, y2), slice(x1, x2)))


def _overlap(a: _Figure, b: _Figure) -> float:
    """Return the common area of two patches as a share of the smaller patch."""
    common = 1
    for one, other in zip(a.window, b.window):
        common *= max(0, min(one.stop, other.stop) - max(one.start, other.start))
    smaller = min(math.prod(side.stop - side.start for side in figure.window) for figure in (a, b))
    return common / smaller


def _tight_box(figure: _Figure) -> tuple[int, int, int, int]:
    """Return ``x1, y1, x2, y2`` of the pixels that a figure covers by half or more."""
    solid = figure.mask[figure.inside] >= 0.5
    columns, rows = np.flatnonzero(solid.any(axis=0)), np.flatnonzero(solid.any(axis=1))
    top, left = figure.window[0].start, figure.window[1].start
    return left + columns[0], top + rows[0], left + columns[-1] + 1, top + rows[-1] + 1


def _paint(rng: np.random.Generator, canvas: np.ndarray, figure: _Figure) -> None:
    """Paint a figure onto the canvas, with a soft shadow beside it."""
    view, mask = canvas[figure.window], figure.mask[figure.inside]
    height, width = mask.shape
    surface = _surface(rng, height, width, _contrasting_colour(rng, view.mean(axis=(0, 1))))
    if rng.random() < 0.3:
        rim = mask - cv2.erode(mask, np.ones((3, 3), np.uint8))
        surface = surface * (1 - rng.uniform(0.3, 0.7) * rim[..., None])
    shift = np.array([[1, 0, rng.uniform(-4, 4)], [0, 1, rng.uniform(1, 5)]], np.float32)
    shadow = cv2.GaussianBlur(cv2.warpAffine(mask, shift, (width, height)), (0, 0), 2.5)
    view *= 1 - rng.uniform(0, 0.45) * shadow[..., None]
    view += (surface - view) * mask[..., None]


def _surface(rng: np.random.Generator, height: int, width: int, colour: np.ndarray) -> np.ndarray:
    """Return a plain, shaded, striped, chequered, dotted or speckled patch: float32 ``(H, W, 3)``, 0 to 255."""
    other = colour * rng.uniform(0.45, 0.8) if rng.random() < 0.7 else _colour(rng)
    turn, pitch = rng.uniform(0, math.pi), rng.uniform(5, 14)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    cosine, sine = math.cos(turn), math.sin(turn)
    along, across = x * cosine + y * sine, y * cosine - x * sine
    kind = rng.integers(0, 7)
    if kind <= 1:
        share = np.zeros_like(x)
    elif kind == 2:
        share = (along - along.min()) / max(np.ptp(along), 1)
    elif kind == 3:
        share = _smooth_step(np.sin(along * (2 * math.pi / pitch)))
    elif kind == 4:
        share = _smooth_step(np.sin(along * (math.pi / pitch)) * np.sin(across * (math.pi / pitch)) * 2)
    elif kind == 5:
        share = _smooth_step(np.cos(along * (2 * math.pi / pitch)) + np.cos(across * (2 * math.pi / pitch)) - 0.8)
    else:
        share = _clouds(rng, height, width, cell=rng.uniform(2, 8))
    return _mixed(colour, other, share)


def _mixed(first: np.ndarray, second: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Return the mix of two colours with ``share`` ``(H, W)`` of the second: float32 ``(H, W, 3)``."""
    # One channel at a time: broadcasting over a last axis of 3 is many times slower.
    return cv2.merge([np.float32(a) + np.float32(b - a) * share for a, b in zip(first, second)])


def _smooth_step(wave: np.ndarray) -> np.ndarray:
    """Return 0 below -0.25, 1 above 0.25, and a ramp between."""
    return np.clip(0.5 + 2 * wave, 0, 1)


def _clouds(rng: np.random.Generator, height: int, width: int, cell: float) -> np.ndarray:
    """Return smooth noise ``(height, width)`` from 0 to 1 whose spots measure about ``cell`` pixels."""
    coarse = rng.random((int(height / cell) + 2, int(width / cell) + 2), np.float32)
    return np.clip(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), 0, 1)


def _colour(rng: np.random.Generator) -> np.ndarray:
    """Return a random colour: float32 ``(3,)`` RGB, 0 to 255."""
    hsv = np.array([[[rng.uniform(0, 360), rng.uniform(0.25, 0.95), rng.uniform(0.3, 1)]]], np.float32)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0] * 255


def _contrasting_colour(rng: np.random.Generator, background: np.ndarray) -> np.ndarray:
    """Return a random colour that differs from the background, unless 20 attempts fail."""
    for _ in range(20):
        colour = _colour(rng)
        if np.linalg.norm(colour - background) > 70:
            break
    return colour


def _background(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Return shades of two colours, clouds, faint spots and curves: float32 ``(H, W, 3)``, 0 to 255."""
    first, second = _colour(rng) * 0.75 + 40, _colour(rng) * 0.75 + 40
    turn = rng.uniform(0, 2 * math.pi)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    share = 0.5 + 0.35 * (math.cos(turn) * (2 * x / width - 1) + math.sin(turn) * (2 * y / height - 1))
    share = 0.6 * share + 0.4 * _clouds(rng, height, width, cell=rng.uniform(25, 80))
    canvas = _mixed(first, second, share)
    grain = _clouds(rng, height, width, cell=rng.uniform(3, 9))
    canvas *= cv2.merge([1 + rng.uniform(0.05, 0.25) * (grain - 0.5)] * 3)
    for _ in range(rng.integers(2, 9)):
        _draw_spot(rng, canvas)
    _draw_curves(rng, canvas, int(rng.integers(2, 10)))
    return canvas


def _draw_spot(rng: np.random.Generator, canvas: np.ndarray) -> None:
    """Draw a blurred, ragged, half-transparent spot: clutter whose edge no one mistakes for an edge of a figure."""
    height, width = canvas.shape[:2]
    corners = rng.integers(6, 12)
    angle = np.sort(rng.uniform(0, 2 * math.pi, corners))
    radius = rng.uniform(0.05, 0.25) * min(width, height) * rng.uniform(0.5, 1.3, corners)
    centre = rng.uniform(0, [width, height])
    points = centre + np.stack([np.cos(angle), np.sin(angle)], axis=1) * radius[:, None]
    mask = np.zeros((height, width), np.uint8)
    cv2.fillPoly(mask, [np.rint(points * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
    _blend(canvas, cv2.blur(mask, (9, 9)), _colour(rng), rng.uniform(0.2, 0.7))


def _draw_curves(rng: np.random.Generator, canvas: np.ndarray, count: int) -> None:
    """Draw ``count`` straight or bent strokes across the image."""
    height, width = canvas.shape[:2]
    t = np.linspace(0, 1, 24)[:, None]
    for _ in range(count):
        start, middle, stop = rng.uniform(-0.1, 1.1, (3, 2)) * (width, height)
        if rng.random() < 0.4:
            middle = (start + stop) / 2
        points = (1 - t) ** 2 * start + 2 * t * (1 - t) * middle + t**2 * stop
        mask = np.zeros((height, width), np.uint8)
        stroke = int(rng.integers(1, 4))
        cv2.polylines(mask, [np.rint(points * 16).astype(np.int32)], False, 255, stroke, cv2.LINE_AA, 4)
        _blend(canvas, mask, _colour(rng), rng.uniform(0.3, 0.9))


def _blend(canvas: np.ndarray, mask: np.ndarray, colour: np.ndarray, opacity: float) -> None:
    """Blend a colour into the canvas where ``mask`` (uint8) is above 0."""
    points = cv2.findNonZero(mask)  # masks are mostly empty
    if points is None:  # drawn entirely outside the image
        return
    where = points[:, 0, 1], points[:, 0, 0]
    canvas[where] += (colour - canvas[where]) * (mask[where][:, None] * np.float32(opacity / 255))


def _develop(rng: np.random.Generator, canvas: np.ndarray) -> np.ndarray:
    """Return the canvas as a camera sees it: uneven light, some blur, some noise; uint8."""
    height, width = canvas.shape[:2]
    light = rng.uniform(0.75, 1.2) * (0.75 + 0.5 * _clouds(rng, height, width, cell=max(height, width) / 1.5))
    canvas = canvas * cv2.merge([light] * 3)
    if rng.random() < 0.5:
        canvas = cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.4, 1.3))
    canvas = canvas + cv2.merge([rng.standard_normal((height, width), np.float32) * rng.uniform(1, 9)] * 3)
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8)


def _is_complete(root: Path, parameters: dict) -> bool:
    """Whether ``root`` holds all images of these parameters; an error if it holds anything else."""
    if root.exists() and not root.is_dir():
        raise SppdetError(f"{root}: is a file; give a folder for the shapes")
    marker = root / _MARKER
    if not marker.exists():
        if root.is_dir() and any(not path.name.startswith(".") for path in root.iterdir()):
            raise SppdetError(f"{root}: holds other files; give a new or an empty folder for the shapes")
        return False
    try:
        drawn = json.loads(marker.read_text(encoding="utf-8"))
        complete = drawn.pop("complete")
    except (ValueError, AttributeError, KeyError):
        raise SppdetError(f"{marker}: is damaged; delete the folder {root} and try again") from None
    if complete and drawn != parameters:
        raise SppdetError(f"{root}: holds shapes drawn with {drawn}; delete it or give another folder")
    return complete


def _write_text(path: Path, text: str) -> None:
    """Write a text file in one step."""
    atomic_write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _write_image(path: Path, image: np.ndarray) -> None:
    """Write an RGB image in one step."""
    # As JPEG: the noise makes PNG files three times as large. This quality shows no blocks.
    _, content = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
    atomic_write(path, lambda temporary: temporary.write_bytes(content.tobytes()))
