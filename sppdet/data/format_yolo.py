"""YOLO's text files: one per image, one line per object, with names in ``data.yaml``, ``classes.txt`` or nowhere."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import groupby, takewhile
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from sppdet.data.annotations import Annotation, Object
from sppdet.data.image_files import expanded
from sppdet.data.listing import SPLITS, Listing, read_text, split_name, start_of
from sppdet.data.names import file_key
from sppdet.data.polygons import box_around
from sppdet.data.problems import Problem
from sppdet.utils import SppdetError

_UNNAMED = "class "  # before the number of a class without a name
# Files that name the classes, in order of preference; other YAML files and other ``*.names`` do so, too.
_NAMES_FILES = (
    "data.yaml",
    "data.yml",
    "classes.txt",
    "obj.names",
    "_darknet.labels",
    "labels.txt",
    "predefined_classes.txt",
    "classes.names",
)


def recognise(listing: Listing) -> list[Path]:
    """Return the text files that belong to images, if at least one of them holds lines of numbers."""
    stems = {file_key(path.stem) for path in listing.images}
    files = [path for path in listing.with_suffix(".txt") if path.name.lower() not in _NAMES_FILES]
    labels = {path for path in files if file_key(path.stem) in stems}
    if not any(_has_numbers(path) for path in labels):
        return []
    folders = {path.parent for path in labels if path.parent != listing.root}
    return [path for path in files if path in labels or (path.parent in folders and _has_numbers(path))]


def _has_numbers(path: Path) -> bool:
    """Whether the first line that is not empty holds five numbers or more."""
    try:
        words = next((line.split() for line in read_text(path).splitlines() if line.strip()), [])
        return len([float(word) for word in words]) >= 5
    except (ValueError, SppdetError):
        return False


def read(listing: Listing, files: Sequence[Path], problems: list[Problem]) -> list[Annotation]:
    """Read annotations; polygons become the boxes around them. Without names, the classes are ``class 0`` and so on.

    Each label file has the names that lie nearest above it, so that exports that number classes differently may lie
    side by side.
    """
    sources = _Sources(listing.others)
    splits_of_settings = cache(lambda file: _splits_of_settings(listing, file, sources.settings(file), problems))
    splits_of_lists = _splits_of_lists(listing)
    annotations = []
    for file in files:
        try:
            image = listing.of_stem(file.stem, file)
        except SppdetError as error:
            problems.append(Problem("ambiguous image", str(file), str(error), True))
            continue
        naming = sources.nearest(file.parent, (image or file).parent)
        keypoints = "kpt_shape" in naming.settings
        try:
            objects = [
                _read_line(f"{file}: line {number}", line.split(), naming.names, keypoints)
                for number, line in enumerate(read_text(file).splitlines(), 1)
                if line.strip()
            ]
        except SppdetError as error:
            problems.append(Problem("annotation", str(file), str(error), True))
            continue
        split = None
        if image is not None:
            split = splits_of_settings(naming.settings_file).get(image) or splits_of_lists.get(image)
        split = split or listing.split_of(file) or (listing.split_of(image) if image else None)
        annotations.append(Annotation(file, image, objects, "fractions", None, split))
    return annotations


def _read_line(where: str, words: Sequence[str], names: Sequence[str] | None, keypoints: bool) -> Object:
    """Read one object: class, then centre and size of its box, or the corners of a polygon."""
    try:
        label, numbers = float(words[0]), [float(word) for word in words[1:]]
    except ValueError:
        raise SppdetError(f"{where} holds a word that is no number; write class, x, y, width, height") from None
    if not label.is_integer() or label < 0 or not all(abs(number) < 1e9 for number in numbers):
        raise SppdetError(f"{where} has no class number from 0, or no finite numbers; correct it")
    if names is not None and label >= len(names):
        raise SppdetError(
            f"{where} has class {int(label)}, but there are {len(names)} names, from 0; correct one of them"
        )
    name = f"{_UNNAMED}{int(label)}" if names is None else names[int(label)]
    if len(numbers) in (4, 5) or (keypoints and len(numbers) > 4):  # the fifth number is the score of a detection
        x, y, width, height = numbers[:4]
        return Object(name, (x - width / 2, y - height / 2, x + width / 2, y + height / 2))
    if len(numbers) >= 6 and len(numbers) % 2 == 0:
        return Object(name, box_around(list(zip(numbers[::2], numbers[1::2]))))
    raise SppdetError(f"{where} has {len(words)} numbers; write class, x, y, width, height")


def numbers_without_names(classes: Sequence[str]) -> dict[str, int]:
    """Return the numbers of classes that were read from labels without names; empty if they are others.

    Examples:
        >>> numbers_without_names(["class 0", "class 10"]), numbers_without_names(["cat", "class 1"])
        ({'class 0': 0, 'class 10': 10}, {})
    """
    numbers = {name: name.removeprefix(_UNNAMED) for name in classes}
    if not all(name.startswith(_UNNAMED) and number.isdecimal() for name, number in numbers.items()):
        return {}
    return {name: int(number) for name, number in numbers.items()}


class _Naming(NamedTuple):
    """The names and settings that hold for the label files of a folder.

    Attributes:
        names_file: the file that names the classes; None without one.
        names: the names; None without a file.
        settings_file: the YAML file that says where images are; None without one.
        settings: its content.
    """

    names_file: Path | None
    names: list[str] | None
    settings_file: Path | None
    settings: dict[str, Any]


class _Sources:
    """The files among ``paths`` that name classes or say where images are."""

    def __init__(self, paths: Iterable[Path]):
        self._paths = [path for path in paths if _is_yaml(path) or _lists_names(path)]
        self.settings = cache(_read_settings)
        self.nearest = cache(self._nearest)

    def _nearest(self, *folders: Path) -> _Naming:
        """Return what holds for label files and images in these folders.

        Files in the folders or above them come first, YAML before lists of names, the nearest before others.

        Raises:
            SppdetError: a file cannot be read, or two files of one rank name classes differently.
        """
        above = {parent for folder in folders for parent in (folder, *folder.parents)}

        def rank(path: Path) -> tuple[bool, bool, int, int]:
            is_above, name = path.parent in above, path.name.lower()
            preference = _NAMES_FILES.index(name) if name in _NAMES_FILES else len(_NAMES_FILES)
            return not is_above, not _is_yaml(path), -len(path.parts) if is_above else 0, preference

        paths = sorted(self._paths, key=rank)
        names_by_rank = (self._names(group) for _, group in groupby(paths, rank))
        names_file, names = next(filter(None, names_by_rank), (None, None))
        settings_file = names_file
        if settings_file is None or not _is_yaml(settings_file):
            settings_file = next(filter(self.settings, paths), None)
        return _Naming(names_file, names, settings_file, self.settings(settings_file))

    def _names(self, paths: Iterable[Path]) -> tuple[Path, list[str]] | None:
        """Return the first file with names, and the names that all must share; None without names."""
        first = None
        for path in paths:
            names = _names_in_settings(path, self.settings(path)) if _is_yaml(path) else _names_in_lines(path)
            if first is None and names is not None:
                first = path, names
            elif first is not None and names not in (None, first[1]):
                raise SppdetError(
                    f"{first[0]}: names other classes than {path}; remove one, or put each above its label files"
                )
        return first


def _is_yaml(path: Path) -> bool:
    """Whether a file is YAML by its name."""
    return path.suffix.lower() in (".yaml", ".yml")


def _lists_names(path: Path) -> bool:
    """Whether a file has one name of a class per line."""
    return path.name.lower() in _NAMES_FILES or path.suffix.lower() == ".names"


def names_in(folder: Path) -> tuple[Path | None, list[str] | None]:
    """Return the file in a folder that names the classes, and the names; None without one."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    naming = _Sources(files).nearest(folder)
    return naming.names_file, naming.names


