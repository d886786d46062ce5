"""Which results are valid: those with a note of the same recipe and data, or with ``keep`` of the same recipe."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sppdet.training import cached_result
from sppdet.training.cached_result import Key, checkpoint_of, has_result, invalidate, is_done, write_result
from sppdet.utils.files import read_json

KEY = Key.of([{"C": 1}, 3], ["a.jpg"])
OTHER_DATA, OTHER_RECIPE = Key.of([{"C": 1}, 3], ["b.jpg"]), Key.of([{"C": 2}, 3], ["a.jpg"])


@pytest.fixture
def result(tmp_path) -> Path:
    """A result of KEY."""
    path = tmp_path / "stages" / "cat.safetensors"
    write_result(path, KEY, {"weight": torch.ones(2, 3).T, "bias": np.zeros(1)}, layer="fc7")
    return path


def test_a_result_holds_tensors_and_its_note_the_description(result):
    tensors = load_file(result)
    assert torch.equal(tensors["weight"], torch.ones(3, 2)) and tensors["bias"].tolist() == [0]
    assert read_json(result.with_suffix(".json")) == {"recipe": KEY.recipe, "data": KEY.data, "layer": "fc7"}


@pytest.mark.parametrize(
    ("key", "valid", "kept"),
    [(Key.of([{"C": 1}, 3], ["a.jpg"]), True, True), (OTHER_DATA, False, True), (OTHER_RECIPE, False, False)],
)
def test_a_result_is_valid_for_its_key_and_with_keep_for_its_recipe(result, key, valid, kept):
    assert is_done(result, key, keep=False) == valid
    assert is_done(result, key, keep=True) == kept


def test_a_missing_result_is_not_valid(tmp_path):
    assert not is_done(tmp_path / "cat.safetensors", KEY, keep=True)


def test_a_result_without_its_note_does_not_count(result):
    result.with_suffix(".json").unlink()
    assert not has_result(result) and not is_done(result, KEY, keep=True)


@pytest.mark.parametrize(("key", "valid"), [(KEY, True), (OTHER_DATA, False)])
def test_a_result_that_is_written_twice_stays_valid_meanwhile(result, monkeypatch, key, valid):
    """Two commands may learn the same; the quicker one reads its result while the other one writes."""
    valid_meanwhile = []
    monkeypatch.setattr(cached_result, "write_tensors", lambda *_: valid_meanwhile.append(has_result(result)))
    write_result(result, key, {"weight": torch.ones(3, 2)})
    assert valid_meanwhile == [valid]


@pytest.mark.parametrize("length", [100, 0])
def test_a_result_that_was_cut_short_does_not_count(result, length):
    result.write_bytes(result.read_bytes()[:length])
    assert not has_result(result) and not is_done(result, KEY, keep=True)


def test_asking_changes_nothing(result):
    before = {path: path.read_bytes() for path in result.parent.iterdir()}
    is_done(result, OTHER_RECIPE, keep=False)
    assert {path: path.read_bytes() for path in result.parent.iterdir()} == before


def test_a_checkpoint_outlives_an_interruption_but_not_the_training(result):
    with pytest.raises(KeyboardInterrupt), checkpoint_of(result, "key") as checkpoint:
        checkpoint.path.write_bytes(b"step 9")
        raise KeyboardInterrupt
    assert checkpoint.path == result.with_name("cat.checkpoint") and checkpoint.key == "key"
    with checkpoint_of(result, "key") as checkpoint:
        assert checkpoint.path.read_bytes() == b"step 9"
    assert not checkpoint.path.exists()


def test_an_invalidated_result_is_neither_valid_nor_resumed(result):
    with checkpoint_of(result, "key") as checkpoint:
        checkpoint.path.write_bytes(b"step 9")
        invalidate(result)
        assert not checkpoint.path.exists() and not is_done(result, KEY, keep=True)
    invalidate(result)  # again: there is nothing to delete
