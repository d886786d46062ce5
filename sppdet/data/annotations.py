"""Images as annotation files describe them, and from there to samples: units, clipping and checks of boxes.

Every reader of a format returns `Annotation`; what is right or wrong about boxes is decided here, once for all formats.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sppdet.data.dataset import Dataset, Sample
from sppdet.data.image_facts import ImageFacts
from sppdet.data.names import clean_name, name_key
from sppdet.data.problems import Problem
from sppdet.ops import boxes as geometry

# How the numbers of a box are meant: VOC's 1-based inclusive pixels, pixel edges, fractions of width and height.
UNITS = ("voc", "edges", "fractions")
# Pixels by which a box may pass the border unnoticed: what rounding in a file leaves.
_ROUNDING = {"voc": 1e-6, "edges": 1e-3, "fractions": 0.5}
_ABSURD = 10  # sides of the image; a number beyond is a mistake, not a box that is slightly outside
_BEYOND = 0.01  # by which fractions in place of pixels may leave 0 to 1: what rounding and careless clicks leave
_NOT_FRACTIONS = 1.5  # a fraction above this is no fraction
_NEARLY = 0.9  # IoU of two boxes of a class that may be one object
_CORNERS = {"voc": ("xmin", "ymin", "xmax", "ymax")}


class Object(NamedTuple):
    """One object of an annotation.

    Attributes:
        name: the class, as the file has it.
        corners: four numbers in the unit of the annotation: left, top, right, bottom.
        difficult: whether VOC calls the object difficult.
        ignored: whether this is no object but a region of which nobody knows how many it holds: COCO's crowd.
    """

    name: str
    corners: tuple[float, ...]
    difficult: bool = False
    ignored: bool = False


@dataclass
class Annotation:
    """One image as its annotation file describes it.

    Attributes:
        file: the annotation file.
        image: file of the image; None if it was not found.
        objects: in the order of the file.
        unit: one of `UNITS`.
        size: width and height of the image according to the file, where it has both.
        split: ``train``, ``val``, ``test`` or ``trainval``, where the folder says it.
        name: of the image in the file, for messages.
        fractions: whether the corners are fractions where the unit says pixels; None: they are if they look like it.
    """

    file: Path
    image: Path | None
    objects: list[Object] = field(default_factory=list)
    unit: str = "edges"
    size: tuple[int, int] | None = None
    split: str | None = None
    name: str = ""
    fractions: bool | None = None


@dataclass(eq=False)
class Located:
    """One image whose boxes were checked: N objects, with names in place of labels.

    Attributes:
        path: file of the image.
        facts: what the file says of itself.
        names: N names of classes.
        boxes: float32 ``(N, 4)`` pixel edges.
        difficult: bool ``(N,)``.
        ignored: bool ``(N,)``, regions that are no objects.
        file: the annotation file.
        split: as in `Annotation`.
        id: name of the image in its data set.
    """

    path: Path
    facts: ImageFacts
    names: list[str]
    boxes: np.ndarray
    difficult: np.ndarray
    ignored: np.ndarray
    file: Path
    split: str | None = None
    id: str = ""


def locate(annotation: Annotation, path: Path, facts: ImageFacts, problems: list[Problem]) -> Located | None:
    """Turn the boxes of an annotation into pixel edges inside the image.

    Args:
        annotation: an image as annotated.
        path: file of the image.
        facts: size and orientation of that file.
        problems: what is wrong is added to this list.

    Returns:
        The objects; None if a problem is fatal.
    """
    file, unit, objects = str(annotation.file), annotation.unit, annotation.objects
    width, height = facts.size
    before = len(problems)

    def add(kind: str, what: str, fatal: bool = False) -> None:
        problems.append(Problem(kind, file, f"{file}: {what}", fatal))

    corners = np.array([item.corners for item in objects], np.float64).reshape(-1, 4)
    fractions = _look_like_fractions(corners) if annotation.fractions is None else annotation.fractions
    if unit != "fractions" and fractions and objects:
        unit = "fractions"
        add("fractions", f"corners from {corners.min():g} to {corners.max():g} are no pixels, taken as fractions")
    if unit == "fractions":
        edges = corners * [width, height, width, height]
    else:
        edges = corners - [1, 1, 0, 0] if unit == "voc" else corners
    image = f"the image, which is {width} x {height}"
    kept: dict[tuple, int] = {}  # (name, corners) -> number of the object
    for number, (item, numbers, (x1, y1, x2, y2)) in enumerate(zip(objects, corners, edges), 1):
        what, shown = f"object {number} ({item.name})", _box_text(numbers, annotation.unit)
        sides = np.array([width, height, width, height])
        far = np.abs([x1, y1, x2, y2]) > _ABSURD * sides
        if not np.isfinite(numbers).all():
            add("absurd", f"{what} has a corner that is no finite number ({shown}); correct it", True)
        elif annotation.unit == "fractions" and np.abs(numbers).max(initial=0) > _NOT_FRACTIONS:
            add("absurd", f"{what} has numbers that are no fractions of width and height ({shown}); correct it", True)
        elif far.any():
            worst = numbers[far][np.abs(numbers[far]).argmax()]
            add("absurd", f"{what} has a coordinate of {worst:g}, far beyond {image}; correct it", True)
        elif x2 < x1 or y2 < y1 or (annotation.unit == unit == "voc" and (numbers[2:] < numbers[:2]).any()):
            add("inverted", f"{what} is inverted ({shown}); swap its corners", True)
        elif min(x2, width) <= max(x1, 0) or min(y2, height) <= max(y1, 0):
            if x2 > x1 and y2 > y1:
                add("outside", f"{item.name} ({shown}) lies outside {image}; correct or delete it", True)
            else:
                add("no area", f"{what} has no area ({shown}); delete it")
        elif (item.name, *numbers) in kept:
            add("twice", f"{what} is object {kept[(item.name, *numbers)]} once more ({shown}); delete it")
        else:
            kept[(item.name, *numbers)] = number
            slack = _ROUNDING[unit]
            if min(x1, y1) < -slack or x2 > width + slack or y2 > height + slack:
                add("clipped", f"{what} ({shown}) reaches beyond {image}")
            if unit == "voc" and (numbers[:2] == 0).any():
                add("0-based", f"{what} starts at 0 ({shown})")
            if x2 - x1 <= 1 and y2 - y1 <= 1:
                add("single pixel", f"{what} is {x2 - x1:g} x {y2 - y1:g} pixels ({shown})")
            if x1 <= 0 and y1 <= 0 and x2 >= width and y2 >= height:
                add("covers", f"{what} covers the whole image")
    if objects:
        _check_size(annotation, facts, add)
    if any(problem.fatal for problem in problems[before:]):
        return None
    rows = [number - 1 for number in kept.values()]
    boxes = geometry.clip(geometry.as_boxes(edges[rows]), width, height)
    used = [objects[row] for row in rows]
    names = [item.name for item in used]
    for i, j in _nearly_equal(boxes, names):
        add("nearly twice", f"objects {rows[i] + 1} and {rows[j] + 1} ({names[i]}) are almost the same box")
    difficult, ignored = (np.array(flags, bool) for flags in ([o.difficult for o in used], [o.ignored for o in used]))
    return Located(path, facts, names, boxes, difficult, ignored, annotation.file, annotation.split)


def decide_fractions(annotations: Sequence[Annotation]) -> Sequence[Annotation]:
    """Decide for all images of one file together whether corners are fractions, and return the images."""
    corners = np.array([item.corners for annotation in annotations for item in annotation.objects], np.float64)
    fractions = _look_like_fractions(corners.reshape(-1, 4))
    for annotation in annotations:
        annotation.fractions = fractions
    return annotations


def _look_like_fractions(corners: np.ndarray) -> bool:
    """Whether corners lie between 0 and 1, with room for rounding, and are not whole, so that they cannot be pixels."""
    corners = corners[np.isfinite(corners).all(axis=1)]
    if not len(corners):
        return False
    return corners.min() >= -_BEYOND and corners.max() <= 1 + _BEYOND and bool((corners % 1 != 0).any())


def _check_size(annotation: Annotation, facts: ImageFacts, add: Callable[[str, str], None]) -> None:
    """Add the problem of an image whose annotation was, or may have been, made on pixels that lie otherwise."""
    displayed, said = facts.size, annotation.size
    if said is not None and said != displayed:
        raw = facts.orientation >= 5 and said == displayed[::-1]
        turned = f", the size before EXIF orientation {facts.orientation}" if raw else ""
        add("size", f"says {said[0]} x {said[1]}{turned}, the image is {displayed[0]} x {displayed[1]}")
    elif facts.orientation >= 5 and said is not None and displayed[0] != displayed[1]:
        pass  # the size tells that the image was annotated as displayed, as the orientation swaps unequal sides
    elif facts.orientation != 1:
        add("turned", f"its image has EXIF orientation {facts.orientation}; check the boxes on the displayed image")


def _nearly_equal(boxes: np.ndarray, names: Sequence[str]) -> list[tuple[int, int]]:
    """Return pairs of boxes of one class that overlap almost fully."""
    pairs = np.argwhere(np.triu(geometry.iou(boxes, boxes), 1) > _NEARLY)
    return [(int(i), int(j)) for i, j in pairs if names[i] == names[j]]


def _box_text(corners: Iterable[float], unit: str) -> str:
    """Return corners as ``xmin=1, ymin=2, xmax=3, ymax=4``."""
    names = _CORNERS.get(unit, ("x1", "y1", "x2", "y2"))
    return ", ".join(f"{name}={value:g}" for name, value in zip(names, corners))


def merge_names(items: Sequence[Located], problems: list[Problem]) -> None:
    """Give objects whose classes differ by unseen characters alone one name, and report names that are similar."""
    counts = Counter(name for item in items for name in item.names)
    cleaned = {name: clean_name(name) for name in counts}
    for name in sorted(name for name in counts if cleaned[name] != name and cleaned[name] in counts):
        file = next(str(item.file) for item in items if name in item.names)
        message = f"{file}: class {name!a} is {cleaned[name]!a} with characters that are not seen; rename it"
        problems.append(Problem("unseen characters", file, message))
    for item in items:
        item.names = [cleaned[name] for name in item.names]
    similar: dict[str, set[str]] = {}
    for name in cleaned.values():
        similar.setdefault(name_key(name), set()).add(name)
    for names in similar.values():
        if len(names) > 1:
            shown = " and ".join(f"'{name}'" for name in sorted(names))
            rare = min(sorted(names), key=lambda name: counts[name])
            file = next(str(item.file) for item in items if rare in item.names)
            message = f"{file}: classes {shown} differ by case or spaces alone; give them one name if they are one"
            problems.append(Problem("similar classes", file, message))


def to_dataset(
    items: Sequence[Located], classes: Sequence[str] | None, problems: list[Problem], limit: int | None = None
) -> Dataset:
    """Number the classes and return the images as a data set.

    Args:
        items: the images.
        classes: names that the labels index. By default the names of all objects, sorted.
        problems: objects of other classes are added to this list, and their images left out.
        limit: number of images to keep, the first ones.
    """
    if classes is None:
        classes = sorted({name for item in items for name in item.names})
    numbers = {name: k for k, name in enumerate(classes)}
    samples = []
    for item in items[:limit]:
        unknown = [name for name in item.names if name not in numbers]
        for name in unknown[:1]:
            near = difflib.get_close_matches(name, classes, n=1, cutoff=0)
            message = (
                f"{item.file}: class {name!r} is none of the classes that are learned (nearest: {', '.join(near)}); "
                "rename it, label it in images for training, too, or add it to data.classes"
            )
            problems.append(Problem("class", str(item.file), message, True))
        if not unknown:
            labels = np.array([numbers[name] for name in item.names], np.int64)
            rows = ~item.ignored
            sample = Sample(item.id, item.path, *item.facts.size, item.boxes[rows], labels[rows], item.difficult[rows])
            samples.append(replace(sample, ignored=item.boxes[~rows], ignored_labels=labels[~rows]))
    return Dataset(tuple(classes), tuple(samples))
