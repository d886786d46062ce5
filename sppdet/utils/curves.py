"""The curves of trainings by gradient, for TensorBoard or as CSV."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sppdet.utils.errors import SppdetError
from sppdet.utils.files import atomic_write

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class Curves:
    """Writes the records of trainings, each to ``NAME.csv`` or to events in the folder ``NAME``.

    A record is a dict of numbers, the first of which is the step or the epoch. What a training that was interrupted had
    written after the checkpoint from which it resumes is replaced.

    Args:
        folder: where the files go.
        form: ``csv`` or ``tensorboard``.

    Raises:
        SppdetError: ``tensorboard`` is asked for and not installed.
    """

    def __init__(self, folder: Path, form: str):
        self.folder, self.form = folder, form
        self._writers: dict[str, SummaryWriter] = {}
        if form == "tensorboard":
            try:
                from torch.utils.tensorboard import SummaryWriter  # noqa: F401
            except ImportError:
                raise SppdetError(
                    "run.curves: tensorboard is not installed; run 'pip install tensorboard', or set run.curves=csv"
                ) from None

    @classmethod
    def of(cls, run: Path, form: str) -> Curves | None:
        """Return those of the run in a folder; None for the form ``none``."""
        return None if form == "none" else cls(run / "curves", form)

    def write(self, name: str, records: Sequence[dict[str, Any]]) -> None:
        """Write the records of a training so far, the last of which is new."""
        name = name.replace(" ", "_")
        if self.form == "csv":
            atomic_write(self.folder / f"{name}.csv", lambda path: _write_csv(path, records))
        else:
            self._add_event(name, records[-1])

    def _add_event(self, name: str, record: dict[str, Any]) -> None:
        """Add the numbers of a record to the events of a training."""
        from torch.utils.tensorboard import SummaryWriter

        (_, step), *values = record.items()
        if name not in self._writers:
            # TensorBoard drops older events from this step on.
            self._writers[name] = SummaryWriter(str(self.folder / name), purge_step=step)
        for tag, value in values:
            self._writers[name].add_scalar(tag, value, step)
        self._writers[name].flush()


def _write_csv(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """Write records as the rows of a table."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(column for record in records for column in record)))
        writer.writeheader()
        writer.writerows(records)
