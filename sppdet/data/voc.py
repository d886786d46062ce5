"""Detection data in PASCAL VOC's layout (Everingham et al., IJCV 2010).

A VOC folder holds ``ImageSets/Main/<split>.txt`` (one image id per line), ``Annotations/<id>.xml`` and
``JPEGImages/<id>.<jpg, png, ...>``. Corners in the XML are pixels counted from 1, the last one included.
"""

from __future__ import annotations

import os
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sppdet.data.annotations import Annotation, Located, locate, merge_names, to_dataset
from sppdet.data.dataset import Dataset
from sppdet.data.image_facts import image_facts
from sppdet.data.image_files import is_image_name
from sppdet.data.listing import read_text
from sppdet.data.names import clean_name, file_key
from sppdet.data.problems import Problem, listed, raise_fatal, remarks
from sppdet.data.voc_xml import read_voc_xml
from sppdet.ops import to_voc
from sppdet.utils import SppdetError, atomic_write

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def read_voc(
    root: str | os.PathLike,
    split: str,
    classes: Sequence[str] | None = None,
    limit: int | None = None,
    skip_bad: bool = False,
) -> Dataset:
    """Read one split of a VOC folder.

    Sizes come from the images, not from the XML, so an image with an EXIF orientation is taken as displayed. The
    boxes of an object's parts (head, hand, foot) are passed over.

    Boxes that reach beyond their image are clipped, and boxes of a single pixel are kept. One warning for the whole
    split tells of such boxes and of all else that is odd but usable (`sppdet.data.problems`).

    Args:
        root: VOC folder (``VOC2007``), or its parent (``VOCdevkit``) if that holds exactly one.
        split: name of a list in ``ImageSets/Main``.
        classes: names that the labels index. By default the names in all annotations of the split, sorted.
        limit: number of images to keep, the first ones. Labels do not depend on it. The default keeps all.
        skip_bad: leave images out that cannot be used, or whose annotation cannot, and count them in the warning.

    Returns:
        The images of the split in the order of the list, each once.

    Raises:
        SppdetError: the folder or the split is missing, or files cannot be used: an image or annotation that is
            missing or broken, an inverted box, a box outside the image, a class that is not in ``classes``. One
            line for each of the first ten files.
    """
    if limit is not None and limit < 1:
        raise SppdetError(f"limit is {limit}: give 1 or more images, or none for all")
    folder = voc_folder(Path(root))
    images = _images(folder)
    annotations = _annotations(folder)
    ids = _read_ids(folder, split, images)
    problems: list[Problem] = []
    items: list[Located] = []
    names: set[str] = set()
    for number, image_id in enumerate(ids):
        kept = limit is None or number < limit
        if not kept and classes is not None:
            break
        file = annotations.get(image_id) or annotations.get(file_key(image_id))
        file = file or folder / "Annotations" / f"{image_id}.xml"
        try:
            content = read_voc_xml(file)
            names |= {clean_name(item.name) for item in content.objects}
        except SppdetError as error:
            problems.append(Problem("annotation", str(file), str(error), True))
            content = None
        if kept:
            path = _find_image(folder, images, image_id, file, content and content.filename, problems)
            facts = image_facts(path, problems) if path else None
            if path and facts and content:
                annotation = Annotation(file, path, content.objects, "voc", content.size)
                if item := locate(annotation, path, facts, problems):
                    item.id = image_id
                    items.append(item)
    merge_names(items, problems)
    data = to_dataset(items, sorted(names) if classes is None else classes, problems)
    if not skip_bad:
        raise_fatal(problems)
    notes = remarks(problems)
    if left_out := min(len(ids), limit or len(ids)) - len(data):
        notes.append(f"images left out by data.skip_bad: {left_out}")
    if notes:
        warnings.warn(f"{folder}, split {split}: {'; '.join(notes)}", UserWarning, stacklevel=2)
    return data


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


def voc_folder(root: Path) -> Path:
    """Return the VOC folder that ``root`` is or holds.

    Raises:
        SppdetError: there is none, or there are several.
    """
    if not root.is_dir():
        raise SppdetError(f"{root}: no such folder; give a VOC folder such as VOCdevkit/VOC2007")
    if (root / "ImageSets" / "Main").is_dir():
        return root
    # The devkit's programs lie beside the data, in VOCcode: only a folder with splits counts.
    folders = sorted(path for path in root.glob("VOC*") if (path / "ImageSets" / "Main").is_dir())
    if len(folders) > 1:
        raise SppdetError(f"{root}: holds several VOC folders ({listed(folders)}); give one of them")
    if not folders:
        raise SppdetError(f"{root}: no VOC folder, ImageSets/Main is missing; give the folder that holds ImageSets")
    return folders[0]


def voc_lists(folder: Path) -> list[str]:
    """Return the names of the splits of a VOC folder, sorted."""
    return sorted(path.stem for path in (folder / "ImageSets" / "Main").glob("*.txt"))


def _read_ids(folder: Path, split: str, images: dict[str, list[Path]]) -> list[str]:
    """Return the image ids that the list of a split names, each once."""
    path = folder / "ImageSets" / "Main" / f"{split}.txt"
    if not path.is_file():
        raise SppdetError(f"{path}: no such split; there are: {', '.join(voc_lists(folder)) or 'none'}")
    try:
        lines = read_text(path).splitlines()
    except SppdetError:
        raise SppdetError(f"{path}: is not UTF-8 text; save it with one image id per line") from None
    lines = [line.strip() for line in lines]
    # Lists of one class (cat_train.txt) say in a second column whether an image shows it.
    ids = [line if line in images else re.sub(r"\s+(-1|0|1)$", "", line) for line in lines]
    alike = {file_key(stem): stem for stem in images}
    ids = [name if name in images else alike.get(file_key(name), name) for name in ids]
    ids = list(dict.fromkeys(filter(None, ids)))
    if not ids:
        raise SppdetError(f"{path}: lists no image; write one image id per line")
    return ids


def _images(folder: Path) -> dict[str, list[Path]]:
    """Return the image files of every id, sorted, from one listing of the folder."""
    try:
        paths = sorted(path for path in (folder / "JPEGImages").iterdir() if is_image_name(path.name))
    except OSError:
        raise SppdetError(f"{folder / 'JPEGImages'}: no such folder; put the images there") from None
    images: dict[str, list[Path]] = {}
    for path in paths:
        images.setdefault(path.stem, []).append(path)
    return images


def _find_image(
    folder: Path,
    images: dict[str, list[Path]],
    image_id: str,
    file: Path,
    filename: str | None,
    problems: list[Problem],
) -> Path | None:
    """Return the image of an id; of several, the one that the annotation names."""
    paths = images.get(image_id, [])
    if not paths:
        path = folder / "JPEGImages" / image_id
        message = f"{path}.jpg (or .png, ...): no such image; add it or drop the id from the split"
        problems.append(Problem("no image", str(file), message, True))
        return None
    if len(paths) > 1:
        if named := [path for path in paths if path.name == filename]:
            return named[0]
        names = " and ".join(path.name for path in paths)
        message = f"{file}: may belong to {names}; say which in <filename>, or remove one"
        problems.append(Problem("ambiguous image", str(file), message, True))
        return None
    return paths[0]


def _annotations(folder: Path) -> dict[str, Path]:
    """Return the annotations by their ids, and by the keys of these: letters may be composed in two ways."""
    paths = {path.stem: path for path in sorted((folder / "Annotations").glob("*.xml"))}
    return {file_key(stem): path for stem, path in paths.items()} | paths
