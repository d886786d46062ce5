"""Classes removed from, renamed in and joined with a trained model."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from stored_models import MODEL, files, rows

import sppdet
from sppdet.detection.model_files import finish_update
from sppdet.detection.stored_model import StoredModel
from sppdet.training.bank import Bank
from sppdet.training.changing import join_models, remove_classes, rename_class
from sppdet.utils.errors import SppdetError


def test_renaming_changes_a_name_alone(model):
    before = rows(model)
    name = [*before][1]
    rename_class(model, name, "zebra")
    assert [*rows(model)] == ["zebra" if other == name else other for other in before]
    assert [*rows(model).values()] == [*before.values()]
    assert Bank.load(model).classes == sppdet.load(model).classes


def test_joining_puts_the_classes_of_two_models_side_by_side(model, tmp_path):
    before = rows(model)
    names = [*before]
    remove_classes(model, names[:2], output=tmp_path / "a")
    remove_classes(model, names[2:], output=tmp_path / "b")
    join_models(tmp_path / "a", tmp_path / "b", tmp_path / "joined")
    assert rows(tmp_path / "joined") == before
    assert [*rows(tmp_path / "joined")] == names[2:] + names[:2]
    assert Bank.load(tmp_path / "joined").classes == (*names[2:], *names[:2])
    assert len(Bank.load(tmp_path / "joined")) <= 4000


def test_models_of_different_networks_are_not_joined(model, tmp_path):
    names = [*rows(model)]
    remove_classes(model, names[:2], output=tmp_path / "a")
    remove_classes(model, names[2:], output=tmp_path / "b")
    other = StoredModel.read(tmp_path / "b")
    key = next(key for key in other.tensors if key.startswith("trunk."))
    other.tensors[key] = other.tensors[key] + 1
    other.write(tmp_path / "b")
    with pytest.raises(SppdetError, match="weights of the network"):
        join_models(tmp_path / "a", tmp_path / "b", tmp_path / "joined")
    assert not (tmp_path / "joined").exists()


def test_an_interruption_before_the_files_are_complete_leaves_the_old_model(model, monkeypatch):
    before = files(model)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Bank, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        remove_classes(model, ["circle"])
    assert files(model) == before


def test_an_interruption_between_two_files_is_made_up_for_when_the_model_is_loaded(model, monkeypatch):
    from sppdet.detection import model_files

    replace_file = model_files.os.replace

    def killed(source, target):
        if Path(target) == model / "model.json":
            raise KeyboardInterrupt
        replace_file(source, target)

    monkeypatch.setattr(model_files.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        remove_classes(model, ["circle"])
    monkeypatch.undo()
    assert "circle" not in sppdet.load(model).classes
    assert {path.name for path in model.iterdir()} == {*MODEL}
    finish_update(model)


def test_the_detector_of_the_package_stays_as_it_is():
    with pytest.raises(SppdetError, match=r"voc07: is part of the package .* give --output"):
        remove_classes("voc07", ["cat"])


def test_a_compact_model_can_be_joined_with_another(model, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(model, other)
    first, *rest = StoredModel.read(model).classes
    remove_classes(model, rest)
    remove_classes(other, [first])
    sppdet.detection.save_detector(sppdet.load(model), model)
    sppdet.detection.save_detector(sppdet.load(other), other, compact=True)
    join_models(model, other, tmp_path / "joined")
    joined = sppdet.load(tmp_path / "joined")
    assert joined.classes == (first, *rest)
    np.testing.assert_allclose(joined.regressors.weight[1:], sppdet.load(other).regressors.weight, atol=1e-3)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda model: remove_classes(model, ["zebra"]), "has no class 'zebra'"),
        (lambda model: rename_class(model, "circle", "cross"), "has a class 'cross' already"),
        (lambda model: join_models(model, model, model.parent / "joined"), "rename or remove it"),
        (lambda model: remove_classes(model, sppdet.load(model).classes), "no class would be left"),
    ],
)
def test_bad_input_is_one_line_and_changes_nothing(model, call, message):
    before = files(model)
    with pytest.raises(SppdetError, match=message) as error:
        call(model)
    assert "\n" not in str(error.value)
    assert files(model) == before
