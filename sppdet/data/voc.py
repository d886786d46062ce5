"""Detection data in PASCAL VOC's layout (Everingham et al., IJCV 2010).

A VOC folder holds ``ImageSets/Main/<split>.txt`` (one image id a line), ``Annotations/<id>.xml`` and
``JPEGImages/<id>.<jpg, png, ...>``. Corners in the XML are 1-based and inclusive.
"""

from __future__ import annotations

import difflib
import os
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sppdet.data.dataset import Dataset, Sample
from sppdet.data.images import image_size
from sppdet.ops import clip, from_voc, to_voc
from sppdet.utils import SppdetError, atomic_write

# In order of preference, should an id have several images.
_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


class _Object(NamedTuple):
    name: str
    corners: list[float]  # as in the file: 1-based, inclusive
    difficult: bool


class _Annotation(NamedTuple):
    things: list[_Object]
    size: tuple[int, int] | None  # width and height of the image as the file has it


def read_voc(
    root: str | os.PathLike, split: str, classes: Sequence[str] | None = None, limit: int | None = None
) -> Dataset:
    """The images of one split of a VOC folder.

    ``root`` is the folder itself (VOC2007) or a parent of exactly one (VOCdevkit). ``classes`` fixes the
    labels; by default they are the names found in all annotations of the split, sorted. ``limit`` keeps the
    first images only, and the same labels. Sizes come from the images, not from the XML, so an image
    with an EXIF orientation is taken as displayed. Only an object's own ``bndbox`` is read, not those of its
    parts.

    Boxes that poke out of their image are clipped, and boxes of a single pixel kept, with one warning for
    the data set, which also tells of images whose size is not that of the XML. Raises :class:`SppdetError`
    for a missing folder or split, and one for all files that cannot be used (missing or broken image or
    annotation, inverted box, box outside the image, class not in ``classes``): a line for each of the first ten.
    """
    if limit is not None and limit < 1:
        raise SppdetError(f"limit is {limit}: give 1 or more images, or none for all")
    folder = _voc_folder(Path(root))
    images = _images(folder)
    ids = _read_ids(folder, split, images)
    kept = ids[:limit]
    problems: list[str] = []

    annotations: dict[str, _Annotation] = {}
    for image_id in ids if classes is None else kept:
        try:
            annotations[image_id] = _read_annotation(_annotation(folder, image_id))
        except SppdetError as error:
            problems.append(str(error))
    if classes is None:
        classes = sorted({thing.name for annotation in annotations.values() for thing in annotation.things})

    samples = []
    for image_id in kept:
        try:
            path, width, height = _find_image(folder, images, image_id)
            if image_id in annotations:
                things = annotations[image_id].things
                labels = _labels(_annotation(folder, image_id), things, classes)
                boxes = _clipped(_annotation(folder, image_id), things, width, height)
                difficult = np.array([thing.difficult for thing in things], bool)
                samples.append(Sample(image_id, path, width, height, boxes, labels, difficult))
        except SppdetError as error:
            problems.append(str(error))
    if problems:
        more = [f"and {len(problems) - 10} more"] if len(problems) > 10 else []
        raise SppdetError("\n".join(problems[:10] + more))

    remarks = _remarks(samples, annotations)
    if remarks:
        warnings.warn(f"{folder}, split {split}: {'; '.join(remarks)}", UserWarning, stacklevel=2)
    return Dataset(tuple(classes), tuple(samples))


def write_voc_annotation(
    path: str | os.PathLike,
    file_name: str,
    width: int,
    height: int,
    boxes: np.ndarray,
    names: Sequence[str],
    difficult: Sequence[bool],
) -> None:
    """Writes one annotation file: ``boxes`` ``(N, 4)`` in our convention, and their names and flags."""
    root = ET.Element("annotation")
    ET.SubElement(root, "filename").text = file_name
    size = ET.SubElement(root, "size")
    for tag, value in (("width", width), ("height", height), ("depth", 3)):
        ET.SubElement(size, tag).text = str(value)
    for corners, name, hard in zip(to_voc(boxes), names, difficult, strict=True):
        thing = ET.SubElement(root, "object")
        ET.SubElement(thing, "name").text = name
        ET.SubElement(thing, "difficult").text = str(int(hard))
        box = ET.SubElement(thing, "bndbox")
        for tag, value in zip(_CORNERS, corners):
            ET.SubElement(box, tag).text = np.format_float_positional(np.float32(value), trim="-")
    ET.indent(root)
    content = ET.tostring(root, encoding="utf-8") + b"\n"
    atomic_write(path, lambda temporary: temporary.write_bytes(content))


