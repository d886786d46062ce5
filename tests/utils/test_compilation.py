"""Compiled functions are kept on disk where that is possible, and a warning says so where it is not."""

from __future__ import annotations

import os
import sys
import warnings

import numba
import pytest

from sppdet.utils import compilation
from sppdet.utils.compilation import compiled, marker, others_may_write


@compiled()
def twice(x):
    return 2 * x


def test_a_function_is_compiled_and_releases_the_interpreters_lock():
    assert twice(21) == 42 and twice.targetoptions["nogil"]


def test_a_function_is_compiled_where_nothing_can_be_kept(monkeypatch):
    njit = numba.njit

    def njit_without_folder(**options):
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return njit(**options)

    monkeypatch.setattr(compilation.numba, "njit", njit_without_folder)
    compilation._warn_that_nothing_is_kept.cache_clear()
    with pytest.warns(UserWarning, match="set NUMBA_CACHE_DIR"):
        thrice = compiled(fastmath=True)(lambda x: 3 * x)
    assert thrice(7) == 21 and thrice.targetoptions["fastmath"]
    assert marker(thrice, ()) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the warning comes once only
        compiled()(lambda x: x)


def test_the_marker_changes_with_the_sources(tmp_path):
    source = tmp_path / "source.py"
    source.write_text("x = 1")
    first = marker(twice, (str(source),))
    assert first.name.startswith("twice-") and first.suffix == ".compiled"
    assert marker(twice, (str(source),)) == first
    source.write_text("x = 2")
    assert marker(twice, (str(source),)) != first


def test_the_marker_changes_with_numbas_version(monkeypatch):
    first = marker(twice, ())
    monkeypatch.setattr(compilation.numba, "__version__", "0.0")
    assert marker(twice, ()) != first


@pytest.mark.skipif(sys.platform == "win32", reason="folders have no such permissions")
def test_no_code_is_kept_where_others_can_write(tmp_path, monkeypatch):
    shared = tmp_path / "shared"
    (shared / "numba").mkdir(parents=True)
    assert not others_may_write(shared / "numba")
    shared.chmod(0o777)
    others_may_write.cache_clear()
    assert others_may_write(shared) and others_may_write(shared / "numba")  # which may be renamed, and replaced
    shared.chmod(0o1777)  # as /tmp
    others_may_write.cache_clear()
    assert others_may_write(shared) and not others_may_write(shared / "numba")
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    others_may_write.cache_clear()
    assert others_may_write(shared / "numba") == (tmp_path.stat().st_uid != 0)


def test_a_function_is_compiled_where_others_can_write_but_not_kept(monkeypatch):
    monkeypatch.setattr(compilation, "others_may_write", lambda folder: True)
    compilation._warn_that_nothing_is_kept.cache_clear()
    with pytest.warns(UserWarning, match="can be written by other users, .* set NUMBA_CACHE_DIR"):
        fourfold = compiled()(lambda x: 4 * x)
    assert fourfold(2) == 8 and marker(fourfold, ()) is None
