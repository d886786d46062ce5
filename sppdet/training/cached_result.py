"""Results on disk, each with a note of what it depends on, so that a result that still holds is not computed again.

A result is a safetensors file; its note is a JSON file of the same name, written last. A file without a note, such as
one of an interrupted run, does not count as a result.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import torch
from numpy.typing import ArrayLike
from safetensors import SafetensorError, safe_open

from sppdet.utils import Checkpoint, fingerprint, read_json, read_tensors, verify_tensors, write_json, write_tensors

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Key:
    """What a result depends on.

    Attributes:
        recipe: digest of the settings and the features.
        data: digest of the recipe together with the images and the objects.

    Examples:
        >>> before, after = Key.of(["C=1"], ["a.jpg"]), Key.of(["C=1"], ["a.jpg", "b.jpg"])
        >>> before.recipe == after.recipe, before.data == after.data
        (True, False)
    """

    recipe: str
    data: str

    @classmethod
    def of(cls, recipe: list, data: list) -> Key:
        """Return the key of a recipe and data that JSON can hold."""
        digest = fingerprint(recipe)
        return cls(digest, fingerprint([digest, data]))


def has_result(path: Path) -> bool:
    """Whether ``path`` holds an undamaged result with its note, whatever it depends on."""
    if not (path.exists() and path.with_suffix(".json").exists()):
        return False
    try:
        verify_tensors(path)
        with safe_open(path, "numpy"):  # fails on a file that an interrupted copy has cut short
            return True
    except (SafetensorError, OSError) as error:
        _warn(f"{path}: the stored result is damaged ({error}); it is learned anew")
        return False


@cache
def _warn(message: str) -> None:
    """Warn, the first time only."""
    logger.warning(message)


def read_result(path: Path) -> dict[str, torch.Tensor]:
    """Return what `write_result` wrote.

    Raises:
        SppdetError: the file cannot be read, or is damaged.
    """
    return read_tensors(path, "run the command again, which learns it anew")


def is_done(path: Path, key: Key, keep: bool) -> bool:
    """Whether the result at ``path`` is valid for ``key``.

    Args:
        path: the result's safetensors file.
        key: what the result must depend on.
        keep: whether a result of the same recipe is valid even if its images or objects were others.

    Raises:
        SppdetError: the note cannot be read.
    """
    note = read_json(path.with_suffix(".json")) if has_result(path) else {}
    return note.get("data") == key.data or (keep and note.get("recipe") == key.recipe)


def invalidate(path: Path) -> None:
    """Invalidate the result at ``path`` and delete its checkpoint.

    A forced training that is interrupted afterwards resumes like any other: the old result does not count any more.
    """
    for suffix in (".json", ".checkpoint"):
        path.with_suffix(suffix).unlink(missing_ok=True)


@contextmanager
def checkpoint_of(path: Path, key: str) -> Iterator[Checkpoint]:
    """Provide the checkpoint of the training of the result at ``path``; delete it when the training has ended.

    Args:
        path: the result's file; the checkpoint lies beside it.
        key: what the training depends on.
    """
    checkpoint = Checkpoint(path.with_suffix(".checkpoint"), key)
    yield checkpoint
    checkpoint.path.unlink(missing_ok=True)  # not reached by an interruption, which leaves the checkpoint


def write_result(path: Path, key: Key, tensors: Mapping[str, torch.Tensor | ArrayLike], **description: object) -> None:
    """Write a result, then its note.

    Args:
        path: the result's safetensors file.
        key: what the result depends on.
        tensors: what was learned, by name.
        **description: what else the note holds, as JSON.

    Raises:
        OSError: a file cannot be written.
    """
    if not is_done(path, key, keep=False):  # else another command that learns the same was quicker, and reads it now
        path.with_suffix(".json").unlink(missing_ok=True)
    stored = {name: torch.as_tensor(value).cpu().contiguous() for name, value in tensors.items()}
    write_tensors(path, stored)
    write_json(path.with_suffix(".json"), {**asdict(key), **description}, sealed=True)
