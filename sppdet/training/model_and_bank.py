"""A model and its bank in files: read together and replaced together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sppdet.detection import StoredModel, model_folder, replace_files, shipped_model
from sppdet.training.bank import BANK_FILE, Bank
from sppdet.utils import SppdetError, new_folder, read_json, write_json


def read_model(name: str | Path, output: str | Path | None, needs_bank: bool = True) -> tuple[StoredModel, Any]:
    """Read a model and its bank; None for a bank that is neither there nor needed."""
    folder = model_folder(name)
    if output is None and folder == shipped_model():
        raise SppdetError(f"{name}: is part of the package and stays as it is; give --output FOLDER for the new model")
    if output is not None and Path(output).exists():
        raise SppdetError(f"{output}: exists already; give another --output")
    model = StoredModel.read(folder)
    if not needs_bank and not (folder / BANK_FILE).is_file():
        return model, None
    bank = Bank.load(folder)
    if bank.classes != model.classes:
        raise SppdetError(f"{folder / BANK_FILE}: is of another model, with other classes; copy both together")
    return model, bank


def save_model(model: StoredModel, bank: Bank | None, output: str | Path | None) -> None:
    """Write a model and its bank in place of the old files, or into a new folder."""

    def write(folder: Path) -> None:
        model.write(folder)
        if bank is not None:
            bank.save(folder / BANK_FILE)

    if output is None:
        replace_files(model.folder, write)
        return
    with new_folder(output) as unfinished:
        write(unfinished)
        if (model.folder / "config.json").is_file():
            settings = read_json(model.folder / "config.json", run=dict)
            write_json(unfinished / "config.json", settings | {"run": settings["run"] | {"dir": str(output)}})


def check_known(model: StoredModel, names: Sequence[str]) -> None:
    for name in names:
        if name not in model.classes:
            raise SppdetError(f"{model.folder}: has no class '{name}'; it has {', '.join(model.classes)}")
