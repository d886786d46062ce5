"""Names that people typed: characters that nobody sees, and names that differ by them alone."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from sppdet.utils import SppdetError

_LONGEST = 100  # bytes
NOT_IN_FILE_NAMES = '/\\:*?"<>|'
NO_FILE_NAME = (
    f"result files cannot have it in their names (no {' '.join(NOT_IN_FILE_NAMES)}, {_LONGEST} bytes at most)"
)

# Zero-width space, word joiner, byte-order mark, soft hyphen, marks of direction. Joiners (U+200C, U+200D) stay, as
# scripts and emoji need them.
_UNSEEN = dict.fromkeys(map(ord, "\u200b\u2060\ufeff\u00ad\u200e\u200f"))


def clean_name(text: str) -> str:
    """Return a name in Unicode's composed form (NFC), without unseen characters and with plain single spaces.

    Examples:
        >>> clean_name("\\ufeffcafe\\u0301\\u200b  au\\u00a0lait ")
        'café au lait'
    """
    text = unicodedata.normalize("NFC", text.translate(_UNSEEN))
    return " ".join(text.split())


def name_key(text: str) -> str:
    """Return what names have in common that differ by case, spaces, ``_``, ``-`` or unseen characters alone.

    Examples:
        >>> name_key("Traffic_light") == name_key("traffic  light") == name_key("TRAFFIC-LIGHT")
        True
    """
    visible = "".join(letter for letter in clean_name(text) if unicodedata.category(letter) != "Cf")
    return re.sub(r"[\s_-]+", "", visible).casefold()


def file_key(name: str) -> str:
    """Return what file names have in common that differ by case or unseen characters alone.

    Examples:
        >>> file_key("IMG 1.JPG") == file_key("img 1.jpg\\u200b"), file_key("a b.jpg") == file_key("ab.jpg")
        (True, False)
    """
    return clean_name(name).casefold()


def fits_file_names(name: str) -> bool:
    """Whether a class or a split can stand in the names of VOC's result files.

    Examples:
        >>> fits_file_names("traffic light"), fits_file_names("traffic/light")
        (True, False)
    """
    return bool(name) and not set(name) & {*NOT_IN_FILE_NAMES, *"\0\n\r"} and len(name.encode()) <= _LONGEST


def check_class_names(names: Iterable[str], where: str) -> None:
    """Refuse class names that result files cannot hold in their names.

    Raises:
        SppdetError: names the first of them, and ``where`` it is from.
    """
    for name in names:
        if not fits_file_names(name):
            raise SppdetError(f"{where}: class {name!r}: {NO_FILE_NAME}; rename it")
