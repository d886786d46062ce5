"""Numba's compiler, with its result kept on disk where there is room for it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numba

from sppdet.utils.files import file_digest, fingerprint


def compiled(**options) -> Callable:
    """``numba.njit`` without the interpreter's lock; machine code is kept beside the source, or in the user's cache."""

    def decorate(function: Callable):
        try:
            return numba.njit(nogil=True, cache=True, **options)(function)
        except RuntimeError:  # Numba found no folder that it may write to
            _warn()
            return numba.njit(nogil=True, **options)(function)

    return decorate


@cache
def _warn() -> None:
    warnings.warn(
        "compiled code cannot be kept, neither beside sppdet nor in your home folder, so every start compiles again; "
        "set NUMBA_CACHE_DIR to a folder that can be written to",
        stacklevel=4,
    )


def marker(function, sources: tuple[str, ...]) -> Path | None:
    """The file that says that ``function`` and all it needs, from ``sources``, were compiled here by this Numba.

    None where nothing is kept. Numba's own index is no such sign: it speaks of one function, on one processor.
    """
    from llvmlite.binding import get_host_cpu_name

    folder = getattr(function.stats, "cache_path", None)
    if not folder:
        return None
    key = fingerprint([numba.__version__, get_host_cpu_name(), *map(file_digest, sources)])
    return Path(folder) / f"{function.__name__}-{key}.compiled"
