"""Compilation by Numba, with the machine code kept on disk where a folder for it can be written."""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numba

from sppdet.utils.files import file_digest, fingerprint


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Return a decorator that compiles a function with ``numba.njit`` and releases the interpreter's lock.

    Machine code is kept beside the source file or in the user's cache folder. Where neither can be written, or where
    other users can write, the function is compiled again in every process, and a warning says so once: Numba reads
    what it keeps as pickles, which run as code.

    Args:
        options: further options of ``numba.njit``.

    Returns:
        The decorator; a decorated function is a dispatcher of Numba.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        try:
            dispatcher = numba.njit(nogil=True, cache=True, **options)(function)
            if not others_may_write(Path(dispatcher.stats.cache_path)):
                return dispatcher
            reason = f"{dispatcher.stats.cache_path} can be written by other users, so compiled code is not kept there"
        except RuntimeError:  # Numba has no folder that it can write to
            reason = "compiled code can be kept neither beside sppdet nor in your home folder"
        _warn_that_nothing_is_kept(reason)
        return numba.njit(nogil=True, **options)(function)

    return decorate


@cache
def _warn_that_nothing_is_kept(reason: str) -> None:
    """Warn, the first time only."""
    warnings.warn(
        f"{reason}, and every start compiles again; set NUMBA_CACHE_DIR to a folder that you alone can write",
        stacklevel=4,
    )


@cache
def others_may_write(folder: Path) -> bool:
    """Whether users other than this one and root may write into a folder, or may replace it.

    Groups are not looked at: by default each user of many systems is a group.
    """
    if os.name != "posix":
        return False
    folder = folder.resolve()
    for place in (folder, *folder.parents):
        try:
            status = place.stat()
        except OSError:
            continue
        sticky = status.st_mode & stat.S_ISVTX and place != folder  # what lies in it belongs to its owner
        if status.st_uid not in (0, os.getuid()) or (status.st_mode & stat.S_IWOTH and not sticky):
            return True
    return False


def multiplies_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 natively; libraries emulate it on other CPUs.

    Examples:
        >>> multiplies_bfloat16() in (True, False)
        True
    """
    from llvmlite.binding import get_host_cpu_features

    features = get_host_cpu_features()
    return any(features.get(name, False) for name in ("amx-bf16", "avx512bf16"))


def marker(function: Any, sources: tuple[str, ...]) -> Path | None:
    """Return the path of the file that marks ``function`` and the functions it calls as compiled and kept.

    The file is written by the caller once compilation is done. Its name changes with the sources, with the version of
    Numba and with the type of processor. Numba's index file cannot tell this, as it covers one function only.

    Args:
        function: a function decorated with `compiled`.
        sources: paths of the source files of ``function`` and of all that it calls.

    Returns:
        The path, or None where compiled code is not kept.

    Raises:
        SppdetError: a source file cannot be read.
    """
    from llvmlite.binding import get_host_cpu_name

    folder = getattr(function.stats, "cache_path", None)
    if not folder:
        return None
    key = fingerprint([numba.__version__, get_host_cpu_name(), *map(file_digest, sources)])
    return Path(folder) / f"{function.__name__}-{key}.compiled"
