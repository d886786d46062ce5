"""CVAT's own XML ("CVAT for images"): all images of a task in one file."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

from sppdet.data.annotations import Annotation, Object
from sppdet.data.listing import Listing, expecting
from sppdet.data.polygons import box_around, turned_box
from sppdet.data.problems import Problem
from sppdet.data.voc_xml import parse_xml
from sppdet.utils import SppdetError


def recognise(listing: Listing) -> list[Path]:
    """Return the XML files that begin like CVAT's."""
    files = []
    for path in listing.with_suffix(".xml"):
        try:
            with open(path, "rb") as file:
                start = file.read(4096)
        except OSError:
            continue
        if re.search(rb"<annotations\b", start) and re.search(rb"<(meta|image|track|version)\b", start):
            files.append(path)
    return files


def read(listing: Listing, files: Sequence[Path], problems: list[Problem]) -> list[Annotation]:
    """Read annotations; polygons, lines of points and ellipses become the boxes around them."""
    annotations = []
    for file in files:
        try:
            with expecting(file, "CVAT's XML"):
                root = parse_xml(file)
                if root.find("track") is not None:
                    raise SppdetError(f"{file}: is CVAT's XML for videos; export the task as 'CVAT for images'")
                for element in root.findall("image"):
                    annotations.append(_read_image(listing, file, element, problems))
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
    split = (element.get("subset") or "").lower() or None
    if split in ("default", None):
        split = listing.split_of(image) if image else None
    return Annotation(file, image, objects, "edges", size, split, name)


def _corners(shape: ET.Element) -> tuple[float, ...] | None:
    """Return the box around a shape; None for a shape that has none."""
    if shape.tag == "box" and not float(shape.get("rotation", 0)):
        return tuple(float(shape.attrib[name]) for name in ("xtl", "ytl", "xbr", "ybr"))
    if shape.tag == "box":
        x1, y1, x2, y2 = (float(shape.attrib[name]) for name in ("xtl", "ytl", "xbr", "ybr"))
        return turned_box(x1, y1, x2, y2, float(shape.attrib["rotation"]))
    if shape.tag in ("polygon", "polyline"):
        return box_around([[float(number) for number in pair.split(",")] for pair in shape.attrib["points"].split(";")])
    if shape.tag == "ellipse":
        cx, cy, rx, ry = (float(shape.attrib[name]) for name in ("cx", "cy", "rx", "ry"))
        return cx - rx, cy - ry, cx + rx, cy + ry
    return None
