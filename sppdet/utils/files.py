"""Files that are whole or absent: atomic writes, and fingerprints of what a result depends on."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError

from sppdet.utils.errors import SppdetError


def atomic_write(path: str | os.PathLike, write: Callable[[Path], object]) -> None:
    """Call ``write(temporary)`` and move that file to ``path``, so that no reader ever sees half of it.

    Raises:
        OSError: where that fails; it names a file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last: numpy and Pillow read the format from it.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}-{threading.get_ident()}{path.suffix}")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        write(temporary)
        temporary.chmod(mode)  # what the user's umask says: safetensors keeps its files to their owner
        os.replace(temporary, path)
    except SafetensorError as error:
        raise OSError(errno.EIO, str(error), str(path)) from None
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk's has none
        raise
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def require_writable(key: str, folder: Path) -> None:
    """Make the folder that setting ``key`` names.

    Raises:
        SppdetError: where that fails, or nothing can be written into it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write(folder / "writable", lambda temporary: temporary.write_text("yes"))
        (folder / "writable").unlink()
    except OSError as error:
        raise SppdetError(f"{key}: {folder} cannot be written ({error.strerror}); choose another place") from None


def write_json(path: str | os.PathLike, value) -> None:
    text = json.dumps(value, indent=2) + "\n"
    atomic_write(path, lambda temporary: temporary.write_text(text))


def write_lines(path: str | os.PathLike, lines: Iterable[str]) -> None:
    """Write text with ``\\n`` after each line, whatever the system.

    Raises:
        SppdetError: where the file cannot be written.
    """

    def write(temporary: Path) -> None:
        with open(temporary, "w", encoding="utf-8", newline="\n") as file:
            file.writelines(line + "\n" for line in lines)

    try:
        atomic_write(path, write)
    except OSError as error:
        raise SppdetError(f"{path}: cannot be written ({error.strerror}); choose another place") from None


BY_HAND = "<!-- From here on by hand: what writes this file keeps it. -->"


def write_document(path: str | os.PathLike, text: str) -> None:
    """Write Markdown; what an older file has from the line :data:`BY_HAND` on stays behind it.

    Raises:
        SppdetError: where the file cannot be written.
    """
    old = Path(path).read_text(encoding="utf-8") if Path(path).exists() else ""
    _, mark, by_hand = old.partition(BY_HAND)
    kept = ["", *(mark + by_hand).splitlines()] if mark else []
    write_lines(path, [*text.splitlines(), *kept])


def read_json(path: str | os.PathLike):
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SppdetError(f"{path}: not readable as JSON ({error}); remove it and run the command again") from None


def entries_under(values: dict, prefix: str) -> dict:
    """The entries whose names start with ``prefix``, by the rest of their names: a module's of a file of several."""
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}


def fingerprint(value) -> str:
    """16 hexadecimal digits that change whenever the JSON form of ``value`` does."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def file_digest(path: str | os.PathLike) -> str:
    """16 hexadecimal digits of a file's content."""
    try:
        return hashlib.blake2b(Path(path).read_bytes(), digest_size=8).hexdigest()
    except OSError as error:
        raise SppdetError(f"{path}: cannot be read ({error.strerror})") from None