def _read_settings(path: Path | None) -> dict[str, Any]:
    """Return the content of a YAML file that names classes or folders; empty for another file."""
    if path is None or not _is_yaml(path):
        return {}
    try:
        content = yaml.load(read_text(path), yaml.BaseLoader)  # text alone: 0018, 12:30 and no stay as they are
    except yaml.YAMLError as error:
        raise SppdetError(f"{path}: not YAML ({' '.join(str(error).split())}); correct it") from None
    return content if isinstance(content, dict) and content.keys() & {"names", "nc", "train"} else {}


def _names_in_settings(file: Path, settings: dict[str, Any]) -> list[str] | None:
    """Return the names of the classes in a YAML file; None if it has none."""
    names = settings.get("names")
    if isinstance(names, dict):
        try:
            numbered = {int(number): name for number, name in names.items()}
        except ValueError:
            raise SppdetError(f"{file}: names: expected numbers before the names; correct it") from None
        if sorted(numbered) != list(range(len(numbered))):
            raise SppdetError(f"{file}: names: expected the numbers 0 to {len(numbered) - 1}; correct it")
        names = [numbered[number] for number in range(len(numbered))]
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise SppdetError(f"{file}: names: expected a list of names; correct it")
    return names


def _names_in_lines(path: Path) -> list[str]:
    """Return the names of the classes in a text file of one name per line."""
    return [line.strip() for line in read_text(path).rstrip().splitlines()]


