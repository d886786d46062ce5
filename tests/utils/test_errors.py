"""Messages for users stay readable, whatever a file holds."""

from __future__ import annotations

import pickle

from sppdet.utils.errors import SppdetError


def test_the_middle_of_a_long_line_is_left_out():
    error = SppdetError(f"a.json: 'kind' is {5000 * '9'}, not a name; remove it\nb.json: is empty")
    first, second = str(error).split("\n")
    assert first.startswith("a.json: 'kind' is 999") and " ... " in first and len(first) == 1500
    assert first.endswith("9, not a name; remove it") and second == "b.json: is empty"


def test_an_error_crosses_processes():
    assert str(pickle.loads(pickle.dumps(SppdetError("a: b")))) == "a: b"
