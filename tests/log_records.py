"""Reading what a training by gradient logs."""

from __future__ import annotations


def records_of(messages: list[str]) -> list[dict[str, float]]:
    """Return the records that log lines such as ``pretraining: epoch 3, loss 0.25`` show."""
    entries = [[entry.rsplit(" ", 1) for entry in line.split(": ", 1)[1].split(", ")] for line in messages]
    return [{name.replace(" ", "_"): float(value) for name, value in line} for line in entries]
