"""A folder of labelled images, as an annotation tool left it: its format is found, read and checked."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np

from sppdet.data import (
    format_coco,
    format_csv,
    format_cvat,
    format_labelme,
    format_labelstudio,
    format_voc,
    format_yolo,
)
from sppdet.data.annotations import Annotation, Located, locate, merge_names, to_dataset
from sppdet.data.dataset import Dataset
from sppdet.data.image_facts import all_image_facts
from sppdet.data.listing import Listing
from sppdet.data.names import NO_FILE_NAME, NOT_IN_FILE_NAMES, fits_file_names
from sppdet.data.problems import Problem, listed, raise_fatal, report_lines
from sppdet.utils import SppdetError, counted

# By name, in the order in which one is taken where several say the same.
READERS: dict[str, ModuleType] = {
    "voc": format_voc,
    "cvat": format_cvat,
    "coco": format_coco,
    "labelstudio": format_labelstudio,
    "labelme": format_labelme,
    "yolo": format_yolo,
    "csv": format_csv,
}
_EXPECTED = "expected VOC, CVAT, COCO, Label Studio, LabelMe, YOLO or CSV"
_FEW = 10  # objects of a class; fewer are worth a note
_SAME = 1.5  # pixels by which corners may differ in two formats that say the same
_LONGEST_ID = 100  # bytes; file names of results and of the cache begin with the id


@dataclass(frozen=True, eq=False)
class LabelledFolder:
    """The labelled images of a folder, and what is wrong with it.

    Attributes:
        root: the folder.
        format: one of `READERS`.
        images: the images that can be used, by path.
        problems: what is wrong or odd, in no order.
    """

    root: Path
    format: str
    images: tuple[Located, ...]
    problems: tuple[Problem, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes that have objects, sorted."""
        return tuple(sorted(self.objects()))

    @property
    def left_out(self) -> int:
        """The number of files with a problem for which images cannot be used."""
        return len({problem.file for problem in self.problems if problem.fatal})

    def objects(self) -> Counter[str]:
        """Return the number of objects of each class."""
        return Counter(name for image in self.images for name in image.names)

    def splits(self) -> dict[str, list[Located]]:
        """Return the images of each split that the folder itself has; empty if it has fewer than two.

        Names are ``train``, ``val``, ``test`` and ``trainval``. Where the folder has ``test`` or ``val`` alone, all
        other images are ``train``; else images outside of the splits are in none.
        """
        splits: dict[str, list[Located]] = {}
        for image in self.images:
            splits.setdefault(image.split or "", []).append(image)
        rest = splits.pop("", [])
        if rest and len(splits) == 1 and splits.keys() <= {"test", "val"}:
            splits["train"] = rest
        return splits if len(splits) > 1 else {}

    def dataset(
        self, images: Sequence[Located] | None = None, classes: Sequence[str] | None = None, limit: int | None = None
    ) -> Dataset:
        """Return images as a data set.

        Args:
            images: some of `images`; all by default.
            classes: names that the labels index. By default those of the objects of ``images``, sorted.
            limit: number of images to keep, the first ones.

        Raises:
            SppdetError: an object's class is not in ``classes``.
        """
        problems: list[Problem] = []
        data = to_dataset(self.images if images is None else images, classes, problems, limit)
        raise_fatal(problems)
        return data

    def report(self) -> str:
        """Return what the folder holds and every problem, as text."""
        counts, sides = self.objects(), _sides(self.images)
        splits = ", ".join(f"{name} {len(images)}" for name, images in self.splits().items())
        lines = [
            f"{self.root}: {self.format}, {counted(len(self.images), 'image')}" + (f" ({splits})" if splits else ""),
            f"{counted(counts.total(), 'object')} of {counted(len(counts), 'class', 'classes')}",
            *(
                f"  {name}: {counted(count, 'object')} in {counted(_images_with(self.images, name), 'image')}"
                for name, count in counts.items()
            ),
        ]
        if len(sides):
            low, middle, high = np.percentile(sides, [5, 50, 95])
            lines.append(
                f"sizes of objects (root of the area, pixels): median {middle:.0f}, 90% from {low:.0f} to {high:.0f}"
            )
        fatal = sum(problem.fatal for problem in self.problems)
        lines.append(
            f"{counted(len(self.problems), 'problem')}, {fatal} of them in images that cannot be used"
            if self.problems
            else "no problems"
        )
        return "\n".join([*lines, *report_lines(self.problems, f"{self.root}{os.sep}")])


