"""Label Studio's JSON: all tasks in one file, in the full form and in the short one (JSON-MIN)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from sppdet.data.annotations import Annotation, Object
from sppdet.data.json_files import json_files, read_json_file
from sppdet.data.listing import Listing, expecting
from sppdet.data.names import file_key
from sppdet.data.polygons import box_around, ellipse_box, turned_box
from sppdet.data.problems import Problem
from sppdet.utils import SppdetError

_SHAPES = ("rectanglelabels", "polygonlabels", "ellipselabels", "labels")


def recognise(listing: Listing) -> list[Path]:
    """Return the JSON files that hold tasks as Label Studio's do."""
    return json_files(listing, _is_label_studio, r'(?s)^\s*\[.*"(annotations|completions|annotator|annotation_id)"\s*:')


def _is_label_studio(content: Any) -> bool:
    if not isinstance(content, list) or not content or not isinstance(content[0], dict):
        return False
    first = content[0]
    full = isinstance(first.get("data"), dict) and ("annotations" in first or "completions" in first)
    return full or (isinstance(first.get("image"), str) and ("annotation_id" in first or "annotator" in first))


def read(listing: Listing, files: Sequence[Path], problems: list[Problem]) -> list[Annotation]:
    """Read annotations; polygons, ellipses and turned rectangles become the boxes around them."""
    annotations = []
    uploads = {file_key(_uploaded(path.name)): path.name for path in listing.images}
    for file in files:
        try:
            with expecting(file, "Label Studio's JSON"):
                for task in read_json_file(file):
                    annotation = _read_task(listing, uploads, file, task, problems)
                    annotations += [annotation] if annotation else []
        except SppdetError as error:
            problems.append(Problem("annotation", str(file), str(error), True))
    return annotations


def _read_task(
    listing: Listing, uploads: dict[str, str], file: Path, task: dict, problems: list[Problem]
) -> Annotation | None:
    """Read one task; None if nobody annotated it. ``uploads``: see `_image`."""
    data = task.get("data", task)
    name = next((data[key] for key in ("image", *data) if isinstance(data.get(key), str)), None)
    if name is None:
        raise ValueError("a task names no image")
    if "data" in task:
        entries = task.get("annotations", task.get("completions")) or []
        done = [entry for entry in entries if not entry.get("was_cancelled") and not entry.get("skipped")]
        if not done:
            return None
        if len(done) > 1:
            message = f"{file}: {name} was annotated {len(done)} times, the first one is used; delete the others"
            problems.append(Problem("object left out", str(file), message))
        values = list(_full(done[0]["result"]))
    else:
        shapes = [value for values in task.values() if isinstance(values, list) for value in values]
        values = [(value, label) for value in shapes if isinstance(value, dict) for label in _labels(value)]
    objects, size = [], None
    for value, label in values:
        if "original_width" in value:
            size = (int(value["original_width"]), int(value["original_height"]))
        corners = _corners(value, size)
        if corners is None:
            message = f"{file}: {name}: an object ({label}) has no box; draw one if it is to be learned"
            problems.append(Problem("object left out", str(file), message))
        else:
            objects.append(Object(label, corners))
    image = _image(listing, uploads, file, name)
    return Annotation(file, image, objects, "fractions", size, listing.split_of(image) if image else None, name)


def _full(results: list[dict]) -> Iterator[tuple[dict, str]]:
    """Yield values and labels of an annotation's results; a shape and its label may be two results of one id."""
    values: dict[str, dict] = {}
    for number, result in enumerate(results):
        value = values.setdefault(str(result.get("id", number)), {})
        value.update(result.get("value", {}))
        value.update({key: result[key] for key in ("original_width", "original_height") if result.get(key)})
    for value in values.values():
        for label in _labels(value):
            yield value, label


def _labels(value: dict) -> list[str]:
    """Return the labels of a shape; none for results that are no shapes, such as choices for the whole image."""
    named = [str(label) for key in _SHAPES for label in value.get(key) or []]
    others = [str(label) for key in value if key.endswith("labels") and key not in _SHAPES for label in value[key]]
    return named or others


def _corners(value: dict, size: tuple[int, int] | None) -> tuple[float, ...] | None:
    """Return the box around a shape as fractions, from its percents; None for a kind that has no box."""
    if "points" in value:
        x1, y1, x2, y2 = box_around(value["points"])
    elif "radiusX" in value:
        x, y, rx, ry = (float(value[key]) for key in ("x", "y", "radiusX", "radiusY"))
        width, height = size or (1, 1)  # of the image: the radii are percents of different sides
        box = ellipse_box(x * width, y * height, rx * width, ry * height, float(value.get("rotation") or 0))
        x1, y1, x2, y2 = box[0] / width, box[1] / height, box[2] / width, box[3] / height
    elif "width" in value and "x" in value:
        x1, y1 = float(value["x"]), float(value["y"])
        x2, y2 = x1 + float(value["width"]), y1 + float(value["height"])
        if value.get("rotation"):  # about the top left corner, on the pixels
            width, height = size or (1, 1)
            box = turned_box(
                x1 * width, y1 * height, x2 * width, y2 * height, value["rotation"], (x1 * width, y1 * height)
            )
            x1, y1, x2, y2 = box[0] / width, box[1] / height, box[2] / width, box[3] / height
    else:
        return None
    return x1 / 100, y1 / 100, x2 / 100, y2 / 100


def _image(listing: Listing, uploads: dict[str, str], file: Path, url: str) -> Path | None:
    """Return the image that a task's URL means.

    Label Studio puts eight digits in front of the name of an upload, and changes some characters: ``uploads`` has the
    images' names by the keys of the changed names.
    """
    parts = urlsplit(url)
    name = unquote(parse_qs(parts.query).get("d", [parts.path])[0])
    image = listing.named(name, file) or listing.named(url, file)
    uploaded = re.sub(r"(^|/)[0-9a-f]{8}-(?=[^/]+$)", r"\1", name)
    image = image or listing.named(uploaded, file)
    return image or listing.named(uploads.get(file_key(uploaded.rpartition("/")[2]), ""), file)


def _uploaded(name: str) -> str:
    """Return a file's name as Label Studio stores it: spaces become ``_``, and brackets and the like disappear."""
    return re.sub(r"[^-\w.]", "", name.strip().replace(" ", "_"))
