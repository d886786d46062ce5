"""LabelMe's JSON: one file per image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sppdet.data.annotations import Annotation, Object
from sppdet.data.json_files import json_files, read_json_file
from sppdet.data.listing import Listing, expecting
from sppdet.data.polygons import box_around
from sppdet.data.problems import Problem
from sppdet.utils import SppdetError


def recognise(listing: Listing) -> list[Path]:
    """Return the JSON files that hold shapes of an image as LabelMe's do."""
    return json_files(listing, _is_labelme, r'"(shapes|imagePath)"\s*:')


def _is_labelme(content: Any) -> bool:
    return isinstance(content, dict) and "shapes" in content and "imagePath" in content


def read(listing: Listing, files: Sequence[Path], problems: list[Problem]) -> list[Annotation]:
    """Read annotations; polygons and circles become the boxes around them."""
    annotations = []
    for file in files:
        try:
            with expecting(file, "LabelMe's JSON"):
                annotations.append(_read_file(listing, file, read_json_file(file), problems))
        except SppdetError as error:
            problems.append(Problem("annotation", str(file), str(error), True))
    return annotations


def _read_file(listing: Listing, file: Path, content: dict, problems: list[Problem]) -> Annotation:
    """Read one file."""
    objects = []
    for number, shape in enumerate(content["shapes"], 1):
        label, corners = str(shape["label"]), _corners(shape)
        if corners is None:
            message = f"{file}: shape {number} ({label}) is a {shape.get('shape_type')}, which has no box; draw one"
            problems.append(Problem("object left out", str(file), message))
        else:
            objects.append(Object(label, corners))
    size = (int(content["imageWidth"]), int(content["imageHeight"])) if content.get("imageWidth") else None
    image = listing.named(str(content["imagePath"]), file) or listing.of_stem(file.stem, file)
    split = listing.split_of(file) or (listing.split_of(image) if image else None)
    return Annotation(file, image, objects, "edges", size, split, str(content["imagePath"]))


def _corners(shape: dict) -> tuple[float, ...] | None:
    """Return the box around a shape, whose points may be in any order; None for a kind that has no box."""
    kind, points = shape.get("shape_type") or "polygon", shape["points"]
    if kind == "circle":
        (x, y), edge = points
        radius = math.dist((x, y), edge)
        return x - radius, y - radius, x + radius, y + radius
    if kind in ("rectangle", "polygon", "linestrip", "mask", "rotation") and len(points) >= 2:
        return box_around(points)
    return None
