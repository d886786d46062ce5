"""Checksums of safetensors files."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from sppdet.utils.errors import SppdetError
from sppdet.utils.tensor_files import read_arrays, read_tensors, verify_tensors, write_tensors

VALUES = {"weight": np.arange(600, dtype=np.float32), "bias": np.ones(2, np.float16)}


@pytest.fixture
def path(tmp_path):
    write_tensors(tmp_path / "a.safetensors", VALUES, {"key": "k"})
    return tmp_path / "a.safetensors"


def test_what_is_written_is_read(path):
    for name, value in read_arrays(path, "").items():
        np.testing.assert_array_equal(value, VALUES[name])
    with safe_open(path, "numpy") as stored:
        assert stored.metadata()["key"] == "k"
    write_tensors(path, {"weight": torch.ones(3, dtype=torch.bfloat16)})
    assert read_tensors(path, "")["weight"].tolist() == [1, 1, 1]


def test_the_same_tensors_give_the_same_bytes(path, tmp_path):
    metadata = {name: f"{name}, 'ü' \n" for name in "fedcba"}  # which safetensors writes in random order
    for number in range(5):
        write_tensors(tmp_path / f"{number}.safetensors", VALUES, metadata)
    assert len({(tmp_path / f"{number}.safetensors").read_bytes() for number in range(5)}) == 1
    verify_tensors(tmp_path / "0.safetensors")
    with safe_open(tmp_path / "0.safetensors", "numpy") as stored:
        assert stored.metadata().items() >= metadata.items()


def test_every_flipped_bit_is_noticed_or_changes_nothing(path):
    """A flip in the name of the checksum's entry takes the checksum away; the tensors are right then."""
    content = path.read_bytes()
    for at in range(0, len(content), 7):
        changed = bytearray(content)
        changed[at] ^= 1 << at % 8
        path.write_bytes(changed)
        try:
            arrays = read_arrays(path, "train again")
        except SppdetError as error:
            assert str(error).startswith(f"{path}: cannot be read (") and str(error).endswith("); train again")
        else:
            assert all(np.array_equal(arrays[name], value) for name, value in VALUES.items())


def test_zeros_in_the_middle_are_noticed(path):
    content = path.read_bytes()
    path.write_bytes(content[:-900] + bytes(512) + content[-388:])
    load_file(path)  # which does not notice
    with pytest.raises(SafetensorError, match="its checksum is wrong"):
        verify_tensors(path)


def test_files_without_a_checksum_are_read(tmp_path):
    save_file(VALUES, tmp_path / "old.safetensors")
    assert read_arrays(tmp_path / "old.safetensors", "").keys() == VALUES.keys()


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(SppdetError, match=r"none\.safetensors: cannot be read \(.*\); train again"):
        read_tensors(tmp_path / "none.safetensors", "train again")
    (tmp_path / "huge.safetensors").write_bytes((2**60).to_bytes(8, "little") + b"{}")
    with pytest.raises(SppdetError, match=r"huge\.safetensors: cannot be read"):
        read_arrays(tmp_path / "huge.safetensors", "train again")
