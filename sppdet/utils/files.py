"""Files that are whole or absent: atomic writes, and fingerprints of the values that a result depends on."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import psutil
from safetensors import SafetensorError

from sppdet.utils.errors import SppdetError

Value = TypeVar("Value")

_LONGEST_NAME = 200  # bytes: file systems limit a name to 255, and digests, numbers and suffixes follow
_PART = 2**20  # bytes of a file that are digested at a time
_DAY = 24 * 3600.0  # seconds
_HOST = hashlib.blake2b(platform.node().encode(), digest_size=4).hexdigest()  # which machine a temporary file is of
_TEMPORARY = ".sppdet-"  # beginning of the names of temporary files
# Names of temporary files; those of version 0.1.0 are `.STEM.PID-THREAD.SUFFIX`.
_LEFTOVER = re.compile(r"\.sppdet-(?P<host>[0-9a-f]{8})-(?P<pid>\d+)-|\..+\.\d+-\d{9,}\.\w+$")


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
    # The suffix stays last: numpy and Pillow read the format from it. The name is short, however long that of `path`.
    writer = f"{_HOST}-{os.getpid()}-{threading.get_ident()}"
    temporary = path.with_name(f"{_TEMPORARY}{writer}-{fingerprint(path.name)}{path.suffix}")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        write(temporary)
        temporary.chmod(mode)  # as the user's umask has it: safetensors makes files readable by their owner only
        os.replace(temporary, path)
    except SafetensorError as error:
        raise OSError(errno.EIO, str(error), str(path)) from None
    except OSError as error:
        # The error of a full disk names no file; that of a folder that cannot be written, the temporary one.
        error.filename = str(path) if error.filename in (None, str(temporary)) else error.filename
        raise
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """Make a folder in ``parent``, and delete it at the end; what killed processes have left there goes first.

    Errors of files in the folder name them as if they were in ``parent``, where they will be.

    Raises:
        OSError: the folder cannot be made; the exception names ``parent``.
    """
    remove_leftovers(parent, below=False)
    name = f"{_TEMPORARY}{_HOST}-{os.getpid()}-"
    hidden = re.compile(r"[/\\]" + re.escape(name) + r"[^/\\]*")
    try:
        with TemporaryDirectory(dir=parent, prefix=name) as folder:
            yield Path(folder)
    except OSError as error:
        if error.filename or error.errno is not None:  # of a file system, not such as TimeoutError("no answer")
            error.filename = hidden.sub("", str(error.filename or parent))
        raise
    except SppdetError as error:  # of its own kind
        error.args = (hidden.sub("", str(error)),)
        raise


@contextmanager
def new_folder(output: str | os.PathLike[str]) -> Iterator[Path]:
    """Make a folder that appears complete at the end of the block, or not at all.

    Raises:
        SppdetError: it exists already and is not empty, or cannot be written.
    """
    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise SppdetError(f"{output}: exists already; give a new folder, or remove this one")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(output.parent) as temporary:
            unfinished = temporary / output.name
            unfinished.mkdir()
            yield unfinished
            os.replace(unfinished, output)
    except OSError as error:
        raise SppdetError(f"{output}: cannot be written ({error.strerror}); choose another folder") from None


def remove_leftovers(folder: str | os.PathLike[str], below: bool = True) -> None:
    """Delete the temporary files that killed processes have left in a folder and, if ``below``, in the folders in it.

    A file stays while the process that writes it may be alive: one of this machine that runs, or one of another machine
    for a day. Once per process and folder.
    """
    _remove_leftovers(os.path.abspath(folder), below)


@cache
def _remove_leftovers(folder: str, below: bool) -> None:
    for parent, folders, names in os.walk(folder):
        entries = [*names, *folders]
        folders[:] = folders if below else []
        for name in entries:
            match = _LEFTOVER.match(name)
            if match is None:
                continue
            path = os.path.join(parent, name)
            with suppress(OSError):
                here = match["host"] == _HOST and not psutil.pid_exists(int(match["pid"]))
                if here or time.time() - os.stat(path).st_mtime > _DAY:
                    shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)


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
        remove_leftovers(folder)
        atomic_write(folder / "writable", lambda temporary: temporary.write_text("yes"))
        (folder / "writable").unlink(missing_ok=True)  # another command may try the same
    except OSError as error:
        raise SppdetError(f"{key}: {folder} cannot be written ({error.strerror}); choose another folder") from None


def write_json(path: str | os.PathLike[str], value: object, sealed: bool = False) -> None:
    """Write ``value`` as indented JSON.

    Args:
        path: the file.
        value: what JSON can hold.
        sealed: whether ``checksum`` is added to ``value``, an object: `read_json` then refuses a changed file.

    Raises:
        OSError: the file cannot be written.
    """
    if sealed and isinstance(value, dict):
        value = value | {"checksum": fingerprint(json.loads(json.dumps(value)))}
    text = json.dumps(value, indent=2) + "\n"
    atomic_write(path, lambda temporary: temporary.write_text(text))


def read_json(path: str | os.PathLike[str], **types: type | tuple[type, ...]) -> dict[str, Any]:
    """Return the content of a JSON file that holds an object, without its checksum.

    Args:
        path: the file.
        **types: the entries that the object must have, each with its type; ``type(None)`` is that of null.

    Raises:
        SppdetError: the file is missing or damaged, holds no object, or an entry is missing or of another type; or
            the object's ``checksum`` is not that of its content.
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SppdetError(f"{path}: not readable as JSON ({error}); {_JSON_REMEDY}") from None
    if not isinstance(values, dict):
        raise SppdetError(f"{path}: expected an object, {{...}}, found {_JSON_NAMES[type(values)]}; {_JSON_REMEDY}")
    check_entries(path, values, **types)
    if "checksum" in values and values.pop("checksum") != fingerprint(values):
        raise SppdetError(
            f"{path}: was changed since it was written; {_JSON_REMEDY}, or take its entry 'checksum' out if you edited "
            "it"
        )
    return values


