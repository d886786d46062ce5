"""Thumbnails of a report: the surroundings of an example, as a small JPEG inside the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from sppdet.data import Dataset
from sppdet.evaluation.report.examples import Example, Marked
from sppdet.ops import boxes as geometry
from sppdet.utils import SppdetError, parallel_map

_SHAPE = 4 / 3  # width by height
_SURROUNDINGS = 1.9  # sides of a thumbnail by those of its box
_LEAST = 160  # pixels of the image across a thumbnail, where the image has them
# Longest side and JPEG quality, tried in turn until the file is small enough; the last one is taken in any case.
_TRIES = ((340, 78), (340, 50), (220, 45))
_BYTES = 30_000
_TOTAL = 2_200_000  # bytes of all JPEGs; they take a third more as text


@dataclass(frozen=True)
class Thumbnail:
    """An example as the page shows it.

    Attributes:
        example: what it shows.
        name: id of the image.
        uri: the JPEG as a ``data:`` address; empty where there is none.
        size: width and height of the region in pixels of the image.
        boxes: (x, y, width, height, marked) of each box in the region, relative to it, the focus last.
        problem: why there is no JPEG.
    """

    example: Example
    name: str
    uri: str
    size: tuple[float, float]
    boxes: list[tuple[float, float, float, float, Marked]]
    problem: str = ""


def make_thumbnails(dataset: Dataset, examples: Sequence[Example], workers: int) -> list[Thumbnail]:
    """Make the thumbnails of examples; an image that cannot be read gives one without a JPEG.

    Args:
        dataset: the images.
        examples: what to show.
        workers: number of images at a time; 0 for one per core.

    Returns:
        A thumbnail for each example, in the same order. The last ones have no JPEG if all together would be too large.
    """
    images = sorted({example.image for example in examples})

    def jpegs_of(image: int) -> list[bytes | str]:
        regions = [_region(dataset, example) for example in examples if example.image == image]
        try:
            pixels = dataset[image].open()
            return [_jpeg(pixels.read(region)) for region in regions]
        except (SppdetError, OSError) as error:
            return [f"cannot be read: {error}"] * len(regions)

    made: dict[int, Iterator[bytes | str]] = {}
    for image, jpegs in zip(images, parallel_map(jpegs_of, images, workers, "thumbnails", threads=True)):
        made[image] = iter(jpegs)
    total, result = 0, []
    for example in examples:
        jpeg: bytes | str = next(made[example.image])
        if isinstance(jpeg, bytes):
            total += len(jpeg)
            jpeg = jpeg if total <= _TOTAL else "left out: the report would become too large"
        result.append(_thumbnail(dataset, example, jpeg))
    return result


def _thumbnail(dataset: Dataset, example: Example, jpeg: bytes | str) -> Thumbnail:
    """Return the thumbnail of an example from its JPEG, or from the reason why there is none."""
    x1, y1, x2, y2 = _region(dataset, example)
    boxes = []
    for marked in (*example.others, example.focus):
        left, top = max(float(marked.box[0]), x1), max(float(marked.box[1]), y1)
        right, bottom = min(float(marked.box[2]), x2), min(float(marked.box[3]), y2)
        if left < right and top < bottom:
            boxes.append((left - x1, top - y1, right - left, bottom - top, marked))
    is_jpeg = isinstance(jpeg, bytes)
    return Thumbnail(
        example,
        dataset[example.image].id,
        "data:image/jpeg;base64," + base64.b64encode(jpeg).decode() if isinstance(jpeg, bytes) else "",
        (x2 - x1, y2 - y1),
        boxes,
        "" if is_jpeg else str(jpeg),
    )


def _region(dataset: Dataset, example: Example) -> tuple[int, int, int, int]:
    """Return x1, y1, x2, y2 of the surroundings of the example's box, inside the image."""
    width, height = dataset[example.image].width, dataset[example.image].height
    x1, y1, x2, y2 = geometry.clip(example.focus.box[None].astype(np.float64), width, height)[0].tolist()
    across = max(_SURROUNDINGS * (x2 - x1), _SURROUNDINGS * (y2 - y1) * _SHAPE, _LEAST)
    across, down = min(across, width), min(across / _SHAPE, height)
    left = min(max((x1 + x2 - across) / 2, 0), width - across)
    top = min(max((y1 + y2 - down) / 2, 0), height - down)
    return int(left), int(top), min(int(np.ceil(left + across)), width), min(int(np.ceil(top + down)), height)


def _jpeg(pixels: np.ndarray) -> bytes:
    """Return pixels as a JPEG."""
    crop = Image.fromarray(pixels)
    content = b""
    for side, quality in _TRIES:
        factor = min(1, side / max(crop.size))
        small = crop.resize((max(1, round(crop.width * factor)), max(1, round(crop.height * factor))))
        file = io.BytesIO()
        small.save(file, "JPEG", quality=quality, optimize=True)
        content = file.getvalue()
        if len(content) <= _BYTES:
            break
    return content
