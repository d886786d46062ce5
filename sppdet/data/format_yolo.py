"""YOLO's text files: one per image, one line per object, with names in ``data.yaml``, ``classes.txt`` or nowhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from sppdet.data.annotations import Annotation, Object
from sppdet.data.listing import Listing, read_text
from sppdet.data.names import file_key
from sppdet.data.polygons import box_around
from sppdet.data.problems import Problem
from sppdet.utils import SppdetError

_UNNAMED = "class "  # before the number of a class without a name
_NAME_FILES = ("classes.txt", "obj.names", "_darknet.labels", "labels.txt", "predefined_classes.txt", "classes.names")


def recognise(listing: Listing) -> list[Path]:
    """Return the text files that belong to images, if at least one of them holds lines of numbers."""
    stems = {file_key(path.stem) for path in listing.images}
    files = [path for path in listing.with_suffix(".txt") if path.name.lower() not in _NAME_FILES]
    labels = [path for path in files if file_key(path.stem) in stems]
    if not any(_has_numbers(path) for path in labels):
        return []
    folders = {path.parent for path in labels if path.parent != listing.root}
    return [path for path in files if path in set(labels) or (path.parent in folders and _has_numbers(path))]


def _has_numbers(path: Path) -> bool:
    """Whether the first line that is not empty holds five numbers or more."""
    try:
        words = next((line.split() for line in read_text(path).splitlines() if line.strip()), [])
        return len([float(word) for word in words]) >= 5
    except (ValueError, SppdetError):
        return False


def read(listing: Listing, files: Sequence[Path], problems: list[Problem]) -> list[Annotation]:
    """Read annotations; polygons become the boxes around them. Without names, the classes are ``class 0`` and so on."""
    settings_file, settings = _settings(listing)
    names = _names(listing, settings_file, settings)
    splits = _splits_of_settings(listing, settings_file, settings, problems)
    keypoints = "kpt_shape" in settings
    annotations = []
    for file in files:
        try:
            image = listing.of_stem(file.stem, file)
        except SppdetError as error:
            problems.append(Problem("ambiguous image", str(file), str(error), True))
            continue
        try:
            objects = [
                _read_line(f"{file}: line {number}", line.split(), names, keypoints)
                for number, line in enumerate(read_text(file).splitlines(), 1)
                if line.strip()
            ]
        except SppdetError as error:
            problems.append(Problem("annotation", str(file), str(error), True))
            continue
        split = (splits.get(image) if image else None) or listing.split_of(file)
        if split is None and image is not None:
            split = listing.split_of(image)
        annotations.append(Annotation(file, image, objects, "fractions", None, split))
    return annotations


def _read_line(where: str, words: Sequence[str], names: Sequence[str] | None, keypoints: bool) -> Object:
    """Read one object: class, then centre and size of its box, or the corners of a polygon."""
    try:
        label, numbers = float(words[0]), [float(word) for word in words[1:]]
    except ValueError:
        raise SppdetError(f"{where} holds a word that is no number; write class, x, y, width, height") from None
    if label != int(label) or label < 0 or not all(abs(number) < 1e9 for number in numbers):
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


def _settings(listing: Listing) -> tuple[Path | None, dict[str, Any]]:
    """Return the YAML file that names classes or folders, and its content; all scalars are text as they are written."""
    for path in sorted(listing.with_suffix(".yaml", ".yml"), key=lambda path: (path.stem != "data", len(path.parts))):
        try:
            content = yaml.load(read_text(path), yaml.BaseLoader)  # text alone: 0018, 12:30 and no stay as they are
        except yaml.YAMLError as error:
            raise SppdetError(f"{path}: not YAML ({' '.join(str(error).split())}); correct it") from None
        if isinstance(content, dict) and content.keys() & {"names", "nc", "train"}:
            return path, content
    return None, {}


def names_in(folder: Path) -> tuple[Path | None, list[str] | None]:
    """Return the file in a folder that names the classes, and the names; None without one."""
    files = tuple(sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")))
    listing = Listing(folder, (), files)
    settings_file, settings = _settings(listing)
    names = _names(listing, settings_file, settings)
    if "names" in settings:
        return settings_file, names
    return next((path for path in files if path.name.lower() in _NAME_FILES), None), names


def _names(listing: Listing, file: Path | None, settings: dict[str, Any]) -> list[str] | None:
    """Return the names of the classes; None where no file has them."""
    names = settings.get("names")
    if isinstance(names, dict):
        try:
            numbered = {int(number): name for number, name in names.items()}
        except ValueError:
            raise SppdetError(f"{file}: names: expected numbers before the names; correct it") from None
        if sorted(numbered) != list(range(len(numbered))):
            raise SppdetError(f"{file}: names: expected the numbers 0 to {len(numbered) - 1}; correct it")
        names = [numbered[number] for number in range(len(numbered))]
    if isinstance(names, list) and all(isinstance(name, str) for name in names):
        return names
    if names is not None:
        raise SppdetError(f"{file}: names: expected a list of names; correct it")
    for path in listing.others:
        if path.name.lower() in _NAME_FILES:
            lines = [line.strip() for line in read_text(path).splitlines()]
            while lines and not lines[-1]:
                lines.pop()
            return lines
    return None


def _splits_of_settings(
    listing: Listing, file: Path | None, settings: dict[str, Any], problems: list[Problem]
) -> dict[Path, str]:
    """Return the split of each image that a YAML file puts into one, by a folder or a list of files."""
    splits: dict[Path, str] = {}
    for key in ("test", "val", "train"):
        entries = settings.get(key) or []
        for entry in [entries] if isinstance(entries, str) else entries:
            if not isinstance(entry, str) or file is None or not entry:
                continue
            target = _inside(listing, file, settings.get("path", ""), entry)
            if target is None:
                message = f"{file}: {key} names {entry}, which is not in {listing.root}; correct it or add the folder"
                problems.append(Problem("missing folder", str(file), message, key == "train"))
            elif target.is_file():
                for line in filter(None, map(str.strip, read_text(target).splitlines())):
                    if image := listing.named(line, target):
                        splits.setdefault(image, key)
            else:
                for image in listing.images:
                    if target in image.parents and target != listing.root:
                        splits.setdefault(image, key)
    return splits


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
        for skipped in range(min(optional, len(parts) - 1) + 1):
            candidate = start.joinpath(*parts[skipped:])
            if candidate in known and listing.root in (candidate, *candidate.parents):
                return candidate
    return None