def _splits_of_settings(
    listing: Listing, file: Path | None, settings: dict[str, Any], problems: list[Problem]
) -> dict[Path, str]:
    """Return the split of each image that a YAML file puts into one, by folders, files or lists of files."""
    splits: dict[Path, str] = {}
    images = dict.fromkeys(listing.images)
    for key in ("test", "val", "train"):
        entries = settings.get(key) or []
        for entry in [entries] if isinstance(entries, str) else entries:
            if not isinstance(entry, str) or file is None or not entry:
                continue
            targets = _targets(listing, file, settings.get("path", ""), entry)
            if not targets:
                message = f"{file}: {key} names {entry}, which is not in {listing.root}; correct it or add the folder"
                problems.append(Problem("missing folder", str(file), message, key == "train"))
            for target in targets:
                if target.is_file() and target not in images:
                    for image in _listed_images(listing, target):
                        splits.setdefault(image, key)
            below = targets - {listing.root}
            for image in images:
                if not below.isdisjoint((image, *image.parents)):
                    splits.setdefault(image, key)
    return splits


def _splits_of_lists(listing: Listing) -> dict[Path, str]:
    """Return the split of each image in darknet's lists: ``train.txt``, ``valid.txt``, or what ``obj.data`` names."""
    splits_of_names: dict[str, str] = {}
    for path in listing.with_suffix(".data"):
        for line in start_of(path).splitlines():
            key, _, value = line.partition("=")
            if split := split_name(key.strip()):
                splits_of_names[re.split(r"[\\/]", value.strip())[-1]] = split
    lists = [(splits_of_names.get(path.name) or split_name(path.stem), path) for path in listing.with_suffix(".txt")]
    splits: dict[Path, str] = {}
    for split, path in [(split, path) for split in SPLITS for role, path in lists if role == split]:
        for image in _listed_images(listing, path):
            splits.setdefault(image, split)
    return splits


def _listed_images(listing: Listing, path: Path) -> Iterator[Path]:
    """Yield the images of the folder that a list names, one per line."""
    for line in map(str.strip, read_text(path).splitlines()):
        if image := listing.named(line, path):
            yield image


def _targets(listing: Listing, file: Path, base: str, entry: str) -> set[Path]:
    """Return the folders and files below the root that an entry of a YAML file means, which may be a pattern."""
    target = _inside(listing, file, base, entry)
    if target is None and glob.has_magic(entry):
        parts = entry.replace("\\", "/").split("/")
        fixed = list(takewhile(lambda part: not glob.has_magic(part), parts))
        folder = _inside(listing, file, base, "/".join(fixed))
        pattern = "/".join(parts[len(fixed) :])
        return {Path(path) for path in expanded(f"{glob.escape(str(folder))}/{pattern}")} if folder else set()
    return {target} if target else set()


def _inside(listing: Listing, file: Path, base: str, entry: str) -> Path | None:
    """Return the folder or file below the root that an entry means; None if there is none.

    Absolute paths and the folder ``path:`` are often those of another machine: leading parts of them do not count, nor
    do ``..`` and what stands before the name of the root.
    """
    known = {parent for path in (*listing.images, *listing.others) for parent in path.parents} | set(listing.others)
    base_parts, parts = (
        [part for part in Path(text.replace("\\", "/")).parts if part not in ("..", "/") and not part.endswith(":")]
        for text in (base, entry)
    )
    absolute = entry.startswith("/") or entry[1:2] == ":"
    optional = len(base_parts) + (len(parts) - 1 if absolute else 0)
    parts = base_parts + parts
    if listing.root.name in parts:
        optional = max(optional, parts.index(listing.root.name) + 1)
    for start in (file.parent, listing.root):
        for skipped in range(min(optional, max(len(parts) - 1, 0)) + 1):
            candidate = start.joinpath(*parts[skipped:])
            if candidate in known and listing.root in (candidate, *candidate.parents):
                return candidate
    return None
