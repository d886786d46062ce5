"""Classes of a trained model that are removed, renamed, or joined with those of another model.

Nothing is learned: rows of arrays move from file to file.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from sppdet.data import check_class_names
from sppdet.training.model_and_bank import check_known, read_model, save_model
from sppdet.utils import SppdetError

logger = logging.getLogger(__name__)


def remove_classes(run: str | Path, names: Sequence[str], *, output: str | Path | None = None) -> None:
    """Take classes out of a model; all others stay as they are, bit for bit.

    Args:
        run: folder of the model.
        names: the classes.
        output: folder of the new model, which must not exist; by default the model is replaced.

    Raises:
        SppdetError: the model does not have a class, or would have none left.
    """
    model, bank = read_model(run, output, needs_bank=False)
    check_known(model, names)
    kept = [one for one in model.stored_classes() if one.name not in names]
    if not kept:
        raise SppdetError(f"{run}: no class would be left; leave one")
    save_model(model.with_classes(kept), bank and bank.without(names), output)


def rename_class(run: str | Path, old: str, new: str, *, output: str | Path | None = None) -> None:
    """Give a class of a model another name.

    Args:
        run: folder of the model.
        old: the name that it has.
        new: the name that it gets.
        output: folder of the new model, which must not exist; by default the model is replaced.

    Raises:
        SppdetError: the model does not have the class, has one of the new name, or result files cannot have it.
    """
    model, bank = read_model(run, output, needs_bank=False)
    check_known(model, [old])
    check_class_names([new], str(run))
    if new in model.classes or not new.strip():
        raise SppdetError(f"{run}: has a class '{new}' already; give another name" if new.strip() else "NEW: is empty")
    classes = [replace(one, name=new if one.name == old else one.name) for one in model.stored_classes()]
    names = tuple(one.name for one in classes)
    save_model(model.with_classes(classes), bank and replace(bank, classes=names, origin=""), output)


def join_models(run: str | Path, other: str | Path, output: str | Path) -> None:
    """Make one detector of two with different classes on the same network and settings.

    Args:
        run: folder of the model whose classes come first, and whose settings of detection hold.
        other: folder of the other model.
        output: folder of the new model, which must not exist.

    Raises:
        SppdetError: the models share a class, or differ in what they must share.
    """
    model, bank = read_model(run, output, needs_bank=False)
    second, other_bank = read_model(other, output, needs_bank=False)
    if both := [name for name in model.classes if name in second.classes]:
        raise SppdetError(f"{other}: has {', '.join(both)}, as {run} has; rename or remove it in one of them")
    if difference := model.difference(second):
        raise SppdetError(f"{other}: its {difference} is not that of {run}; train both with the same settings")
    joined = None
    if bank and other_bank:
        if replace(bank.svm, bank=0) != replace(other_bank.svm, bank=0):
            raise SppdetError(f"{other}: was trained with other settings svm.* than {run}; train both with the same")
        labels = np.full((len(other_bank), len(model.classes) + len(second.classes)), -1, np.int8)
        labels[:, len(model.classes) :] = other_bank.labels
        joined = bank.with_rows(other_bank.vectors, labels, [*model.classes, *second.classes])
    else:
        logger.warning("%s: without a bank, as one of the models has none; no class can be added to it", output)
    model, second = model.expanded(), second.expanded()
    save_model(model.with_classes([*model.stored_classes(), *second.stored_classes()]), joined, output)
