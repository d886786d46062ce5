"""How a stage of training is carried out: the values that every stage is handed together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Checkpoint:
    """Where an interrupted training is resumed from.

    Attributes:
        path: the file; it need not exist.
        key: what the training depends on; a file of another key is not resumed from.
    """

    path: Path
    key: str


@dataclass(frozen=True)
class Execution:
    """How a stage is carried out, apart from its own settings.

    Attributes:
        seed: of all random draws.
        workers: processes or threads; 0 is every core.
        memory_gb: memory for window vectors that are held at a time.
        checkpoint: where the stage saves its progress; None saves nothing.
    """

    seed: int = 3
    workers: int = 0
    memory_gb: float = 2.0
    checkpoint: Checkpoint | None = None
