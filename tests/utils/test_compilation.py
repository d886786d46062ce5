"""What is compiled stays on disk where that can be, and says so where it cannot."""

from __future__ import annotations

import warnings

import numba
import pytest

from sppdet.utils import compilation as module
from sppdet.utils.compilation import compiled, marker


@compiled()
def twice(x):
    return 2 * x


def test_a_function_is_compiled_without_the_interpreters_lock():
    assert twice(21) == 42 and twice.targetoptions["nogil"]


def test_without_a_folder_for_it_a_function_is_compiled_all_the_same(monkeypatch):
    original = numba.njit

    def nowhere(**options):
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return original(**options)

    monkeypatch.setattr(module.numba, "njit", nowhere)
    module._warn.cache_clear()
    with pytest.warns(UserWarning, match="set NUMBA_CACHE_DIR"):
        thrice = compiled(fastmath=True)(lambda x: 3 * x)
    assert thrice(7) == 21 and marker(thrice, ()) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is said once
        compiled()(lambda x: x)


def test_the_marker_is_of_these_sources(tmp_path):
    source = tmp_path / "source.py"
    source.write_text("x = 1")
    first = marker(twice, (str(source),))
    assert first == marker(twice, (str(source),)) and first.name.startswith("twice-")
    source.write_text("x = 2")
    assert marker(twice, (str(source),)) != first
