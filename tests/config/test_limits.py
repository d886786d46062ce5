"""Limits of single settings: every kind of limit, conversions to the type of a setting, and that none is forgotten."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest

from sppdet.config.limits import (
    Checked,
    above,
    any_value,
    at_least,
    between,
    checked,
    distinct_names,
    field_types,
    matching,
    one_of,
    positive_numbers,
    section_class,
    type_and_limits,
)
from sppdet.config.settings import ClassifierConfig, Config
from sppdet.utils.errors import SppdetError


@pytest.mark.parametrize(
    ("limit", "allowed", "refused", "expected"),
    [
        (one_of("max", "align"), ["max", "align"], ["average", "", "ma"], "one of max, align"),
        (between(0, 1), [0.0, 0.5, 1.0], [-1e-9, 1.000001], "0 to 1"),
        (at_least(1), [1, 2], [0, -1], "1 or more"),
        (positive_numbers(9), [(1, 9)], [(10,), (0,)], "one or more positive whole numbers up to 9"),
        (above(0), [1e-9, 1], [0, -1], "more than 0"),
        (positive_numbers(), [(1,), (480, 688)], [(), (0,), (480, -1)], "one or more positive whole numbers"),
        (distinct_names(), [(), ("cat",), ("cat", "dog")], [("cat", "dog", "cat")], "each name once"),
        (
            matching(r"cpu|cuda(:\d+)?", "cpu or cuda"),
            ["cpu", "cuda", "cuda:1"],
            ["cuda:", "gpu", "cpu2"],
            "cpu or cuda",
        ),
        (any_value("a margin can be any number"), [-1.5, 0, 1e9], [], "a margin can be any number"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_limit_allows_its_values_alone(limit, allowed, refused, expected):
    assert limit.expected == expected
    assert [value for value in [*allowed, *refused] if limit.allows(value)] == allowed


@pytest.mark.parametrize(
    ("value", "annotation", "result"),
    [
        (3, int, 3),
        (3, float, 3.0),
        ("1e-3", float, 1e-3),  # text to YAML 1.1
        (2012, str, "2012"),
        (0.5, str, "0.5"),
        (True, bool, True),
        ([480, 688], tuple[int, ...], (480, 688)),
        (480, tuple[int, ...], (480,)),
        ([1, "b"], tuple[str, ...], ("1", "b")),
        (None, int | None, None),
        (5, int | None, 5),
        (["a"], tuple[str, ...] | None, ("a",)),
        (None, Annotated[int | None, at_least(1)], None),
        ("~/a", str, str(Path.home() / "a")),
        ("~user", str, "~user"),
    ],
)
def test_a_value_is_converted_to_the_type_of_the_setting(value, annotation, result):
    converted = checked("key", value, annotation)
    assert converted == result and type(converted) is type(result)


@pytest.mark.parametrize(
    ("value", "annotation", "message"),
    [
        (4.5, int, "key: expected int, found 4.5"),
        (True, int, "key: expected int, found True"),
        (True, float, "key: expected float, found True"),
        (True, str, "key: expected str, found True"),
        (1, bool, "key: expected bool, found 1"),
        ("much", float, "key: expected float, found 'much'"),
        (None, float, "key: expected float, found None"),
        ("", int | None, "key: expected int, found ''"),
        ([1, 4.5], tuple[int, ...], "key: expected int, found 4.5"),
        ((1, 2), int, "key: expected int, found [1, 2]"),
        ("480,688", tuple[int, ...], "key: expected a list such as [480,688], found '480,688'"),
        ("nan", float, "key: expected a number, found nan"),
        (float("inf"), Annotated[float, above(0)], "key: expected a number, found inf"),
        (0, Annotated[int | None, at_least(1)], "key: expected 1 or more, found 0"),
        (2, Annotated[float, between(0, 1)], "key: expected 0 to 1, found 2.0"),
        (
            [],
            Annotated[tuple[int, ...], positive_numbers()],
            "key: expected one or more positive whole numbers, found []",
        ),
    ],
)
def test_a_value_of_another_type_or_outside_the_limits_is_refused(value, annotation, message):
    with pytest.raises(SppdetError) as raised:
        checked("key", value, annotation)
    assert str(raised.value) == message


def test_a_message_begins_with_the_source():
    with pytest.raises(SppdetError) as raised:
        checked("svm.C", "x", float, "c.yaml: ")
    assert str(raised.value) == "c.yaml: svm.C: expected float, found 'x'"


def test_an_annotation_may_have_several_limits():
    annotation = Annotated[tuple[int, ...], positive_numbers(), distinct_names()]
    assert checked("key", [2, 1], annotation) == (2, 1)
    with pytest.raises(SppdetError, match="each name once"):
        checked("key", [1, 1], annotation)


@dataclass(frozen=True)
class Inner(Checked):
    ratio: Annotated[float, between(0, 1)] = 0.5


@dataclass(frozen=True)
class Outer(Checked):
    inner: Inner = Inner()
    names: tuple[str, ...] = ()
    switch: bool = False


def test_settings_are_checked_and_converted_when_they_are_constructed():
    outer = Outer(Inner(1), ["a"])
    assert outer.inner.ratio == 1.0 and isinstance(outer.inner.ratio, float)
    assert outer.names == ("a",)
    with pytest.raises(SppdetError, match=r"Inner\.ratio: expected 0 to 1, found 1\.5"):
        Inner(1.5)
    with pytest.raises(SppdetError, match=r"Outer\.switch: expected bool, found 1"):
        Outer(switch=1)


def test_a_section_is_told_from_a_setting():
    annotations = field_types(Outer)
    assert section_class(annotations["inner"]) is Inner
    assert section_class(annotations["names"]) is None and section_class(annotations["switch"]) is None


def settings_without_limit(kind: type, prefix: str = "") -> list[str]:
    """Dotted keys of the settings, switches excepted, whose annotation has no limit."""
    names = []
    for name, annotation in field_types(kind).items():
        value_type, limits = type_and_limits(annotation)
        if section := section_class(annotation):
            names += settings_without_limit(section, f"{prefix}{name}.")
        elif value_type is not bool and not limits:
            names.append(prefix + name)
    return names


def test_a_setting_without_limit_is_noticed():
    assert settings_without_limit(Outer) == ["names"]


@pytest.mark.parametrize("kind", [Config, ClassifierConfig])
def test_every_setting_has_a_limit(kind):
    assert settings_without_limit(kind) == []
