"""The files of a labelled folder, and which image an annotation means."""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from sppdet.data.image_files import is_image_name
from sppdet.data.names import file_key
from sppdet.utils import SppdetError

SPLIT_FILE = "sppdet-splits.json"  # written by `sppdet.data.splits`; no annotation
SPLITS = ("test", "val", "train", "trainval")  # an image that is in several lists is in the first of these
# Names of splits in paths -> ours.
_SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val"} | {
    "test": "test",
    "testing": "test",
    "trainval": "trainval",
}


@dataclass(frozen=True)
class Listing:
    """The files below a folder, also through links; hidden files and folders are passed over.

    Attributes:
        root: the folder.
        images: files that are images by their names.
        others: all other files.
    """

    root: Path
    images: tuple[Path, ...]
    others: tuple[Path, ...]

    @classmethod
    def of(cls, root: Path) -> Listing:
        """List a folder.

        Raises:
            SppdetError: there is no such folder, or it cannot be read.
        """
        if not root.is_dir():
            raise SppdetError(f"{root}: no such folder; give a folder of images and annotations")
        images: list[Path] = []
        others: list[Path] = []

        def refuse(error: OSError) -> None:
            raise SppdetError(f"{error.filename}: cannot be read ({error.strerror}); check its permissions")

        entered: set[str] = set()
        starts = [str(root)]  # then links to folders: each folder is listed once, by its real path where that is below
        for start in starts:
            for folder, subfolders, names in os.walk(start, onerror=refuse):
                if (real := os.path.realpath(folder)) in entered:
                    subfolders.clear()
                    continue
                entered.add(real)
                subfolders[:] = sorted(name for name in subfolders if not name.startswith((".", "__MACOSX")))
                links = [path for name in subfolders if os.path.islink(path := os.path.join(folder, name))]
                starts += [path for path in links if not root.resolve().is_relative_to(os.path.realpath(path))]
                for name in sorted(name for name in names if not name.startswith(".") and name != SPLIT_FILE):
                    (images if is_image_name(name) else others).append(Path(folder, name))
        return cls(root, tuple(images), tuple(others))

    def with_suffix(self, *suffixes: str) -> list[Path]:
        """Return the other files whose names end so, whatever their case."""
        return [path for path in self.others if path.suffix.lower() in suffixes]

    def split_of(self, path: Path) -> str | None:
        """Return the split that a path below the root says it is in: ``train``, ``val``, ``test``, ``trainval``.

        The folder nearest to the root that is named like a split decides, then the name of an annotation file.

        Examples:
            >>> listing = Listing(Path("d"), (), ())
            >>> listing.split_of(Path("d/valid/images/a.jpg")), listing.split_of(Path("d/instances_train2017.json"))
            ('val', 'train')
        """
        *folders, name = path.relative_to(self.root).parts
        for folder in folders:
            if found := split_name(folder):
                return found
        if is_image_name(name):
            return None
        return next((found for word in re.split(r"[\W_]+", Path(name).stem) if (found := split_name(word))), None)

    @cached_property
    def _by_name(self) -> dict[str, list[Path]]:
        """Images by the key of their name."""
        return self._index(lambda path: path.name)

    @cached_property
    def _by_stem(self) -> dict[str, list[Path]]:
        """Images by the key of their name without suffix."""
        return self._index(lambda path: path.stem)

    def _index(self, name: Callable[[Path], str]) -> dict[str, list[Path]]:
        index: dict[str, list[Path]] = {}
        for path in self.images:
            index.setdefault(file_key(name(path)), []).append(path)
        return index

    def named(self, name: str, annotation: Path) -> Path | None:
        """Return the image that an annotation names.

        Only the last parts of the name count where it leads elsewhere: tools write absolute paths of other machines.

        Args:
            name: file name or path, with ``/`` or ``\\``.
            annotation: the file that names it.

        Raises:
            SppdetError: several images fit equally well.
        """
        parts = [part for part in re.split(r"[\\/]+", name) if part not in ("", ".", "..")]
        if not parts:
            return None
        candidates = self._by_name.get(file_key(parts[-1]), [])
        return self._best(candidates, parts, annotation)

    def of_stem(self, stem: str, annotation: Path) -> Path | None:
        """Return the image whose name without suffix is ``stem``, seen from an annotation.

        Raises:
            SppdetError: several images fit equally well.
        """
        return self._best(self._by_stem.get(file_key(stem), []), [stem], annotation)

    def _best(self, candidates: Sequence[Path], parts: Sequence[str], annotation: Path) -> Path | None:
        """Return the candidate that fits the parts of a path and lies nearest to the annotation."""
        if len(candidates) < 2:
            return candidates[0] if candidates else None

        def fit(path: Path) -> tuple:
            """Return how well a candidate fits, the best last."""
            exact = path.name == parts[-1] or path.stem == parts[-1]
            same_tail = 0
            for mine, wanted in zip(reversed(path.parts[:-1]), reversed(parts[:-1])):
                if mine != wanted:
                    break
                same_tail += 1
            beside = _without(path.parent, "images", "jpegimages") == _without(
                annotation.parent, "labels", "annotations"
            )
            return same_tail, beside, self.split_of(path) == self.split_of(annotation), exact

        ranked = sorted(candidates, key=fit)
        if fit(ranked[-1]) == fit(ranked[-2]):
            names = " and ".join(str(path.relative_to(self.root)) for path in ranked[-2:])
            raise SppdetError(f"{annotation}: may belong to {names}; rename or remove one")
        return ranked[-1]


def split_name(word: str) -> str | None:
    """Return the split that a word names: ``train2017`` is ``train``, CVAT's folder ``obj_Validation_data`` ``val``."""
    return _SPLITS.get(re.sub(r"^obj_(.*)_data$|\d+$", r"\1", word.lower()))


def _without(folder: Path, *names: str) -> tuple[str, ...]:
    """Return the parts of a folder's path without those names."""
    return tuple(part for part in folder.parts if part.lower() not in names)


def read_text(path: Path) -> str:
    """Return the text of a file: UTF-8, or UTF-16 with a byte-order mark, as Excel and PowerShell write it.

    Raises:
        SppdetError: the file is in another encoding, or cannot be read.
    """
    try:
        return _decoded(path.read_bytes())
    except UnicodeDecodeError:
        raise SppdetError(f"{path}: is not UTF-8 text; save it as UTF-8") from None
    except OSError as error:
        raise SppdetError(f"{path}: cannot be read ({error.strerror}); check the file") from None


def start_of(path: Path) -> str:
    """Return the first 4096 bytes of a file as text, in whatever encoding; empty if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return _decoded(file.read(4096), "replace")
    except OSError:
        return ""


def _decoded(content: bytes, errors: str = "strict") -> str:
    utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return content.decode("utf-16" if utf16 else "utf-8-sig", errors)


@contextmanager
def expecting(path: Path, form: str) -> Iterator[None]:
    """Turn errors about values of an unexpected form into one `SppdetError` that names the file."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise SppdetError(f"{path}: is not as {form} should be ({what}); export it again") from None
