"""What the files of a trained model hold, for tests that change models."""

from __future__ import annotations

from pathlib import Path

from sppdet.detection.stored_model import StoredModel
from sppdet.training.bank import BANK_FILE

MODEL = ("model.json", "model.safetensors", BANK_FILE)


def files(folder: Path) -> dict[str, bytes]:
    """Return the content of every file of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def rows(folder: Path) -> dict[str, dict[str, bytes]]:
    """Return the bytes of each class's rows of the linear layers."""
    model = StoredModel.read(folder)
    return {one.name: {key: array.tobytes() for key, array in one.arrays.items()} for one in model.stored_classes()}
