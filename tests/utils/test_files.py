"""Files are whole or absent; fingerprints change with what they stand for."""

from __future__ import annotations

import errno
import os

import pytest
from safetensors import SafetensorError

from sppdet.utils.errors import SppdetError
from sppdet.utils.files import (
    BY_HAND,
    atomic_write,
    file_digest,
    fingerprint,
    read_json,
    require_writable,
    write_document,
    write_json,
)


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path):
    path = tmp_path / "value.txt"
    path.write_text("old")

    def fail(temporary):
        temporary.write_text("half of the n")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        atomic_write(path, fail)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["value.txt"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), SafetensorError("No space left")])
def test_a_full_disk_names_the_file(tmp_path, error):
    def fail(temporary):
        raise error

    with pytest.raises(OSError, match="No space left") as raised:
        atomic_write(tmp_path / "model.safetensors", fail)
    assert raised.value.filename == str(tmp_path / "model.safetensors") and "No space" in raised.value.strerror


def test_a_folder_that_cannot_be_written_is_told_with_its_setting(tmp_path):
    require_writable("run.dir", tmp_path / "runs" / "new")
    assert not list((tmp_path / "runs" / "new").iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(SppdetError, match=r"run.dir: .*file/run cannot be written \(Not a directory\)"):
        require_writable("run.dir", tmp_path / "file" / "run")


def test_the_temporary_file_lies_beside_its_target_with_its_suffix(tmp_path):
    seen = []

    def write(temporary):
        seen.append(temporary)
        temporary.write_text("new")

    atomic_write(tmp_path / "deep" / "value.npy", write)
    assert (tmp_path / "deep" / "value.npy").read_text() == "new"
    assert seen[0].parent == tmp_path / "deep" and seen[0].suffix == ".npy" and not seen[0].exists()


def test_json_round_trip(tmp_path):
    value = {"a": [1, 2.5, None], "b": {"ü": True}}
    write_json(tmp_path / "v.json", value)
    assert read_json(tmp_path / "v.json") == value


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\xff\xfe\x00"])
def test_damaged_json_is_one_line_that_names_the_file(tmp_path, content):
    (tmp_path / "v.json").write_bytes(content)
    with pytest.raises(SppdetError, match=r"v\.json: not readable as JSON.*remove it") as caught:
        read_json(tmp_path / "v.json")
    assert "\n" not in str(caught.value)


def test_missing_json(tmp_path):
    with pytest.raises(SppdetError, match=r"none\.json"):
        read_json(tmp_path / "none.json")


def test_fingerprint_depends_on_content_not_on_key_order():
    assert fingerprint({"a": 1, "b": [2, 3]}) == fingerprint({"b": [2, 3], "a": 1})
    values = [{"a": 1}, {"a": 2}, {"a": "1"}, {"b": 1}, {"a": 1.5}, {"a": [1]}, [], None]
    assert len({fingerprint(value) for value in values}) == len(values)
    assert len(fingerprint("x")) == 16


def test_file_digest_follows_the_content(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_bytes(b"12")
    b.write_bytes(b"12")
    assert file_digest(a) == file_digest(b)
    b.write_bytes(b"13")
    assert file_digest(a) != file_digest(b)
    with pytest.raises(SppdetError, match="gone: cannot be read"):
        file_digest(tmp_path / "gone")


def test_files_have_the_permissions_of_the_users_umask(tmp_path):
    def private(path):
        path.write_text("x")
        path.chmod(0o600)

    before = os.umask(0o022)
    try:
        atomic_write(tmp_path / "a", private)
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o644


def test_a_document_written_again_keeps_what_was_added_by_hand(tmp_path):
    path = tmp_path / "table.md"
    write_document(path, "# First\n")
    assert path.read_text() == "# First\n"
    path.write_text(f"# First\n\n{BY_HAND}\n\nMy words.\n")
    for _ in range(2):
        write_document(path, "# Second\n")
        assert path.read_text() == f"# Second\n\n{BY_HAND}\n\nMy words.\n"
