"""Problems of a labelled folder, as data and as text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sppdet.utils import SppdetError

_SHOWN = 10  # fatal problems that one error names; the others are counted

# What each kind of problem is, in the order of a report. Where it is repaired, the text says how.
KINDS = {
    "format": "files of another format, passed over",
    "missing folder": "folders that a YAML file names and that do not exist",
    "unreadable image": "images that cannot be read",
    "truncated": "images that are cut off at the end, decoded as far as they go",
    "annotation": "annotations that cannot be read",
    "no image": "annotations without image",
    "listed": "lists of images that name some that are not there, passed over",
    "ambiguous image": "annotations that may belong to several images",
    "no annotation": "images without annotation, left out",
    "absurd": "boxes with absurd numbers",
    "inverted": "boxes whose corners are swapped",
    "outside": "boxes outside their image",
    "class": "objects of an unknown class",
    "no area": "boxes without area, left out",
    "twice": "objects annotated twice, used once",
    "clipped": "boxes that reach beyond their image, clipped",
    "0-based": (
        "boxes that start at 0 although VOC counts pixels from 1, so that all boxes of these files may be off by one "
        "pixel (0-based)"
    ),
    "fractions": "boxes in fractions where pixels are expected, multiplied by the size of the image",
    "single pixel": "boxes of a single pixel, likely stray clicks, kept",
    "covers": "boxes that cover their whole image",
    "nearly twice": "objects that may be annotated twice: two boxes of one class with an IoU above 0.9",
    "size": (
        "images of another size than their annotation says, perhaps resized or turned after it was written, so that "
        "boxes may be wrong"
    ),
    "turned": (
        "images that EXIF turns or mirrors; their boxes must be those of the image as displayed, which nothing tells "
        "for these"
    ),
    "object left out": "objects of a kind that has no box, left out",
    "duplicate": "images with the same content under several names",
    "duplicate in splits": "images with the same content in several splits, so that figures will be too high",
    "unseen characters": "names that differ by unseen characters alone, taken as one",
    "similar classes": "classes whose names differ by case or spaces alone, perhaps one class",
    "class name": "classes whose names result files cannot have, so that they must be renamed before training",
    "no split": "images in none of the folder's splits, neither learned from nor measured on",
    "few objects": "classes with few objects",
}
# Kinds that may well be right: a report lists them, a warning does not.
NOTES = {"covers", "nearly twice", "few objects"}


@dataclass(frozen=True)
class Problem:
    """Something wrong, or odd, in a labelled folder.

    Attributes:
        kind: one of `KINDS`.
        file: path of the file that is to be corrected.
        message: one line: the file, what is wrong and what to do.
        fatal: whether the image cannot be used; otherwise it is used as the kind says.
    """

    kind: str
    file: str
    message: str
    fatal: bool = False


def report_lines(problems: Iterable[Problem], prefix: str = "") -> list[str]:
    """Return every problem, sorted by kind under a line with the kind and its count.

    Args:
        problems: in any order.
        prefix: folder that is cut from the start of messages.

    Examples:
        >>> report_lines([Problem("covers", "a.xml", "a.xml: cat covers the image")])
        ['boxes that cover their whole image: 1', '  a.xml: cat covers the image']
    """
    lines = []
    for kind, group in _by_kind(problems).items():
        lines.append(f"{KINDS[kind]}: {len(group)}")
        lines += [f"  {problem.message.removeprefix(prefix)}" for problem in group]
    return lines


def remarks(problems: Iterable[Problem]) -> list[str]:
    """Return one clause for each kind of problems that are not fatal, notes left out, with the first three files."""
    kinds = _by_kind(problem for problem in problems if not problem.fatal and problem.kind not in NOTES)
    return [
        f"{KINDS[kind]}: {len(group)} ({listed([problem.file for problem in group])})" for kind, group in kinds.items()
    ]


def raise_fatal(problems: Iterable[Problem], remedy: str = "") -> None:
    """Raise one error for all fatal problems, a line for each of the first ten files; nothing if there are none.

    Args:
        problems: any problems.
        remedy: a last line for the error.
    """
    messages = list(dict.fromkeys(problem.message for problem in problems if problem.fatal))
    if messages:
        more = [f"and {len(messages) - _SHOWN} more"] if len(messages) > _SHOWN else []
        raise SppdetError("\n".join([*messages[:_SHOWN], *more, *([remedy] if remedy else [])]))


def listed(files: Sequence[str | Path]) -> str:
    """Return the names of the first three files, each once."""
    names = list(dict.fromkeys(Path(file).name for file in files))
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _by_kind(problems: Iterable[Problem]) -> dict[str, list[Problem]]:
    """Return problems by kind, in the order of `KINDS`, fatal ones first."""
    ordered = sorted(problems, key=lambda problem: not problem.fatal)
    groups = {kind: [problem for problem in ordered if problem.kind == kind] for kind in KINDS}
    return {kind: group for kind, group in groups.items() if group}
