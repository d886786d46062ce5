"""What counts as done: a result with its note, of the same recipe and data, or with ``keep`` of the recipe alone."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from sppdet.training.cached_result import Key, checkpoint_of, finish, forget, is_done
from sppdet.utils.files import read_json

KEY = Key.of([{"C": 1}, 3], ["a.jpg"])
OTHER_DATA, OTHER_RECIPE = Key.of([{"C": 1}, 3], ["b.jpg"]), Key.of([{"C": 2}, 3], ["a.jpg"])


def test_a_result_is_found_by_what_it_depends_on(tmp_path):
    path = tmp_path / "stages" / "cat.safetensors"
    assert not is_done(path, KEY, keep=True)
    finish(path, KEY, {"weight": torch.ones(2, 3).T}, layer="fc7")
    assert torch.equal(load_file(path)["weight"], torch.ones(3, 2)) and read_json(path.with_suffix(".json"))["layer"]
    assert is_done(path, Key.of([{"C": 1}, 3], ["a.jpg"]), keep=False)
    assert not is_done(path, OTHER_DATA, keep=False) and is_done(path, OTHER_DATA, keep=True)
    assert not is_done(path, OTHER_RECIPE, keep=True)


def test_a_result_without_its_note_does_not_count(tmp_path):
    path = tmp_path / "cat.safetensors"
    finish(path, KEY, {"weight": torch.ones(1)})
    path.with_suffix(".json").unlink()
    assert not is_done(path, KEY, keep=True)


def test_a_result_that_was_cut_short_does_not_count(tmp_path):
    path = tmp_path / "cat.safetensors"
    finish(path, KEY, {"weight": torch.ones(100)})
    for length in (300, 0):
        path.write_bytes(path.read_bytes()[:length])
        assert not is_done(path, KEY, keep=True)


def test_a_checkpoint_outlives_an_interruption_but_not_the_training(tmp_path):
    with pytest.raises(KeyboardInterrupt), checkpoint_of(tmp_path / "head.safetensors") as checkpoint:
        checkpoint.write_bytes(b"step 9")
        raise KeyboardInterrupt
    assert checkpoint == tmp_path / "head.checkpoint" and checkpoint.exists()
    with checkpoint_of(tmp_path / "head.safetensors") as checkpoint:
        assert checkpoint.exists()
    assert not checkpoint.exists()


def test_what_is_forgotten_is_neither_done_nor_begun(tmp_path):
    path = tmp_path / "head.safetensors"
    finish(path, KEY, {"weight": torch.ones(1)})
    with checkpoint_of(path) as checkpoint:
        checkpoint.write_bytes(b"step 9")
        forget(path)
        assert not checkpoint.exists() and not is_done(path, KEY, keep=True)
