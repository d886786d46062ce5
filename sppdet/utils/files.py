"""Files that are whole or absent: atomic writes, and fingerprints of the values that a result depends on."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError

from sppdet.utils.errors import SppdetError

Value = TypeVar("Value")


def atomic_write(path: str | os.PathLike[str], write: Callable[[Path], object]) -> None:
    """Call ``write(temporary)`` and rename that file to ``path``, so that no reader sees an incomplete file.

    Args:
        path: the file; its folder is created, an older file is replaced.
        write: writes the content to the path that it receives, which ends in the suffix of ``path``.

    Raises:
        OSError: writing failed; the exception names a file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last: numpy and Pillow read the format from it.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}-{threading.get_ident()}{path.suffix}")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        write(temporary)
        temporary.chmod(mode)  # as the user's umask has it: safetensors makes files readable by their owner only
        os.replace(temporary, path)
    except SafetensorError as error:
        raise OSError(errno.EIO, str(error), str(path)) from None
    except OSError as error:
        error.filename = error.filename or str(path)  # the error of a full disk names no file
        raise
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def require_writable(key: str, folder: Path) -> None:
    """Create ``folder`` and check that files can be written into it.

    Args:
        key: the setting that names the folder, such as ``run.dir``.
        folder: the folder; its parents are created too.

    Raises:
        SppdetError: the folder cannot be created or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write(folder / "writable", lambda temporary: temporary.write_text("yes"))
        (folder / "writable").unlink()
    except OSError as error:
        raise SppdetError(f"{key}: {folder} cannot be written ({error.strerror}); choose another folder") from None


def write_json(path: str | os.PathLike[str], value: object) -> None:
    """Write ``value`` as indented JSON.

    Raises:
        OSError: the file cannot be written.
    """
    text = json.dumps(value, indent=2) + "\n"
    atomic_write(path, lambda temporary: temporary.write_text(text))


def read_json(path: str | os.PathLike[str]) -> Any:
    """Return the content of a JSON file.

    Raises:
        SppdetError: the file is missing or damaged.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SppdetError(f"{path}: not readable as JSON ({error}); remove it and run the command again") from None


def write_lines(path: str | os.PathLike[str], lines: Iterable[str]) -> None:
    """Write UTF-8 text with ``\\n`` after each line, on every operating system.

    Raises:
        SppdetError: the file cannot be written.
    """

    def write(temporary: Path) -> None:
        with open(temporary, "w", encoding="utf-8", newline="\n") as file:
            file.writelines(line + "\n" for line in lines)

    try:
        atomic_write(path, write)
    except OSError as error:
        raise SppdetError(f"{path}: cannot be written ({error.strerror}); choose another path") from None


# This line stands in the documents of docs/.
BY_HAND = "<!-- From here on by hand: what writes this file keeps it. -->"


def write_document(path: str | os.PathLike[str], text: str) -> None:
    """Write a Markdown file, and keep what follows the line `BY_HAND` in an older file of this path.

    Raises:
        SppdetError: the file cannot be written.
    """
    old = Path(path).read_text(encoding="utf-8") if Path(path).exists() else ""
    _, mark, by_hand = old.partition(BY_HAND)
    kept = ["", *(mark + by_hand).splitlines()] if mark else []
    write_lines(path, [*text.splitlines(), *kept])


def entries_under(values: Mapping[str, Value], prefix: str) -> dict[str, Value]:
    """Return the entries whose names start with ``prefix``, without the prefix.

    Examples:
        >>> entries_under({"head.fc6": 1, "head.fc7": 2, "trunk.conv1": 3}, "head.")
        {'fc6': 1, 'fc7': 2}
    """
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}


def fingerprint(value: object) -> str:
    """Return 16 hexadecimal digits of the JSON form of ``value``; the order of keys does not matter.

    Examples:
        >>> fingerprint({"scales": [480, 688]})
        '98b25dadeda55816'
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def file_digest(path: str | os.PathLike[str]) -> str:
    """Return 16 hexadecimal digits of a file's content.

    Raises:
        SppdetError: the file cannot be read.
    """
    try:
        return hashlib.blake2b(Path(path).read_bytes(), digest_size=8).hexdigest()
    except OSError as error:
        raise SppdetError(f"{path}: cannot be read ({error.strerror}); check the path") from None
