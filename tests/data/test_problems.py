"""Problems as text."""

from __future__ import annotations

import pytest

from sppdet.data.problems import Problem, raise_fatal, remarks, report_lines
from sppdet.utils.errors import SppdetError

PROBLEMS = [
    Problem("clipped", "x/b.xml", "x/b.xml: object 1 reaches beyond"),
    Problem("covers", "x/b.xml", "x/b.xml: object 2 covers"),
    Problem("clipped", "x/a.xml", "x/a.xml: object 1 reaches beyond"),
    Problem("no image", "x/c.xml", "x/c.xml: no image", fatal=True),
]


def test_a_report_is_sorted_by_kind():
    assert report_lines(PROBLEMS, "x/") == [
        "annotations without image: 1",
        "  c.xml: no image",
        "boxes that reach beyond their image, clipped: 2",
        "  b.xml: object 1 reaches beyond",
        "  a.xml: object 1 reaches beyond",
        "boxes that cover their whole image: 1",
        "  b.xml: object 2 covers",
    ]


def test_remarks_leave_out_notes_and_fatal_problems():
    assert remarks(PROBLEMS) == ["boxes that reach beyond their image, clipped: 2 (b.xml, a.xml)"]


def test_fatal_problems_are_one_error_with_a_remedy():
    raise_fatal(PROBLEMS[:3])
    with pytest.raises(SppdetError, match=r"^x/c\.xml: no image\nlook$"):
        raise_fatal(PROBLEMS, "look")
