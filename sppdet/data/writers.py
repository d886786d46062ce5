"""Writing labelled images as PASCAL VOC, COCO or YOLO: a new folder, which appears complete or not at all."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import yaml

from sppdet.data.annotations import Located
from sppdet.data.labelled_folder import LabelledFolder
from sppdet.data.voc import write_voc_annotation
from sppdet.utils import SppdetError, counted, new_folder, write_json, write_lines

# What happens to ignored regions in formats that have no mark for them.
_CROWDS = {"voc": "written as difficult objects", "yolo": "left out, as YOLO has no mark for them"}
_CocoImage = tuple[str, tuple[int, int], Sequence[str], np.ndarray, Sequence[dict[str, int]]]


def convert_folder(folder: LabelledFolder, output: str | os.PathLike, form: str) -> None:
    """Write the images of a folder and their objects in another format.

    Image files are copied as they are, under their ids. Boxes are those of the image as displayed.

    Args:
        folder: what `sppdet.data.read_folder` returned.
        output: the new folder.
        form: one of `WRITERS`.

    Raises:
        SppdetError: the new folder exists already and is not empty, or cannot be written.
    """
    if form not in WRITERS:
        raise SppdetError(f"{form!r} is none of {', '.join(WRITERS)}; give one of these")
    with new_folder(output) as unfinished:
        WRITERS[form](folder, unfinished)
    regions = sum(int(image.ignored.sum()) for image in folder.images)
    if regions and form in _CROWDS:
        what = counted(regions, "ignored region")
        warnings.warn(f"{output}: {what}, such as COCO's crowds, {_CROWDS[form]}", UserWarning, stacklevel=2)


def _write_voc(folder: LabelledFolder, output: Path) -> None:
    """Write VOC's folders; a folder without splits has the list ``default``, which nobody takes for a split."""
    for image in folder.images:
        path = _copy(image, output / "JPEGImages")
        write_voc_annotation(
            output / "Annotations" / f"{image.id}.xml",
            path.name,
            *image.facts.size,
            image.boxes,
            image.names,
            (image.difficult | image.ignored).tolist(),
        )
    lists = _splits(folder)
    if "test" in lists and "train" in lists and "trainval" not in lists:
        lists["trainval"] = sorted([*lists["train"], *lists.get("val", [])], key=lambda image: image.id)
    for split, images in lists.items():
        write_lines(output / "ImageSets" / "Main" / f"{split}.txt", [image.id for image in images])


def _write_yolo(folder: LabelledFolder, output: Path) -> None:
    """Write ``images/SPLIT``, ``labels/SPLIT`` and data.yaml. Difficult objects are written like all others.

    Ignored regions are left out, as YOLO has no mark for them.
    """
    numbers = {name: k for k, name in enumerate(folder.classes)}
    splits = _splits(folder)
    for split, images in splits.items():
        for image in images:
            _copy(image, output / "images" / split)
            rows = zip(image.names, image.boxes.astype(float), image.ignored)
            lines = [yolo_line(numbers[name], box, image.facts.size) for name, box, ignored in rows if not ignored]
            write_lines(output / "labels" / split / f"{image.id}.txt", lines)
    settings: dict[str, object] = {split: f"images/{split}" for split in splits}
    settings |= {"nc": len(numbers), "names": list(numbers)}
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    write_lines(output / "data.yaml", text.splitlines())


def yolo_line(number: int, box: np.ndarray, size: tuple[int, int]) -> str:
    """Return the line of an object in YOLO's text files.

    Args:
        number: its class, from 0.
        box: x1, y1, x2, y2, pixel edges.
        size: width and height of the image.

    Examples:
        >>> yolo_line(2, np.array([0.0, 10.0, 20.0, 30.0]), (40, 40))
        '2 0.25 0.5 0.5 0.5'
    """
    (x1, y1, x2, y2), (width, height) = box, size
    numbers_of_box = (x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height
    return " ".join([str(number), *(f"{value:.8g}" for value in numbers_of_box)])


def _write_coco(folder: LabelledFolder, output: Path) -> None:
    """Write ``images`` and ``annotations/instances_SPLIT.json``. Difficult objects and crowds have ``iscrowd``."""
    for split, images in _splits(folder).items():
        rows = []
        for image in images:
            path = _copy(image, output / "images")
            marks = [coco_mark(*flags) for flags in zip(image.difficult.tolist(), image.ignored.tolist())]
            rows.append((path.name, image.facts.size, image.names, image.boxes, marks))
        write_json(output / "annotations" / f"instances_{split}.json", coco_content(rows, folder.classes))


def coco_mark(difficult: bool = False, ignored: bool = False) -> dict[str, int]:
    """Return the fields by which COCO's toolkit ignores a difficult object or a crowd, and a reader tells them apart.

    Examples:
        >>> coco_mark(), coco_mark(difficult=True)
        ({'iscrowd': 0}, {'iscrowd': 1, 'difficult': 1})
    """
    return {"iscrowd": int(difficult or ignored)} | ({"difficult": 1} if difficult else {})


def coco_content(images: Sequence[_CocoImage], classes: Sequence[str]) -> dict:
    """Return the content of one of COCO's JSON files.

    Args:
        images: of each the file's name, width and height, names of N objects, boxes ``(N, 4)`` as pixel edges, and N
            marks of `coco_mark`.
        classes: names of all classes; their numbers begin with 1.
    """
    numbers = {name: k for k, name in enumerate(classes, 1)}
    categories = [{"id": number, "name": name, "supercategory": ""} for name, number in numbers.items()]
    entries: list[dict] = []
    annotations: list[dict] = []
    for image_id, (file_name, (width, height), names, boxes, marks) in enumerate(images, 1):
        entries.append({"id": image_id, "file_name": file_name, "width": width, "height": height})
        for name, (x1, y1, x2, y2), mark in zip(names, boxes.astype(float), marks):
            box = [float(number) for number in (x1, y1, x2 - x1, y2 - y1)]
            entry = {"id": len(annotations) + 1, "image_id": image_id, "category_id": numbers[name], "bbox": box}
            annotations.append(entry | {"area": box[2] * box[3], **mark, "segmentation": []})
    return {"info": {}, "licenses": [], "images": entries, "annotations": annotations, "categories": categories}


WRITERS: dict[str, Callable[[LabelledFolder, Path], None]] = {
    "voc": _write_voc,
    "yolo": _write_yolo,
    "coco": _write_coco,
}


def _splits(folder: LabelledFolder) -> dict[str, Sequence[Located]]:
    """Return the images by split; one split where the folder has none, or where an image is in none."""
    splits = folder.splits()
    if sum(map(len, splits.values())) < len(folder.images):
        return {"default": folder.images}
    return dict(splits)


def _copy(image: Located, folder: Path) -> Path:
    """Copy an image under its id, and return the path of the copy."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{image.id}{image.path.suffix.lower()}"
    shutil.copyfile(image.path, path)
    return path
