"""Splits of a folder, and of the data set that a configuration names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sppdet.config import Config, override
from sppdet.data import splits
from sppdet.data.shapes import CLASSES
from sppdet.data.splits import load_split, read_dataset
from sppdet.data.voc import read_voc
from sppdet.utils.errors import SppdetError


def config_of(**values) -> Config:
    """Return a configuration with other values: ``config_of(data__root="x")`` sets ``data.root``."""
    return override(Config(), [f"{key.replace('__', '.')}={value}" for key, value in values.items()])


def ids(data) -> list[str]:
    return [sample.id for sample in data]


def test_read_dataset_reads_trainval_by_default(shapes_root):
    data = read_dataset(shapes_root)
    assert repr(data).startswith("Dataset(12 images, 6 classes, ")
    assert ids(data) == [f"train_{i:05d}" for i in range(12)]
    np.testing.assert_array_equal(data[3].boxes, read_voc(shapes_root, "trainval")[3].boxes)


def test_read_dataset_takes_split_classes_and_limit(shapes_root):
    data = read_dataset(shapes_root, "test", classes=CLASSES[::-1], limit=2)
    assert ids(data) == ["test_00000", "test_00001"]
    assert data.classes == CLASSES[::-1]
    sorted_labels = read_dataset(shapes_root, "test", classes=CLASSES, limit=1)[0].labels
    np.testing.assert_array_equal(data[0].labels, len(CLASSES) - 1 - sorted_labels)


def test_load_split_reads_the_configured_folder(shapes_root):
    config = config_of(data__root=shapes_root, data__classes="[star,circle,cross,ring,square,triangle]")
    assert load_split(config, "test").classes == ("star", "circle", "cross", "ring", "square", "triangle")
    assert load_split(config, "test", classes=CLASSES).classes == CLASSES
    assert ids(load_split(config, "trainval", limit=2)) == ["train_00000", "train_00001"]


def test_shapes_are_drawn_in_the_cache(tmp_path, shapes_root, monkeypatch):
    drawn = []
    monkeypatch.setattr(splits, "make_shapes", lambda root: drawn.append(root) or shapes_root)
    monkeypatch.chdir(tmp_path)
    assert len(load_split(config_of(data__root="shapes", run__cache="here"), "test")) == 6
    assert drawn == [Path("here/shapes")]


def test_a_folder_with_the_name_of_the_synthetic_set_is_warned_of(tmp_path, shapes_root, monkeypatch):
    monkeypatch.setattr(splits, "make_shapes", lambda root: shapes_root)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shapes").mkdir()
    with pytest.warns(UserWarning, match=r"data\.root=shapes names the synthetic data set; give data\.root=\./shapes"):
        load_split(config_of(data__root="shapes"), "trainval")


def test_a_missing_folder_is_named_with_the_folder_it_was_looked_for_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        SppdetError, match=rf"data\.root: there is no folder mine in {tmp_path}; give data\.root=FOLDER"
    ):
        load_split(config_of(data__root="mine"), "trainval")