def read_folder(
    path: str | os.PathLike, format: str | None = None, skip_bad: bool = False, decode: bool = False
) -> LabelledFolder:
    """Find out which annotations a folder holds, and read and check them.

    Known are PASCAL VOC's XML (in VOC's folders, beside the images as labelImg writes it, or one folder per split as
    Roboflow does), CVAT's XML, COCO's, Label Studio's and LabelMe's JSON, YOLO's text files and tables of boxes.

    Args:
        path: the folder; images and annotations may lie in folders below it.
        format: one of `READERS`, where the folder holds several.
        skip_bad: leave images out that cannot be used, or whose annotation cannot. `LabelledFolder.problems` has them.
        decode: read the pixels of every image, which finds damage in the middle of a file.

    Returns:
        The images with their objects, and what is wrong.

    Raises:
        SppdetError: there are no images or annotations, two formats that say different things, or, without
            ``skip_bad``, files that cannot be used: a line for each of the first ten.

    Examples:
        >>> folder = read_folder("mydata")  # doctest: +SKIP
        >>> folder.format, folder.classes  # doctest: +SKIP
        ('yolo', ('cat', 'dog'))
    """
    root = Path(path)
    listing = Listing.of(root)
    if not listing.images:
        raise SppdetError(f"{root}: no images in this folder or below; {_remedy_without_images(listing)}")
    problems: list[Problem] = []
    format, annotations = _annotations(listing, format, problems)
    images = _located(listing, annotations, problems, decode)
    images.sort(key=lambda image: image.path)
    for image, image_id in zip(images, _ids(root, [image.path for image in images])):
        image.id = image_id
    merge_names(images, problems)
    _check_duplicates(images, problems)
    folder = LabelledFolder(root, format, tuple(images), ())
    problems += [
        Problem(
            "few objects", str(root), f"{root}: class '{name}' has {counted(count, 'object')}; label more images of it"
        )
        for name, count in sorted(folder.objects().items())
        if count < _FEW
    ]
    problems += [
        Problem("class name", str(root), f"{root}: class '{name}': {NO_FILE_NAME}; rename it before training")
        for name in folder.classes
        if not fits_file_names(name)
    ]
    splits = folder.splits()
    in_splits = {image.path for members in splits.values() for image in members}
    if splits and (outside := [image.path for image in images if image.path not in in_splits]):
        message = (
            f"{root}: {counted(len(outside), 'image')} ({listed(outside)}) in none of the splits {', '.join(splits)}: "
            "neither learned from nor measured on; move them into one"
        )
        problems.append(Problem("no split", str(root), message))
    if not skip_bad:
        raise_fatal(
            problems, f"{root}: `sppdet check` lists every problem; data.skip_bad=true leaves out what cannot be used"
        )
    if not any(image.names for image in images):
        raise_fatal(problems)
        raise SppdetError(f"{root}: no image has an object with a box ({format}); label some images")
    return LabelledFolder(root, format, tuple(images), tuple(problems))


def _remedy_without_images(listing: Listing) -> str:
    """Return what to do about a folder without images, by what it holds in their place."""
    if archives := listing.with_suffix(".zip", ".tar", ".gz", ".tgz", ".rar", ".7z"):
        return f"unpack {listed(archives)} first"
    if foreign := listing.with_suffix(
        ".heic", ".heif", ".avif", ".jxl", ".pdf", ".svg", ".dng", ".cr2", ".nef", ".mp4", ".mov"
    ):
        return f"convert {listed(foreign)} to JPEG or PNG"
    return "give the folder of images and annotations"


def _annotations(listing: Listing, format: str | None, problems: list[Problem]) -> tuple[str, list[Annotation]]:
    """Return the format of a folder and its annotations, unchecked."""
    if format is not None and format not in READERS:
        raise SppdetError(f"data.format: {format} is none of {', '.join(READERS)}; give one of these")
    names = READERS if format is None else [format]
    files = {name: READERS[name].recognise(listing) for name in names}
    if "voc" in files and "cvat" in files:
        files["voc"] = [path for path in files["voc"] if path not in set(files["cvat"])]
    files = {name: paths for name, paths in files.items() if paths}
    if not files:
        others = listing.with_suffix(".json", ".xml", ".csv", ".txt")
        seen = f" ({listed(others)} {'is' if len(others) == 1 else 'are'} none)" if others else ""
        expected = _EXPECTED if format is None else f"expected {format}"
        remedy = "label the images with a tool that writes one of these, and give the folder of both"
        raise SppdetError(f"{listing.root}: no annotations; {expected}{seen}; {remedy}")
    read: dict[str, tuple[list[Annotation], list[Problem]]] = {}
    for name, paths in files.items():
        found: list[Problem] = []
        read[name] = READERS[name].read(listing, paths, found), found
    first, *others_read = read
    for name in others_read:
        if not _say_the_same(read[first][0], read[name][0]):
            raise SppdetError(
                f"{listing.root}: holds {first} ({listed(files[first])}) and {name} ({listed(files[name])}), which "
                f"differ; say which to read with data.format={first} or data.format={name}"
            )
        for path in files[name]:
            message = f"{path}: says the same as the {first} files, which are read"
            problems.append(Problem("format", str(path), message))
    problems += read[first][1]
    return first, read[first][0]


