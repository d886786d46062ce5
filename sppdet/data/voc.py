"""Detection data in PASCAL VOC's layout (Everingham et al., IJCV 2010).

A VOC folder holds ``ImageSets/Main/<split>.txt`` (one image id per line), ``Annotations/<id>.xml`` and
``JPEGImages/<id>.<jpg, png, ...>``. Corners in the XML are pixels counted from 1, the last one included.
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

# In order of preference where several images have the same id.
_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_SHOWN = 10  # unusable files that one error names; the others are counted


class _Object(NamedTuple):
    """One object of an annotation."""

    name: str
    corners: list[float]  # as in the file: 1-based, inclusive
    difficult: bool


class _Annotation(NamedTuple):
    """Content of one annotation file."""

    objects: list[_Object]
    size: tuple[int, int] | None  # width and height of the image according to the file


def read_voc(
    root: str | os.PathLike, split: str, classes: Sequence[str] | None = None, limit: int | None = None
) -> Dataset:
    """Read one split of a VOC folder.

    Sizes come from the images, not from the XML, so an image with an EXIF orientation is taken as displayed. The
    boxes of an object's parts (head, hand, foot) are passed over.

    Boxes that reach beyond their image are clipped, and boxes of a single pixel are kept. One warning for the whole
    split tells of such boxes and of images whose size differs from the XML.

    Args:
        root: VOC folder (``VOC2007``), or its parent (``VOCdevkit``) if that holds exactly one.
        split: name of a list in ``ImageSets/Main``.
        classes: names that the labels index. By default the names in all annotations of the split, sorted.
        limit: number of images to keep, the first ones. Labels do not depend on it. The default keeps all.

    Returns:
        The images of the split in the order of the list, each once.

    Raises:
        SppdetError: the folder or the split is missing, or files cannot be used: an image or annotation that is
            missing or broken, an inverted box, a box outside the image, a class that is not in ``classes``. One
            line for each of the first ten files.
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
        classes = sorted({item.name for annotation in annotations.values() for item in annotation.objects})

    samples = []
    for image_id in kept:
        try:
            path, width, height = _find_image(folder, images, image_id)
            if image_id in annotations:
                objects = annotations[image_id].objects
                labels = _labels(_annotation(folder, image_id), objects, classes)
                boxes = _clipped(_annotation(folder, image_id), objects, width, height)
                difficult = np.array([item.difficult for item in objects], bool)
                samples.append(Sample(image_id, path, width, height, boxes, labels, difficult))
        except SppdetError as error:
            problems.append(str(error))
    if problems:
        more = [f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        raise SppdetError("\n".join(problems[:_SHOWN] + more))

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
    """Write the annotation of one image as VOC's XML.

    Args:
        path: file to write, replaced in one step.
        file_name: name of the image's file, without folder.
        width: pixels of the image.
        height: pixels of the image.
        boxes: ``(N, 4)`` ``x1, y1, x2, y2`` in pixel edges from 0.
        names: N class names.
        difficult: N flags.
    """
    root = ET.Element("annotation")
    ET.SubElement(root, "filename").text = file_name
    size = ET.SubElement(root, "size")
    for tag, value in (("width", width), ("height", height), ("depth", 3)):
        ET.SubElement(size, tag).text = str(value)
    for corners, name, is_difficult in zip(to_voc(boxes), names, difficult, strict=True):
        element = ET.SubElement(root, "object")
        ET.SubElement(element, "name").text = name
        ET.SubElement(element, "difficult").text = str(int(is_difficult))
        box = ET.SubElement(element, "bndbox")
        for tag, value in zip(_CORNERS, corners):
            ET.SubElement(box, tag).text = np.format_float_positional(np.float32(value), trim="-")
    ET.indent(root)
    content = ET.tostring(root, encoding="utf-8") + b"\n"
    atomic_write(path, lambda temporary: temporary.write_bytes(content))


def _voc_folder(root: Path) -> Path:
    """Return the VOC folder that ``root`` is or holds."""
    if not root.is_dir():
        raise SppdetError(f"{root}: no such folder; give a VOC folder such as VOCdevkit/VOC2007")
    if (root / "ImageSets" / "Main").is_dir():
        return root
    # The devkit's programs lie beside the data, in VOCcode: only a folder with splits counts.
    folders = sorted(path for path in root.glob("VOC*") if (path / "ImageSets" / "Main").is_dir())
    if len(folders) > 1:
        raise SppdetError(f"{root}: holds several VOC folders ({_listed(folders)}); give one of them")
    if not folders:
        raise SppdetError(f"{root}: no VOC folder, ImageSets/Main is missing; give the folder that holds ImageSets")
    return folders[0]


def _read_ids(folder: Path, split: str, images: dict[str, Path]) -> list[str]:
    """Return the image ids that the list of a split names, each once."""
    main = folder / "ImageSets" / "Main"
    path = main / f"{split}.txt"
    if not path.is_file():
        known = sorted(other.stem for other in main.glob("*.txt"))
        raise SppdetError(f"{path}: no such split; there are: {', '.join(known) or 'none'}")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise SppdetError(f"{path}: is not UTF-8 text; save it with one image id per line") from None
    lines = [line.strip() for line in lines]
    # Lists of one class (cat_train.txt) say in a second column whether an image shows it.
    ids = [line if line in images else re.sub(r"\s+(-1|0|1)$", "", line) for line in lines]
    ids = list(dict.fromkeys(filter(None, ids)))
    if not ids:
        raise SppdetError(f"{path}: lists no image; write one image id per line")
    return ids


def _images(folder: Path) -> dict[str, Path]:
    """Return the image file of every id, from one listing of the folder."""
    try:
        paths = [path for path in (folder / "JPEGImages").iterdir() if path.suffix.lower() in _SUFFIXES]
    except OSError:
        raise SppdetError(f"{folder / 'JPEGImages'}: no such folder; put the images there") from None
    paths.sort(key=lambda path: (_SUFFIXES.index(path.suffix.lower()), path.name), reverse=True)
    return {path.stem: path for path in paths}


def _find_image(folder: Path, images: dict[str, Path], image_id: str) -> tuple[Path, int, int]:
    """Return path, width and height of an image."""
    if image_id not in images:
        raise SppdetError(
            f"{folder / 'JPEGImages' / image_id}.jpg (or .png, ...): no such image; "
            "add it or drop the id from the split"
        )
    path = images[image_id]
    return path, *image_size(path)


def _annotation(folder: Path, image_id: str) -> Path:
    """Return the path of an image's annotation."""
    return folder / "Annotations" / f"{image_id}.xml"


def _read_annotation(path: Path) -> _Annotation:
    """Read the objects of an annotation file, and the size of the image if the file has a valid one."""
    try:
        root = ET.parse(path).getroot()
    except FileNotFoundError:
        raise SppdetError(f"{path}: no such annotation; add it or drop the id from the split") from None
    except (ET.ParseError, ValueError, LookupError) as error:  # the last two: a wrong or an unknown encoding
        raise SppdetError(f"{path}: is not well-formed XML ({error}); correct it") from None
    except OSError as error:
        raise SppdetError(f"{path}: cannot be read ({error.strerror}); check the file") from None
    objects = [_read_object(path, number, element) for number, element in enumerate(root.findall("object"), 1)]
    try:
        size = int(root.findtext("size/width", "")), int(root.findtext("size/height", ""))
    except ValueError:
        return _Annotation(objects, None)
    return _Annotation(objects, size if min(size) > 0 else None)


def _read_object(path: Path, number: int, element: ET.Element) -> _Object:
    """Read the ``number``-th object, counted from 1, of the annotation at ``path``."""
    name = (element.findtext("name") or "").strip()
    if not name:
        raise SppdetError(f"{path}: object {number} has no name; add one or delete the object")
    # `find` looks at direct children only, so the box of a <part> is never mistaken for the box of the object.
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
        raise SppdetError(f"{path}: object {number} ({name}) has a corner that is no number ({pairs}); correct it")
    if corners[2] < corners[0] or corners[3] < corners[1]:
        raise SppdetError(f"{path}: object {number} ({name}) is inverted ({_box_text(corners)}); swap its corners")
    difficult = (element.findtext("difficult") or "").strip().lower() in ("1", "true")
    return _Object(name, corners, difficult)


def _labels(path: Path, objects: list[_Object], classes: Sequence[str]) -> np.ndarray:
    """Return the int64 ``(N,)`` labels of the objects of the annotation at ``path``."""
    for item in objects:
        if item.name not in classes:
            near = difflib.get_close_matches(item.name, classes, n=1, cutoff=0)
            raise SppdetError(
                f"{path}: class {item.name!r} is none of the classes (nearest: {', '.join(near)}); "
                "rename it or add it to the classes"
            )
    return np.array([classes.index(item.name) for item in objects], np.int64)


def _clipped(path: Path, objects: list[_Object], width: int, height: int) -> np.ndarray:
    """Return the float32 ``(N, 4)`` boxes of the objects, cut to the image."""
    boxes = clip(from_voc([item.corners for item in objects]), width, height)
    for item, (x1, y1, x2, y2) in zip(objects, boxes):
        if x1 >= x2 or y1 >= y2:
            raise SppdetError(
                f"{path}: {item.name} ({_box_text(item.corners)}) lies outside the image, "
                f"which is {width} x {height}; correct or delete it"
            )
    return boxes


def _remarks(samples: list[Sample], annotations: dict[str, _Annotation]) -> list[str]:
    """Describe what is odd about boxes that can be used all the same."""
    outside: list[str] = []  # the file of each such box
    zero_based: list[str] = []
    tiny: list[str] = []
    resized: list[str] = []  # the file of each such image
    for sample in samples:
        file, (objects, size) = f"{sample.id}.xml", annotations[sample.id]
        corners = np.array([item.corners for item in objects], np.float32).reshape(-1, 4)
        resized += [file] * (bool(objects) and size not in (None, (sample.width, sample.height)))
        outside += [file] * int((from_voc(corners) != sample.boxes).any(axis=1).sum())
        zero_based += [file] * int((corners[:, :2] == 0).any(axis=1).sum())
        tiny += [file] * int((corners[:, :2] == corners[:, 2:]).all(axis=1).sum())
    remarks = []
    if outside:
        remarks.append(f"boxes that reach beyond their image, clipped: {len(outside)} ({_listed(outside)})")
    if zero_based:
        remarks.append(
            "boxes that start at 0 although VOC counts pixels from 1, so that all boxes of these files may be off by "
            f"one pixel (0-based): {len(zero_based)} ({_listed(zero_based)})"
        )
    if tiny:
        remarks.append(f"boxes of a single pixel, likely stray clicks, kept: {len(tiny)} ({_listed(tiny)})")
    if resized:
        remarks.append(
            "images of another size than their annotation says, perhaps resized or turned after it was written, so "
            f"that boxes may be wrong: {len(resized)} ({_listed(resized)})"
        )
    return remarks


def _listed(files: Sequence[str | Path]) -> str:
    """Return the names of the first three files, each once."""
    names = list(dict.fromkeys(Path(file).name for file in files))
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _box_text(corners: Sequence[float]) -> str:
    """Return corners as ``xmin=1, ymin=2, xmax=3, ymax=4``."""
    return ", ".join(f"{tag}={value:g}" for tag, value in zip(_CORNERS, corners))
