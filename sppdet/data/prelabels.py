"""Detections written as annotations, which a person corrects in a tool and training reads.

A file that holds a person's work is never replaced: a file is written if it does not exist, or if it is as it was
written here. The hidden file `RECORD` beside the annotations remembers the digests.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from urllib.parse import quote

import numpy as np

from sppdet.data import format_coco, format_labelstudio, format_yolo
from sppdet.data.format_yolo import names_in, numbers_without_names
from sppdet.data.listing import Listing
from sppdet.data.problems import Problem
from sppdet.data.voc import write_voc_annotation
from sppdet.data.writers import coco_content, coco_mark, yolo_line
from sppdet.utils import SppdetError, file_digest, read_json, temporary_folder, write_json, write_lines

RECORD = ".sppdet-labels.json"
FORMATS = ("voc", "yolo", "coco", "label-studio")
_SUFFIXES = {"voc": ".xml", "yolo": ".txt"}  # of formats with a file per image
_STEMS = {"coco": "labels-coco", "label-studio": "labels-label-studio"}  # of those with one file
# Where tools keep the annotations of a folder of images.
_SIBLINGS = {"voc": ("JPEGImages", "Annotations"), "yolo": ("images", "labels")}
_MODEL = "sppdet"  # the name of the model in Label Studio's predictions


@dataclass(frozen=True, eq=False)
class Prelabelled:
    """One image with what was detected in it.

    Attributes:
        path: file of the image.
        size: its width and height as displayed, in pixels.
        names: N names of classes.
        boxes: ``(N, 4)`` pixel edges.
        scores: N numbers from 0 to 1.
    """

    path: Path
    size: tuple[int, int]
    names: Sequence[str]
    boxes: np.ndarray
    scores: Sequence[float]


class AnnotationFolder:
    """Where the annotations of a folder of images are written.

    Args:
        images: the folder of the images.
        form: one of `FORMATS`.
        overwrite: replace files that others wrote or changed.

    Attributes:
        folder: VOC's ``Annotations`` beside ``JPEGImages`` or YOLO's ``labels`` beside ``images`` where they exist;
            else the folder of the images.

    Raises:
        SppdetError: for another format, or a record that cannot be read.
    """

    def __init__(self, images: Path, form: str, overwrite: bool = False):
        if form not in FORMATS:
            raise SppdetError(f"{form!r} is none of {', '.join(FORMATS)}; give one of these")
        self.images, self.form, self.overwrite = images, form, overwrite
        self.folder = _folder_of(images, form)
        record = self.folder / RECORD
        digests = read_json(record) if record.exists() else {}
        # One digest, or two: of the file before and after a write that was perhaps interrupted.
        self._digests = {name: entry if isinstance(entry, list) else [entry] for name, entry in digests.items()}

    def without_annotation(self, paths: Sequence[Path]) -> list[Path]:
        """Return the images whose annotation may be written.

        Args:
            paths: images of the folder.

        Raises:
            SppdetError: two images would share an annotation.
        """
        if self.form in _STEMS:
            annotated = set() if self.overwrite else self._annotated()
            return [path for path in paths if path not in annotated]
        files: dict[str, Path] = {}
        for path in paths:
            other = files.setdefault(path.stem.casefold(), path)
            if other != path:
                raise SppdetError(f"{other} and {path.name}: share {self._file(path).name}; rename one of them")
        return [path for path in paths if self._may_write(self._file(path))]

    def check_classes(self, classes: Sequence[str]) -> None:
        """Check that all classes can be written.

        Raises:
            SppdetError: YOLO's list of names lacks one of them, or there is none and a person's labels need it.
        """
        if self.form == "yolo":
            file, numbers = self._yolo_numbers(classes)
            if missing := [name for name in classes if name not in numbers]:
                raise SppdetError(f"{file}: has no class {', '.join(missing)}; add a line for each at its end")

    def write(self, images: Sequence[Prelabelled], classes: Sequence[str]) -> Path:
        """Write the annotations of images; one without objects gets an empty annotation.

        Args:
            images: those of `without_annotation`, or some of them.
            classes: the names of all classes of the detector.

        Returns:
            The file of all images, or the folder of their files.

        Raises:
            SppdetError: YOLO's list of names lacks a class.
            OSError: a file cannot be written.
        """
        self.check_classes(classes)
        if self.form in _STEMS:
            path = self._target()
            content = _coco(images, classes) if self.form == "coco" else [_task(image) for image in images]
            self._put({path: lambda unfinished: write_json(unfinished, content)})
            return path
        numbers: dict[str, int] = {}
        if self.form == "yolo":
            file, numbers = self._yolo_numbers(classes)
            if file is not None and not file.exists():
                write_lines(file, numbers)
        self._put({self._file(image.path): partial(self._write_one, image, numbers) for image in images})
        return self.folder

    def _write_one(self, image: Prelabelled, numbers: dict[str, int], path: Path) -> None:
        """Write the annotation of an image, of a format that has a file per image."""
        if self.form == "voc":
            difficult = [False] * len(image.names)
            write_voc_annotation(path, image.path.name, *image.size, image.boxes, image.names, difficult)
        else:
            boxes = image.boxes.astype(float)
            write_lines(path, [yolo_line(numbers[name], box, image.size) for name, box in zip(image.names, boxes)])

    def _file(self, image: Path) -> Path:
        """Return the annotation file of an image, of a format that has one per image."""
        return self.folder / f"{image.stem}{_SUFFIXES[self.form]}"

    def _may_write(self, path: Path) -> bool:
        """Whether a file may be written: it is new, or as it was written here."""
        return self.overwrite or not path.exists() or self._wrote(path)

    def _wrote(self, path: Path) -> bool:
        """Whether a file is as it was written here."""
        return file_digest(path) in self._digests.get(path.name, ())

    def _put(self, files: dict[Path, Callable[[Path], None]]) -> None:
        """Write files. They are noted before they are in place: after an interruption they do not count as a person's.

        Args:
            files: for each a function that writes it to the path that it receives.
        """
        with temporary_folder(self.folder) as folder:
            for path, write in files.items():
                write(folder / path.name)
                before = [file_digest(path)] if path.exists() and self._wrote(path) else []
                self._digests[path.name] = [*dict.fromkeys([*before, file_digest(folder / path.name)])]
            write_json(self.folder / RECORD, self._digests)
            for path in files:
                os.replace(folder / path.name, path)

    def _target(self) -> Path:
        """Return the file to write, of a format that has one for all images: the first that holds nobody's work."""
        paths = [self.folder / f"{_STEMS[self.form]}{n}.json" for n in ("", *(f"-{i}" for i in range(2, 10_000)))]
        return next(path for path in paths if self._may_write(path))

    def _annotated(self) -> set[Path]:
        """Return the images that the folder's JSON files annotate, apart from those that may be replaced."""
        reader = format_coco if self.form == "coco" else format_labelstudio
        listing, problems = Listing.of(self.folder), list[Problem]()
        files = [path for path in reader.recognise(listing) if path.parent != self.folder or not self._may_write(path)]
        annotations = reader.read(listing, files, problems)
        return {annotation.image for annotation in annotations if annotation.image is not None}

    def _yolo_numbers(self, classes: Sequence[str]) -> tuple[Path | None, dict[str, int]]:
        """Return the file that names the classes, in the folder or above it, and the number of each name.

        Where there is none, the file is one to be written. Classes of labels without names, ``class 0`` and so on, have
        their numbers and no file.
        """
        for folder in dict.fromkeys([self.folder, self.images, *self.images.resolve().parents[:2]]):
            try:
                file, names = names_in(folder)
            except (SppdetError, OSError):
                if folder in (self.folder, self.images):
                    raise
                continue  # a folder above may hold anything
            if file is not None and names is not None:
                return file, {name: k for k, name in enumerate(names)}
        if numbers := numbers_without_names(classes):
            return None, numbers
        others = tuple(path for path in sorted(self.folder.glob("*.txt")) if not self._wrote(path))
        if labels := format_yolo.recognise(replace(Listing.of(self.images), root=self.folder, others=others)):
            raise SppdetError(
                f"{labels[0]}: nothing names its classes; write {self.folder / 'classes.txt'}, a name per line in the "
                "order of their numbers"
            )
        return self.folder / "classes.txt", {name: k for k, name in enumerate(classes)}


