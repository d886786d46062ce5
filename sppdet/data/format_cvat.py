"""CVAT's own XML ("CVAT for images"): all images of a task in one file."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

from sppdet.data.annotations import Annotation, Object, decide_fractions
from sppdet.data.listing import Listing, expecting, split_name, start_of
from sppdet.data.polygons import box_around, ellipse_box, turned_box
from sppdet.data.problems import Problem
from sppdet.data.voc_xml import parse_xml
from sppdet.utils import SppdetError


def recognise(listing: Listing) -> list[Path]:
    """Return the XML files that begin like CVAT's."""
    starts = {path: start_of(path) for path in listing.with_suffix(".xml")}
    return [
        path
        for path, start in starts.items()
        if re.search(r"<annotations\b", start) and re.search(r"<(meta|image|track|version)\b", start)
    ]


def read(listing: Listing, files: Sequence[Path], problems: list[Problem]) -> list[Annotation]:
    """Read annotations; polygons, lines of points, ellipses and masks become the boxes around them."""
    annotations: list[Annotation] = []
    for file in files:
        try:
            with expecting(file, "CVAT's XML"):
                root = parse_xml(file)
                if root.find("track") is not None:
                    raise SppdetError(f"{file}: is CVAT's XML for videos; export the task as 'CVAT for images'")
                images = [_read_image(listing, file, element, problems) for element in root.findall("image")]
                annotations += decide_fractions(images)
        except SppdetError as error:
            problems.append(Problem("annotation", str(file), str(error), True))
    return annotations


def _read_image(listing: Listing, file: Path, element: ET.Element, problems: list[Problem]) -> Annotation:
    """Read one image with its shapes."""
    name = element.attrib["name"]
    objects = []
    for shape in element:
        label = shape.get("label")
        if label is None or shape.tag in ("tag", "skeleton"):
            continue
        if corners := _corners(shape):
            objects.append(Object(label, corners))
        else:
            message = f"{file}: {name}: a {shape.tag} ({label}) has no box; draw one if it is to be learned"
            problems.append(Problem("object left out", str(file), message))
    size = (int(element.attrib["width"]), int(element.attrib["height"])) if element.get("width") else None
    image = listing.named(name, file)
    split = split_name(element.get("subset") or "") or (listing.split_of(image) if image else None)
    return Annotation(file, image, objects, "edges", size, split, name)


def _corners(shape: ET.Element) -> tuple[float, ...] | None:
    """Return the box around a shape; None for a shape that has none."""
    degrees = float(shape.get("rotation", 0))
    if shape.tag == "box":
        x1, y1, x2, y2 = (float(shape.attrib[name]) for name in ("xtl", "ytl", "xbr", "ybr"))
        return turned_box(x1, y1, x2, y2, degrees) if degrees else (x1, y1, x2, y2)
    if shape.tag in ("polygon", "polyline"):
        return box_around([[float(number) for number in pair.split(",")] for pair in shape.attrib["points"].split(";")])
    if shape.tag == "ellipse":
        cx, cy, rx, ry = (float(shape.attrib[name]) for name in ("cx", "cy", "rx", "ry"))
        return ellipse_box(cx, cy, rx, ry, degrees)
    if shape.tag == "mask":
        left, top, width, height = (float(shape.attrib[name]) for name in ("left", "top", "width", "height"))
        return left, top, left + width, top + height
    return None