def check_entries(path: str | os.PathLike[str], values: dict[str, Any], **types: type | tuple[type, ...]) -> None:
    """Check that the content of a JSON file has entries, each of a type.

    Args:
        path: the file, for messages.
        values: its content.
        **types: the entries, each with its type; ``type(None)`` is that of null.

    Raises:
        SppdetError: an entry is missing or of another type.
    """
    for name, expected in types.items():
        expected = expected if isinstance(expected, tuple) else (expected,)
        if name not in values:
            raise SppdetError(f"{path}: has no '{name}'; {_JSON_REMEDY}")
        if type(values[name]) not in expected:
            names = " or ".join(_JSON_NAMES[kind] for kind in expected)
            actual = _JSON_NAMES[type(values[name])]
            raise SppdetError(f"{path}: '{name}' is {actual}, not {names}; {_JSON_REMEDY}")


_JSON_REMEDY = "remove it and run the command again"
_JSON_NAMES = {
    dict: "an object", list: "a list", str: "text", int: "a whole number", float: "a number", bool: "true or false",
    type(None): "null",
}  # fmt: skip


@contextmanager
def errors_naming(path: str | os.PathLike[str], remedy: str) -> Iterator[None]:
    """Turn errors about the content of a file, such as a missing entry, into a `SppdetError` that names the file.

    Args:
        path: the file whose content is used in the block.
        remedy: what to do, the end of the message.
    """
    try:
        yield
    except SppdetError as error:
        text = str(error)
        raise (error if Path(path).name in text else SppdetError(f"{path}: {text}")) from None
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError, MemoryError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise SppdetError(f"{path}: holds something else than expected ({reason}); {remedy}") from error


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


def short_name(name: str) -> str:
    """Return a name, or its beginning and a digest where it is too long to stand in the name of a file.

    Examples:
        >>> short_name("photo"), len(short_name(300 * "x"))
        ('photo', 200)
    """
    encoded = os.fsencode(name)
    if len(encoded) <= _LONGEST_NAME:
        return name
    return f"{encoded[: _LONGEST_NAME - 17].decode('utf-8', 'ignore')}-{fingerprint(name)}"


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
    digest = hashlib.blake2b(digest_size=8)
    try:
        with open(path, "rb") as file:
            while part := file.read(_PART):
                digest.update(part)
        return digest.hexdigest()
    except OSError as error:
        raise SppdetError(f"{path}: cannot be read ({error.strerror}); check the path") from None


def file_digests(paths: Iterable[Path]) -> dict[Path, str]:
    """Return the digest of each file; a file that comes several times, as that of tiles does, is read once."""
    return {path: file_digest(path) for path in set(paths)}
