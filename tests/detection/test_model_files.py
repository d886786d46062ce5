"""Files of a model that are replaced together."""

from __future__ import annotations

import os

import pytest

from sppdet.detection import model_files
from sppdet.detection.model_files import finish_update, replace_files


def write_both(folder, text="new"):
    for name in ("a", "b"):
        (folder / name).write_text(text)


def content(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_all_files_are_replaced(tmp_path):
    write_both(tmp_path, "old")
    replace_files(tmp_path, write_both)
    assert content(tmp_path) == {"a": "new", "b": "new"}


def test_a_failure_while_writing_leaves_the_old_files(tmp_path):
    def fails(folder):
        (folder / "a").write_text("new")
        raise KeyboardInterrupt

    write_both(tmp_path, "old")
    with pytest.raises(KeyboardInterrupt):
        replace_files(tmp_path, fails)
    assert content(tmp_path) == {"a": "old", "b": "old"}


def test_an_interruption_between_two_files_is_made_up_for(tmp_path, monkeypatch):
    def killed(source, target):
        if target == tmp_path / "b":
            raise KeyboardInterrupt
        os.rename(source, target)

    write_both(tmp_path, "old")
    monkeypatch.setattr(model_files.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        replace_files(tmp_path, write_both)
    assert (tmp_path / "a").read_text() == "new" and (tmp_path / "b").read_text() == "old"
    monkeypatch.undo()
    finish_update(tmp_path)
    assert content(tmp_path) == {"a": "new", "b": "new"}
