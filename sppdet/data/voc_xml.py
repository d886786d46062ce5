"""One annotation in PASCAL VOC's XML, in every form that tools write."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sppdet.data.annotations import Object
from sppdet.data.polygons import turned_box
from sppdet.utils import SppdetError

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


class VocXml(NamedTuple):
    """Content of one annotation file.

    Attributes:
        objects: one for each box; corners in pixels from 1, the last one included.
        size: width and height of the image, where the file has both.
        filename: of the image, where the file has it.
    """

    objects: list[Object]
    size: tuple[int, int] | None
    filename: str | None


def parse_xml(path: Path) -> ET.Element:
    """Return the root of an XML file, with all tags in lower case and without namespaces.

    Raises:
        SppdetError: the file cannot be read, or is not XML.
    """
    try:
        root = ET.parse(path).getroot()
    except FileNotFoundError:
        raise SppdetError(f"{path}: no such annotation; add it or drop the id from the split") from None
    except (ET.ParseError, ValueError, LookupError) as error:  # the last two: a wrong or an unknown encoding
        raise SppdetError(f"{path}: is not well-formed XML ({error}); correct it") from None
    except OSError as error:
        raise SppdetError(f"{path}: cannot be read ({error.strerror}); check the file") from None
    for element in root.iter():
        if isinstance(element.tag, str):
            element.tag = element.tag.rpartition("}")[2].lower()
    return root


def read_voc_xml(path: Path) -> VocXml:
    """Read an annotation file.

    Objects may lie below the root or deeper, each with one box or several. Tags may have a namespace and any case.
    The boxes of an object's parts (head, hand, foot) are passed over.

    Raises:
        SppdetError: the file is not XML, has boxes elsewhere than in objects, describes several images, or has no
            object and another root than VOC's; or an object has no name, no box or a corner that is no number.
    """
    root = parse_xml(path)
    elements = list(_objects(root))
    if not elements and root.tag != "annotation":
        raise SppdetError(
            f"{path}: holds <{root.tag}> without <object>, expected VOC's <annotation>; export it as PASCAL VOC"
        )
    if not elements and (box := next((e for e in root.iter() if e.tag in ("bndbox", "xmin", "box", "polygon")), None)):
        raise SppdetError(f"{path}: holds <{box.tag}> outside of any <object>; export it as PASCAL VOC")
    if sum(1 for _ in root.iter("filename")) > 1:
        raise SppdetError(f"{path}: describes several images; export one file per image")
    objects = [item for number, element in enumerate(elements, 1) for item in _read_object(path, number, element)]
    width, height = (_number(next(root.iter(tag), None)) for tag in ("width", "height"))
    size = (int(width), int(height)) if width >= 1 and height >= 1 else None
    filename = next((element.text or "" for element in root.iter("filename")), "").strip()
    return VocXml(objects, size, filename or None)


def _objects(element: ET.Element) -> Iterator[ET.Element]:
    """Yield the objects below an element, but none inside another object."""
    for child in element:
        if child.tag == "object":
            yield child
        else:
            yield from _objects(child)


def _read_object(path: Path, number: int, element: ET.Element) -> list[Object]:
    """Read the ``number``-th object, counted from 1, of the annotation at ``path``: one `Object` for each box."""
    name = (element.findtext("name") or "").strip()
    if not name:
        raise SppdetError(f"{path}: object {number} has no name; add one or delete the object")
    # `findall` looks at direct children only, so the box of a <part> is never mistaken for the box of the object.
    boxes = element.findall("bndbox")
    if not boxes:
        tags = ", ".join(f"<{child.tag}>" for child in element if child.tag != "name")
        holds = f", but {tags}" if tags else ""
        raise SppdetError(f"{path}: object {number} ({name}) has no bndbox{holds}; add one or delete the object")
    difficult = (element.findtext("difficult") or "").strip().lower() in ("1", "true")
    attributes = {item.findtext("name"): item.find("value") for item in element.iter("attribute")}
    degrees = _number(attributes.get("rotation"))  # CVAT's, of a box that was turned
    objects = []
    for box in boxes:
        corners = tuple(_number(box.find(tag)) for tag in _CORNERS)
        if not np.isfinite(corners).all():
            texts = [(box.findtext(tag) or "").strip() for tag in _CORNERS]
            pairs = ", ".join(f"{tag}={text or 'missing'}" for tag, text in zip(_CORNERS, texts))
            raise SppdetError(f"{path}: object {number} ({name}) has a corner that is no number ({pairs}); correct it")
        if degrees and np.isfinite(degrees):
            x1, y1, x2, y2 = corners
            x1, y1, x2, y2 = turned_box(x1 - 1, y1 - 1, x2, y2, degrees)
            corners = x1 + 1, y1 + 1, x2, y2
        objects.append(Object(name, corners, difficult))
    return objects


def _number(element: ET.Element | None) -> float:
    """Return the number in an element; NaN without one."""
    try:
        number = float((element.text or "") if element is not None else "")
    except ValueError:
        return np.nan
    return number if np.isfinite(number) else np.nan
