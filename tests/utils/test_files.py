"""Files are whole or absent; fingerprints change with the values that they stand for."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import SafetensorError

from sppdet.utils import files
from sppdet.utils.errors import SppdetError
from sppdet.utils.files import (
    BY_HAND,
    atomic_write,
    entries_under,
    file_digest,
    fingerprint,
    read_json,
    remove_leftovers,
    require_writable,
    temporary_folder,
    write_document,
    write_json,
    write_lines,
)


def test_a_failed_write_leaves_the_old_file_and_no_temporary_file(tmp_path):
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
def test_the_error_of_a_full_disk_names_the_file(tmp_path, error):
    def fail(temporary):
        raise error

    with pytest.raises(OSError, match="No space left") as raised:
        atomic_write(tmp_path / "model.safetensors", fail)
    assert raised.value.filename == str(tmp_path / "model.safetensors") and "No space" in raised.value.strerror


def test_the_temporary_file_is_beside_the_target_and_has_its_suffix(tmp_path):
    temporaries = []

    def write(temporary):
        temporaries.append(temporary)
        temporary.write_text("new")

    atomic_write(tmp_path / "deep" / "value.npy", write)
    assert (tmp_path / "deep" / "value.npy").read_text() == "new"
    [temporary] = temporaries
    assert temporary.parent == tmp_path / "deep" and temporary.suffix == ".npy" and not temporary.exists()


def test_files_have_the_permissions_of_the_users_umask(tmp_path):
    def write_private(path):
        path.write_text("x")
        path.chmod(0o600)

    before = os.umask(0o022)
    try:
        atomic_write(tmp_path / "a", write_private)
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o644


def test_a_writable_folder_is_created_and_left_empty(tmp_path):
    require_writable("run.dir", tmp_path / "runs" / "new")
    assert list((tmp_path / "runs" / "new").iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named_with_its_setting(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SppdetError, match=r"run.dir: .*file/run cannot be written \(Not a directory\)"):
        require_writable("run.dir", tmp_path / "file" / "run")


def test_json_round_trip(tmp_path):
    value = {"a": [1, 2.5, None], "b": {"ü": True}}
    write_json(tmp_path / "v.json", value)
    assert read_json(tmp_path / "v.json") == value
    assert (tmp_path / "v.json").read_text().startswith('{\n  "a": [\n')


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\xff\xfe\x00"])
def test_damaged_json_is_reported_in_one_line_that_names_the_file(tmp_path, content):
    (tmp_path / "v.json").write_bytes(content)
    with pytest.raises(SppdetError, match=r"v\.json: not readable as JSON.*remove it") as raised:
        read_json(tmp_path / "v.json")
    assert "\n" not in str(raised.value)


def test_missing_json_is_reported_by_name(tmp_path):
    with pytest.raises(SppdetError, match=r"none\.json: not readable as JSON \(.*No such file"):
        read_json(tmp_path / "none.json")


def test_every_line_ends_in_a_newline_alone(tmp_path):
    write_lines(tmp_path / "a.txt", (text for text in ("é", "", "b")))
    assert (tmp_path / "a.txt").read_bytes() == b"\xc3\xa9\n\nb\n"
    write_lines(tmp_path / "a.txt", [])
    assert (tmp_path / "a.txt").read_bytes() == b""


def test_lines_that_cannot_be_written_are_reported_by_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SppdetError, match=r"file/a.txt: cannot be written \(.*\); choose another path"):
        write_lines(tmp_path / "file" / "a.txt", ["a"])


def test_a_document_that_is_written_again_keeps_what_was_added_by_hand(tmp_path):
    path = tmp_path / "table.md"
    write_document(path, "# First\n")
    assert path.read_text() == "# First\n"
    path.write_text(f"# First\n\n{BY_HAND}\n\nMy words.\n")
    for _ in range(2):
        write_document(path, "# Second\n")
        assert path.read_text() == f"# Second\n\n{BY_HAND}\n\nMy words.\n"


def test_entries_under_a_prefix_lose_it_once():
    assert entries_under({"a.x": 1, "a.a.y": 2, "b.a.z": 3}, "a.") == {"x": 1, "a.y": 2}


def test_a_fingerprint_depends_on_values_and_not_on_the_order_of_keys():
    assert fingerprint({"a": 1, "b": [2, 3]}) == fingerprint({"b": [2, 3], "a": 1})
    values = [{"a": 1}, {"a": 2}, {"a": "1"}, {"b": 1}, {"a": 1.5}, {"a": [1]}, [], None]
    assert len({fingerprint(value) for value in values}) == len(values)


def test_fingerprints_of_earlier_versions_stay_valid():
    # Folders of caches and keys of results have these names.
    assert fingerprint({"kind": "maps", "scales": [480, 688], "shrink": 6.5}) == "33457202a5ce9358"
    assert fingerprint(["ü", None, True]) == "3fd94107b64ca1fc"


def test_a_file_digest_depends_on_the_content_alone(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_bytes(b"12")
    b.write_bytes(b"12")
    assert file_digest(a) == file_digest(b)
    b.write_bytes(b"13")
    assert file_digest(a) != file_digest(b)
    with pytest.raises(SppdetError, match="gone: cannot be read"):
        file_digest(tmp_path / "gone")


class TestLeftovers:
    """Temporary files of processes that have been killed."""

    def test_only_files_that_no_process_can_still_be_writing_are_deleted(self, tmp_path):
        dead = subprocess.Popen([sys.executable, "-c", ""])
        dead.wait()
        (tmp_path / "below").mkdir()
        gone = [
            tmp_path / f".sppdet-{files._HOST}-{dead.pid}-1-0123456789abcdef.npy",
            tmp_path / "below" / f".sppdet-{files._HOST}-{dead.pid}-1-0123456789abcdef",
            tmp_path / ".sppdet-00000000-1-1-old.json",  # of another machine, a week ago
            tmp_path / ".model.123-140000000000.json",  # of version 0.1.0
        ]
        kept = [
            tmp_path / f".sppdet-{files._HOST}-{os.getpid()}-1-0123456789abcdef.npy",
            tmp_path / ".sppdet-00000000-1-1-new.json",
            tmp_path / ".hidden.json",
            tmp_path / "a.npy",
        ]
        for path in (*gone, *kept):
            path.touch()
        for path in (*gone[2:], *kept[2:]):
            os.utime(path, (0, 0))
        remove_leftovers(tmp_path)
        assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(kept)

    def test_a_killed_write_leaves_nothing_behind_the_next_one(self, tmp_path):
        code = (
            "import os, signal, sys; from pathlib import Path; from sppdet.utils import atomic_write\n"
            "atomic_write(Path(sys.argv[1]), lambda path: (path.write_text('x'), os.kill(os.getpid(), signal.SIGKILL)))"
        )
        subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.json")], check=False)
        assert len(list(tmp_path.iterdir())) == 1
        require_writable("run.dir", tmp_path)
        assert list(tmp_path.iterdir()) == []


def test_the_error_of_a_folder_that_cannot_be_written_names_the_file(tmp_path, monkeypatch):
    def read_only(self):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))

    monkeypatch.setattr(Path, "touch", read_only)
    with pytest.raises(OSError) as caught:
        atomic_write(tmp_path / "a.json", lambda path: None)
    assert caught.value.filename == str(tmp_path / "a.json")


def test_errors_in_a_temporary_folder_name_the_file_as_it_would_be(tmp_path):
    for error in (OSError(errno.ENOSPC, "No space left"), SppdetError("{path}: is no number")):
        with pytest.raises(type(error)) as raised, temporary_folder(tmp_path) as folder:
            error.filename = str(folder / "labels/a.txt")
            raise error if isinstance(error, OSError) else SppdetError(f"{error.filename}: is no number")
        text = raised.value.filename if isinstance(error, OSError) else str(raised.value).partition(":")[0]
        assert text == str(tmp_path / "labels/a.txt")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OSError) as raised, temporary_folder(tmp_path / "none"):
        pass
    assert raised.value.filename == str(tmp_path / "none")


def test_a_file_of_a_name_of_250_bytes_can_be_written(tmp_path):
    path = tmp_path / ("n" * 245 + ".json")
    write_json(path, {"a": 1})
    assert read_json(path) == {"a": 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "expected an object, {...}, found a list"),
        ("null", "expected an object, {...}, found null"),
        ("[" * 100_000, "not readable as JSON"),
        ("9" * 5000, "not readable as JSON"),
        ('{"head": 1}', "'head' is a whole number, not an object or null"),
        ("{}", "has no 'head'"),
    ],
)
def test_json_of_another_form_is_refused(tmp_path, text, message):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(SppdetError, match=re.escape(f"a.json: {message}")):
        read_json(tmp_path / "a.json", head=(dict, type(None)))


def test_a_sealed_file_is_read_without_its_checksum_and_refused_once_changed(tmp_path):
    path, value = tmp_path / "model.json", {"scale": 0.1, "names": ["a", "b"], "levels": (3, 1), "none": None}
    write_json(path, value, sealed=True)
    assert read_json(path, scale=float) == value | {"levels": [3, 1]}
    path.write_text(path.read_text().replace("0.1", "0.3"))
    with pytest.raises(SppdetError, match=r"model\.json: was changed since it was written; .* if you edited it"):
        read_json(path)
    path.write_text(re.sub(r',\s*"checksum": "\w+"', "", path.read_text()))
    assert read_json(path)["scale"] == 0.3