def _say_the_same(first: Sequence[Annotation], second: Sequence[Annotation]) -> bool:
    """Whether the annotations of a second format tell nothing that those of the first one do not tell."""
    ours, theirs = _boxes_by_image(first), _boxes_by_image(second)
    if not theirs or not theirs.keys() <= ours.keys():
        return False
    for image, boxes in theirs.items():
        names, other_names = [name for name, _ in ours[image]], [name for name, _ in boxes]
        corners, other_corners = ([box for _, box in rows] for rows in (ours[image], boxes))
        if names != other_names or (names and np.abs(np.subtract(corners, other_corners)).max() > _SAME):
            return False
    return True


def _boxes_by_image(annotations: Sequence[Annotation]) -> dict[Path, list[tuple[str, list[float]]]]:
    """Return names and pixel edges of the objects of each image, sorted; images without a size are left out."""
    paths = [annotation.image for annotation in annotations if annotation.image is not None]
    facts = all_image_facts(paths, [], digest=False)
    boxes: dict[Path, list[tuple[str, list[float]]]] = {}
    for annotation in annotations:
        if annotation.image in facts and (item := locate(annotation, annotation.image, facts[annotation.image], [])):
            boxes[annotation.image] = sorted(zip(item.names, item.boxes.tolist()))
    return boxes


def _located(listing: Listing, annotations: list[Annotation], problems: list[Problem], decode: bool) -> list[Located]:
    """Return the images whose annotations can be used, and add what is wrong to the problems."""
    root = listing.root
    by_image: dict[Path, list[Annotation]] = {}
    for annotation in annotations:
        if annotation.image is None:
            name = annotation.name or annotation.file.stem
            message = f"{annotation.file}: image {name!r} is not in {root}; add it or remove the annotation"
            problems.append(Problem("no image", str(annotation.file), message, True))
        else:
            by_image.setdefault(annotation.image, []).append(annotation)
    for path in sorted(set(listing.images) - by_image.keys()):
        message = f"{path}: has no annotation; label it, or save an annotation without objects"
        problems.append(Problem("no annotation", str(path), message))
    facts = all_image_facts(sorted(by_image), problems, decode)
    images = []
    for path, several in by_image.items():
        first = several[0]
        if any(other.objects != first.objects for other in several[1:]):
            files = " and ".join(str(annotation.file) for annotation in several[:2])
            message = f"{path}: is annotated differently in {files}; remove one of them"
            problems.append(Problem("annotation", str(path), message, True))
        elif path in facts and (item := locate(first, path, facts[path], problems)):
            item.split = next((annotation.split for annotation in several if annotation.split), None)
            images.append(item)
    return images


def _ids(root: Path, paths: Sequence[Path]) -> list[str]:
    """Return the ids of images: their names without suffix, and with their folders where names occur twice.

    Ids hold no white space, no ``/`` and at most 100 bytes, as they stand in result files and in names of files.
    """
    stems = Counter(_as_id(path.stem) for path in paths)
    ids: list[str] = []
    used: set[str] = set()
    for path in paths:
        image_id = _as_id(path.stem)
        if stems[image_id] > 1:
            image_id = _as_id("_".join(path.relative_to(root).with_suffix("").parts))
        if image_id in used or len(image_id.encode()) > _LONGEST_ID:
            digest = hashlib.blake2b(str(path.relative_to(root)).encode(), digest_size=4).hexdigest()
            image_id = f"{image_id.encode()[: _LONGEST_ID - 9].decode(errors='ignore')}-{digest}"
        used.add(image_id)
        ids.append(image_id)
    return ids


def _as_id(name: str) -> str:
    """Return a name with white space and signs that file names cannot hold replaced by ``_``."""
    return "".join("_" if letter.isspace() or letter in NOT_IN_FILE_NAMES else letter for letter in name)


def _check_duplicates(images: Sequence[Located], problems: list[Problem]) -> None:
    """Add the problem of images that have one content under several names."""
    for group in duplicate_groups(images):
        if len(group) > 1:
            names = " and ".join(str(image.path) for image in group)
            across = len({image.split for image in group}) > 1
            kind = "duplicate in splits" if across else "duplicate"
            message = f"{names}: are the same image; remove all but one"
            problems.append(Problem(kind, str(group[0].path), message))


def duplicate_groups(images: Sequence[Located]) -> list[list[Located]]:
    """Return the images in groups of one content, sorted by its digest."""
    groups: dict[str, list[Located]] = {}
    for image in images:
        groups.setdefault(image.facts.digest, []).append(image)
    return [groups[digest] for digest in sorted(groups)]


def _sides(images: Sequence[Located]) -> np.ndarray:
    """Return the square root of the area of every object, in pixels."""
    boxes = np.concatenate([np.zeros((0, 4), np.float32), *(image.boxes for image in images)])
    return np.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))


def _images_with(images: Sequence[Located], name: str) -> int:
    """Return the number of images that have an object of a class."""
    return sum(name in image.names for image in images)