def _folder_of(images: Path, form: str) -> Path:
    """Return the folder of the annotations of a folder of images."""
    theirs, ours = _SIBLINGS.get(form, ("", ""))
    parts = images.resolve().parts
    for number in reversed(range(len(parts))):
        sibling = Path(*parts[:number], ours, *parts[number + 1 :])
        if parts[number] == theirs and sibling.is_dir():
            return sibling
    return images


def _coco(images: Sequence[Prelabelled], classes: Sequence[str]) -> dict:
    rows = [
        (image.path.name, image.size, image.names, image.boxes, [coco_mark()] * len(image.names)) for image in images
    ]
    return coco_content(rows, classes)


def _task(image: Prelabelled) -> dict:
    """Return a task of Label Studio, whose prediction a person accepts or corrects."""
    url = f"/data/local-files/?d={quote(f'{image.path.resolve().parent.name}/{image.path.name}')}"
    return {"data": {"image": url}, "annotations": [], "predictions": [label_studio_prediction(image)]}


def label_studio_prediction(image: Prelabelled, from_name: str = "label", to_name: str = "image") -> dict:
    """Return what was detected in an image as a prediction of Label Studio.

    Args:
        image: the image and its detections.
        from_name: name of the RectangleLabels in the project's labelling configuration.
        to_name: name of its Image.
    """
    width, height = image.size
    results = []
    for number, (name, box, score) in enumerate(zip(image.names, image.boxes.astype(float), image.scores)):
        x1, y1, x2, y2 = (100 * box / [width, height, width, height]).tolist()
        value = {"x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1, "rotation": 0, "rectanglelabels": [name]}
        result = {"id": f"{_MODEL}-{number}", "type": "rectanglelabels", "from_name": from_name, "to_name": to_name}
        size = {"original_width": width, "original_height": height, "image_rotation": 0}
        results.append(result | size | {"value": value, "score": score})
    score = min(image.scores, default=1.0)
    return {"model_version": _MODEL, "score": score, "result": results}
