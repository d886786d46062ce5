"""COCO's JSON: one file for all images, or one per split."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sppdet.data.annotations import Annotation, Object, decide_fractions
from sppdet.data.json_files import json_files, read_json_file
from sppdet.data.listing import Listing, expecting
from sppdet.data.polygons import box_around, turned_box
from sppdet.data.problems import Problem
from sppdet.utils import SppdetError


def recognise(listing: Listing) -> list[Path]:
    """Return the JSON files that hold images and annotations as COCO's do.

    COCO's captions and panoptic segmentations are no objects, and its key points are of objects that the file
    ``instances_...`` beside them has, too.
    """
    files = json_files(listing, _is_coco, r'(?s)^\s*\{.*"(images|annotations|categories)"\s*:\s*\[')
    return [path for path in files if _instances(path) == path or _instances(path) not in files]


def _instances(path: Path) -> Path:
    """Return COCO's file of all objects for a file of key points; any other path as it is."""
    return path.with_name(re.sub("^person_keypoints_", "instances_", path.name))


def _is_coco(content: Any) -> bool:
    """Whether the content of a file has images and objects as COCO's; a file without objects may be one."""
    if not (isinstance(content, dict) and isinstance(content.get("images"), list) and "annotations" in content):
        return False
    listed = content["annotations"] if isinstance(content["annotations"], list) else []
    entries = [entry for entry in listed if isinstance(entry, dict)]
    return not entries or any("category_id" in entry for entry in entries)


def read(listing: Listing, files: Sequence[Path], problems: list[Problem]) -> list[Annotation]:
    """Read annotations. A crowd is a region that is ignored; where a box is missing, the segmentation has it."""
    annotations: list[Annotation] = []
    for file in files:
        try:
            with expecting(file, "COCO's JSON"):
                annotations += decide_fractions(_read_file(listing, file, read_json_file(file), problems))
        except SppdetError as error:
            problems.append(Problem("annotation", str(file), str(error), True))
    return annotations


def _read_file(listing: Listing, file: Path, content: dict, problems: list[Problem]) -> list[Annotation]:
    """Read one file."""
    names = {category["id"]: str(category["name"]) for category in content.get("categories", [])}
    images = {entry["id"]: _read_image(listing, file, entry) for entry in content["images"]}
    if len(images) < len(content["images"]):
        raise SppdetError(f"{file}: several images have one id; export it again")
    unusable = set()
    for entry in content["annotations"] or []:
        what = f"annotation {entry.get('id', '?')}"
        if entry["image_id"] not in images:
            message = f"{file}: {what} is of image {entry['image_id']}, which is not in the list of images; remove it"
            problems.append(Problem("no image", str(file), message, True))
        elif entry["category_id"] not in names:
            message = f"{file}: {what} is of category {entry['category_id']}, which is not in the list; correct it"
            problems.append(Problem("class", str(file), message, True))
            unusable.add(entry["image_id"])
        elif (corners := _corners(entry)) is None:
            message = f"{file}: {what} has neither box nor segmentation; remove it"
            problems.append(Problem("object left out", str(file), message))
        else:
            difficult = bool(entry.get("difficult", 0))  # written by us, beside `iscrowd`
            crowd = bool(entry.get("iscrowd", 0)) and not difficult
            item = Object(names[entry["category_id"]], corners, difficult, crowd)
            images[entry["image_id"]].objects.append(item)
    return [annotation for image_id, annotation in images.items() if image_id not in unusable]


def _read_image(listing: Listing, file: Path, entry: dict) -> Annotation:
    """Read one entry of the list of images."""
    name = str(entry["file_name"])
    width, height = entry.get("width") or 0, entry.get("height") or 0
    size = (int(width), int(height)) if width and height else None
    image = listing.named(name, file)
    split = listing.split_of(file) or (listing.split_of(image) if image else None)
    return Annotation(file, image, [], "edges", size, split, name)


def _corners(entry: dict) -> tuple[float, ...] | None:
    """Return the box of an annotation, else the box around its segmentation; None without both."""
    box = entry.get("bbox") or []
    if len(box) == 4 and any(box):
        x, y, width, height = map(float, box)
        corners = x, y, x + width, y + height
        attributes = entry.get("attributes")
        degrees = attributes.get("rotation") if isinstance(attributes, dict) else None  # CVAT's
        return turned_box(*corners, degrees) if degrees and isinstance(degrees, int | float) else corners
    if box and len(box) != 4:
        raise ValueError(f"a bbox of {len(box)} numbers")
    segmentation = entry.get("segmentation")
    if isinstance(segmentation, dict):
        return _box_of_mask(segmentation)
    numbers = [float(number) for polygon in segmentation or [] for number in polygon]
    return box_around(list(zip(numbers[::2], numbers[1::2]))) if len(numbers) >= 4 else None


def _box_of_mask(mask: dict) -> tuple[float, ...]:
    """Return the box around a run-length encoded mask."""
    from pycocotools import mask as masks

    height, width = mask["size"]
    encoded = mask if isinstance(mask["counts"], str | bytes) else masks.frPyObjects(mask, height, width)
    x, y, box_width, box_height = (float(number) for number in masks.toBbox(encoded))
    return x, y, x + box_width, y + box_height