def _voc_folder(root: Path) -> Path:
    if not root.is_dir():
        raise SppdetError(f"{root}: no such folder; give a VOC folder such as VOCdevkit/VOC2007")
    if (root / "ImageSets" / "Main").is_dir():
        return root
    # The devkit keeps its programs beside the data, in VOCcode: only a folder with splits counts.
    found = sorted(path for path in root.glob("VOC*") if (path / "ImageSets" / "Main").is_dir())
    if len(found) > 1:
        raise SppdetError(f"{root}: holds several VOC folders ({_listed(found)}); give one of them")
    if not found:
        raise SppdetError(f"{root}: no VOC folder, ImageSets/Main is missing; give the folder that holds ImageSets")
    return found[0]


def _read_ids(folder: Path, split: str, images: dict[str, Path]) -> list[str]:
    main = folder / "ImageSets" / "Main"
    path = main / f"{split}.txt"
    if not path.is_file():
        known = sorted(other.stem for other in main.glob("*.txt"))
        raise SppdetError(f"{path}: no such split; there are: {', '.join(known) or 'none'}")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise SppdetError(f"{path}: is not UTF-8 text; save it as one image id a line") from None
    lines = [line.strip() for line in lines]
    # Files of a class (cat_train.txt) say in a second column whether an image shows it.
    ids = [line if line in images else re.sub(r"\s+(-1|0|1)$", "", line) for line in lines]
    ids = list(dict.fromkeys(filter(None, ids)))
    if not ids:
        raise SppdetError(f"{path}: lists no image; write one image id a line")
    return ids


def _images(folder: Path) -> dict[str, Path]:
    """The image of every id, from one look at the folder."""
    try:
        paths = [path for path in (folder / "JPEGImages").iterdir() if path.suffix.lower() in _SUFFIXES]
    except OSError:
        raise SppdetError(f"{folder / 'JPEGImages'}: no such folder; put the images there") from None
    paths.sort(key=lambda path: (_SUFFIXES.index(path.suffix.lower()), path.name), reverse=True)
    return {path.stem: path for path in paths}


def _find_image(folder: Path, images: dict[str, Path], image_id: str) -> tuple[Path, int, int]:
    if image_id not in images:
        raise SppdetError(
            f"{folder / 'JPEGImages' / image_id}.jpg (or .png, ...): no such image; "
            "add it or drop the id from the split"
        )
    path = images[image_id]
    return path, *image_size(path)


def _annotation(folder: Path, image_id: str) -> Path:
    return folder / "Annotations" / f"{image_id}.xml"


def _read_annotation(path: Path) -> _Annotation:
    try:
        root = ET.parse(path).getroot()
    except FileNotFoundError:
        raise SppdetError(f"{path}: no such annotation; add it or drop the id from the split") from None
    except (
        ET.ParseError,
        ValueError,
        LookupError,
    ) as error:  # the last two: an encoding that is wrong or unknown
        raise SppdetError(f"{path}: is not well-formed XML ({error}); mend it") from None
    except OSError as error:
        raise SppdetError(f"{path}: cannot be read ({error.strerror}); check the file") from None
    things = [_read_object(path, number, element) for number, element in enumerate(root.findall("object"), 1)]
    try:
        size = int(root.findtext("size/width", "")), int(root.findtext("size/height", ""))
    except ValueError:
        return _Annotation(things, None)
    return _Annotation(things, size if min(size) > 0 else None)


