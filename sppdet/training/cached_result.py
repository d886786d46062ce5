"""Results on disk, each with a note of what it depends on: one that still holds is not computed again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from sppdet.utils import atomic_write, fingerprint, read_json, write_json


@dataclass(frozen=True)
class Key:
    """What a result depends on: ``recipe`` of settings and features, ``data`` of the images and objects as well."""

    recipe: str
    data: str

    @classmethod
    def of(cls, recipe: list, data: list) -> Key:
        """From what their JSON forms are."""
        digest = fingerprint(recipe)
        return cls(digest, fingerprint([digest, data]))


def is_there(path: Path) -> bool:
    """Whether there is a result at ``path``, of whatever key."""
    if not (path.exists() and path.with_suffix(".json").exists()):
        return False
    try:
        with safe_open(path, "numpy"):  # cut short, by a copy that was interrupted, it is none
            return True
    except (SafetensorError, OSError):
        return False


def is_done(path: Path, key: Key, keep: bool) -> bool:
    """Whether the result at ``path`` is of this key; with ``keep`` one of other images or objects will do."""
    found = read_json(path.with_suffix(".json")) if is_there(path) else {}
    return found.get("data") == key.data or (keep and found.get("recipe") == key.recipe)


def forget(path: Path) -> None:
    """Let the result at ``path`` not be done, nor begun: if learning it again is interrupted, it goes on from there."""
    for suffix in (".json", ".checkpoint"):
        path.with_suffix(suffix).unlink(missing_ok=True)


@contextmanager
def checkpoint_of(path: Path) -> Iterator[Path]:
    """Where the training of the result at ``path`` keeps what it goes on from; not there any more once it has ended."""
    checkpoint = path.with_suffix(".checkpoint")
    yield checkpoint
    checkpoint.unlink(missing_ok=True)  # an interruption does not come here


def finish(path: Path, key: Key, tensors: dict, **description) -> None:
    """Write a result, then the note that says what it depends on: a result without its note does not count."""
    path.with_suffix(".json").unlink(missing_ok=True)
    tensors = {name: torch.as_tensor(value).cpu().contiguous() for name, value in tensors.items()}
    atomic_write(path, lambda temporary: save_file(tensors, temporary))
    write_json(path.with_suffix(".json"), {**asdict(key), **description})
