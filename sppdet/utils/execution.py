"""How a training stage is run: values that are passed to all stages together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sppdet.utils.curves import Curves


@dataclass(frozen=True)
class Checkpoint:
    """The file from which an interrupted training is resumed.

    Attributes:
        path: the file; it need not exist.
        key: what the training depends on. A file with another key is ignored.
    """

    path: Path
    key: str


@dataclass(frozen=True)
class Execution:
    """How a stage is run, apart from the stage's settings.

    Attributes:
        seed: seed of all random draws.
        workers: number of processes or threads; 0 takes every core.
        memory_gb: memory for the window vectors that are held at one time, in GB.
        checkpoint: where the stage saves its progress; None saves nothing.
        curves: where a training by gradient writes its losses; None writes none.

    Examples:
        >>> Execution(workers=2)
        Execution(seed=3, workers=2, memory_gb=2.0, checkpoint=None, curves=None)
    """

    seed: int = 3
    workers: int = 0
    memory_gb: float = 2.0
    checkpoint: Checkpoint | None = None
    curves: Curves | None = None