def _read_object(path: Path, number: int, element: ET.Element) -> _Object:
    name = (element.findtext("name") or "").strip()
    if not name:
        raise SppdetError(f"{path}: object {number} has no name; add one or delete the object")
    # `find` looks at direct children only, so the box of a <part> is never taken for the object's.
    box = element.find("bndbox")
    if box is None:
        raise SppdetError(f"{path}: object {number} ({name}) has no bndbox; add one or delete the object")
    texts = [(box.findtext(tag) or "").strip() for tag in _CORNERS]
    try:
        corners = [float(text) for text in texts]
    except ValueError:
        corners = [np.nan]
    if not np.isfinite(corners).all():
        pairs = ", ".join(f"{tag}={text or 'missing'}" for tag, text in zip(_CORNERS, texts))
        raise SppdetError(f"{path}: object {number} ({name}) has a corner that is no number ({pairs}); mend it")
    if corners[2] < corners[0] or corners[3] < corners[1]:
        raise SppdetError(f"{path}: object {number} ({name}) is inverted ({_box_text(corners)}); swap its corners")
    difficult = (element.findtext("difficult") or "").strip().lower() in ("1", "true")
    return _Object(name, corners, difficult)


def _labels(path: Path, things: list[_Object], classes: Sequence[str]) -> np.ndarray:
    for thing in things:
        if thing.name not in classes:
            near = difflib.get_close_matches(thing.name, classes, n=1, cutoff=0)
            raise SppdetError(
                f"{path}: class {thing.name!r} is none of the classes (nearest: {', '.join(near)}); "
                "rename it or add it to the classes"
            )
    return np.array([classes.index(thing.name) for thing in things], np.int64)


def _clipped(path: Path, things: list[_Object], width: int, height: int) -> np.ndarray:
    boxes = clip(from_voc([thing.corners for thing in things]), width, height)
    for thing, (x1, y1, x2, y2) in zip(things, boxes):
        if x1 >= x2 or y1 >= y2:
            raise SppdetError(
                f"{path}: {thing.name} ({_box_text(thing.corners)}) lies outside the image, "
                f"which is {width} x {height}; mend or delete it"
            )
    return boxes


def _remarks(samples: list[Sample], annotations: dict[str, _Annotation]) -> list[str]:
    """What is odd about boxes that can be used all the same."""
    poking: list[str] = []  # the file of each such box
    zero_based: list[str] = []
    tiny: list[str] = []
    resized: list[str] = []  # the file of each such image
    for sample in samples:
        file, (things, size) = f"{sample.id}.xml", annotations[sample.id]
        corners = np.array([thing.corners for thing in things], np.float32).reshape(-1, 4)
        resized += [file] * (bool(things) and size not in (None, (sample.width, sample.height)))
        poking += [file] * int((from_voc(corners) != sample.boxes).any(axis=1).sum())
        zero_based += [file] * int((corners[:, :2] == 0).any(axis=1).sum())
        tiny += [file] * int((corners[:, :2] == corners[:, 2:]).all(axis=1).sum())
    remarks = []
    if poking:
        remarks.append(f"boxes that poke out of their image, clipped: {len(poking)} ({_listed(poking)})")
    if zero_based:
        remarks.append(
            "boxes that start at 0, so the files look 0-based where VOC counts from 1, "
            f"and all their boxes may be a pixel off: {len(zero_based)} ({_listed(zero_based)})"
        )
    if tiny:
        remarks.append(f"boxes of a single pixel, likely stray clicks, kept: {len(tiny)} ({_listed(tiny)})")
    if resized:
        remarks.append(
            "images of another size than their annotation says, resized or turned by their EXIF orientation after "
            f"it was made, so that boxes may be wrong: {len(resized)} ({_listed(resized)})"
        )
    return remarks


def _listed(files: Sequence[str | Path]) -> str:
    names = list(dict.fromkeys(Path(file).name for file in files))
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _box_text(corners: Sequence[float]) -> str:
    return ", ".join(f"{tag}={value:g}" for tag, value in zip(_CORNERS, corners))
