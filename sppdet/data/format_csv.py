"""Tables of boxes: TensorFlow tutorials' ``filename,width,height,class,xmin,...``, Open Images', and without header."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path

from sppdet.data.annotations import Annotation, Object, decide_fractions
from sppdet.data.listing import Listing, expecting, read_text, start_of
from sppdet.data.problems import Problem
from sppdet.utils import SppdetError

# Column, in lower case -> what it holds.
_COLUMNS = {
    "image": ("filename", "file_name", "imageid", "image_id", "image", "image_path", "path", "file", "img"),
    "name": ("class", "labelname", "label", "class_name", "classname", "name", "category"),
    "left": ("xmin", "x_min", "x1", "left"),
    "top": ("ymin", "y_min", "y1", "top"),
    "right": ("xmax", "x_max", "x2", "right"),
    "bottom": ("ymax", "y_max", "y2", "bottom"),
    "width": ("width", "img_width", "image_width"),
    "height": ("height", "img_height", "image_height"),
}
_NEEDED = ("image", "name", "left", "top", "right", "bottom")
_CORNERS = ("left", "top", "right", "bottom")


def recognise(listing: Listing) -> list[Path]:
    """Return the tables that have the columns of boxes, by their starts, so that reading them names what is wrong."""
    return [path for path in listing.with_suffix(".csv", ".tsv") if _columns(_rows(start_of(path), 1)) is not None]


def _rows(text: str, limit: int | None = None) -> list[list[str]]:
    """Return the first rows of a table.

    Raises:
        ValueError: a cell goes on over many lines.
    """
    lines = [line for line in text.splitlines() if line.strip()][:limit]
    separator = max(",;\t", key=lines[0].count) if lines else ","
    try:
        return [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=separator)]
    except csv.Error as error:
        raise ValueError(str(error)) from None


def _is_empty(cells: Sequence[str]) -> bool:
    """Whether cells hold nothing, which pandas may write as ``nan``."""
    return all(cell.lower() in ("", "nan") for cell in cells)


def _columns(rows: list[list[str]]) -> dict[str, int] | None:
    """Return the number of each column that matters; None if the table is no table of boxes."""
    if not rows:
        return None
    header = [cell.lower() for cell in rows[0]]
    columns = {
        what: header.index(name) for what, names in _COLUMNS.items() for name in reversed(names) if name in header
    }
    if all(what in columns for what in _NEEDED):
        return columns
    first = rows[0]
    if len(first) == 6 and (all(map(_is_number, first[1:5])) or _is_empty(first[1:5])):  # RetinaNet's: no header
        return {"image": 0, "left": 1, "top": 2, "right": 3, "bottom": 4, "name": 5}
    return None


def _is_number(text: str) -> bool:
    """Whether a cell holds a finite number."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def read(listing: Listing, files: Sequence[Path], problems: list[Problem]) -> list[Annotation]:
    """Read annotations. A row with an image alone is an image without objects.

    Pixels in columns such as ``xmin`` are counted as in VOC, from which these tables are made; ``x1`` is an edge. Open
    Images has fractions.
    """
    descriptions = _descriptions(listing)
    annotations: list[Annotation] = []
    for file in files:
        by_name: dict[str, Annotation] = {}
        try:
            with expecting(file, "a table of boxes"):
                _read_file(listing, file, descriptions, by_name)
        except SppdetError as error:
            problems.append(Problem("annotation", str(file), str(error), True))
        annotations += decide_fractions(list(by_name.values()))
    return annotations


def _read_file(listing: Listing, file: Path, descriptions: dict[str, str], annotations: dict[str, Annotation]) -> None:
    """Add the rows of one table to the annotations of their images, by the images' names."""
    rows = _rows(read_text(file))
    columns = _columns(rows)
    if columns is None:
        return
    header = [cell.lower() for cell in rows[0]]
    open_images = "isgroupof" in header or "imageid" in header
    has_header = header[columns["image"]] in _COLUMNS["image"]
    for number, row in enumerate(rows[has_header:], 1 + has_header):
        if len(row) <= max(columns.values()):
            raise ValueError(f"row {number} has {len(row)} columns")
        name = row[columns["image"]]
        annotation = annotations.get(name)
        if annotation is None:
            image = listing.named(name, file) or listing.of_stem(Path(name).name, file)
            split = listing.split_of(file) or (listing.split_of(image) if image else None)
            size = _size(row, columns)
            unit = "fractions" if open_images else "voc" if header[columns["left"]] in ("xmin", "x_min") else "edges"
            annotation = annotations[name] = Annotation(file, image, [], unit, size, split, name)
        texts = [row[columns[what]] for what in _CORNERS]
        if _is_empty(texts):
            continue
        if not all(map(_is_number, texts)):
            raise ValueError(f"row {number} has a corner that is no number: {', '.join(texts)}")
        label = row[columns["name"]]
        group = open_images and "isgroupof" in header and row[header.index("isgroupof")] == "1"
        annotation.objects.append(Object(descriptions.get(label, label), tuple(map(float, texts)), group))


def _size(row: list[str], columns: dict[str, int]) -> tuple[int, int] | None:
    """Return width and height of the image, where the table has both."""
    if "width" not in columns or "height" not in columns:
        return None
    texts = [row[columns["width"]], row[columns["height"]]]
    width, height = (int(float(text)) if _is_number(text) else 0 for text in texts)
    return (width, height) if width > 0 and height > 0 else None


def _descriptions(listing: Listing) -> dict[str, str]:
    """Return Open Images' names of classes by their codes, such as ``/m/01g317``."""
    tables = [path for path in listing.with_suffix(".csv") if "class-descriptions" in path.name.lower()]
    return {row[0]: row[1] for path in tables for row in _rows(read_text(path)) if len(row) == 2}
