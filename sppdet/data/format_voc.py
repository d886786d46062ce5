"""Folders of PASCAL VOC's XML: VOC's layout, XML beside the images (labelImg), one folder per split (Roboflow)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from sppdet.data.annotations import Annotation
from sppdet.data.listing import SPLITS, Listing, read_text, split_name, start_of
from sppdet.data.names import file_key
from sppdet.data.problems import Problem
from sppdet.data.voc_xml import read_voc_xml
from sppdet.utils import SppdetError, counted


def recognise(listing: Listing) -> list[Path]:
    """Return the XML files that have VOC's tags, or the name of an image."""
    stems = {file_key(path.stem) for path in listing.images}
    return [path for path in listing.with_suffix(".xml") if file_key(path.stem) in stems or _has_tags(path)]


def _has_tags(path: Path) -> bool:
    """Whether the start of a file has tags of VOC's XML, or is empty or unreadable: reading it names what is wrong."""
    start = start_of(path)
    return not start or re.search(r"<([\w.-]+:)?(annotation|object|bndbox|filename)\b", start, re.I) is not None


def read(listing: Listing, files: Sequence[Path], problems: list[Problem]) -> list[Annotation]:
    """Read annotations; the image is the one of the same name, or of several the one that ``<filename>`` names.

    ``<path>`` is not read: it is a path of the machine on which the image was annotated.
    """
    splits = _splits_of_lists(listing, problems)
    annotations = []
    for file in files:
        try:
            content = read_voc_xml(file)
        except SppdetError as error:
            problems.append(Problem("annotation", str(file), str(error), True))
            continue
        try:
            image = _image(listing, file, content.filename, content.size)
        except SppdetError as error:
            problems.append(Problem("ambiguous image", str(file), str(error), True))
            continue
        split = splits.get(file_key(file.stem)) or listing.split_of(file)
        if split is None and image is not None:
            split = listing.split_of(image)
        annotations.append(Annotation(file, image, content.objects, "voc", content.size, split))
    return annotations


def _image(listing: Listing, file: Path, filename: str | None, size: tuple[int, int] | None) -> Path | None:
    """Return the image of an annotation: the one of its name, else the one that it names."""
    try:
        if image := listing.of_stem(file.stem, file):
            return image
    except SppdetError:
        named = None
        if filename is not None and file_key(Path(filename).stem) == file_key(file.stem):
            named = listing.named(filename, file)
        if named is None:
            raise
        return named
    return listing.named(filename, file) if filename is not None else None


def _splits_of_lists(listing: Listing, problems: list[Problem]) -> dict[str, str]:
    """Return the splits of images by the keys of their ids, from the lists in ``ImageSets/Main``.

    An image that is in several lists is in the first one of ``test``, ``val``, ``train`` and ``trainval``.
    """
    splits: dict[str, str] = {}
    stems = {file_key(path.stem) for path in listing.images}
    paths = [path for path in listing.with_suffix(".txt") if path.match("[Ii]mage[Ss]ets/[Mm]ain/*")]
    for split, path in [(split, path) for split in SPLITS for path in paths if split_name(path.stem) == split]:
        lines = filter(None, map(str.strip, read_text(path).splitlines()))
        ids = [re.sub(r"\s+(-1|0|1)$", "", line) for line in lines]
        for image_id in ids:
            splits.setdefault(file_key(image_id), split)
        if missing := [image_id for image_id in ids if file_key(image_id) not in stems]:
            names = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
            images = counted(len(missing), "image")
            message = f"{path}: names {images} that are not there ({names}); add or drop them"
            problems.append(Problem("listed", str(path), message))
    return splits
