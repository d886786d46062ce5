"""Limits of settings: which values one setting may have.

A limit stands in the annotation of a field in `sppdet.config.settings`, as in
``nms: Annotated[float, between(0, 1)]``. Conditions on several settings at once are in `sppdet.config.checks`.
"""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from sppdet.utils import SppdetError

_LARGEST = 2**32 - 1  # whole number of a setting; more is no valid seed
_SHOWN = 200  # characters of a value in a message


@dataclass(frozen=True)
class Limit:
    """The values that a setting may have.

    Attributes:
        expected: the allowed values in words; messages put it after "expected".
        allows: whether a value, which is of the setting's type, is allowed.
    """

    expected: str
    allows: Callable[[Any], bool]


def one_of(*choices: str) -> Limit:
    """Return the limit to a few names.

    Examples:
        >>> one_of("max", "align").expected
        'one of max, align'
    """
    return Limit(f"one of {', '.join(choices)}", lambda value: value in choices)


def between(low: float, high: float) -> Limit:
    """Return the limit to numbers from ``low`` to ``high``, both included."""
    return Limit(f"{low} to {high}", lambda value: low <= value <= high)


def at_least(low: float) -> Limit:
    """Return the limit to numbers not below ``low``."""
    return Limit(f"{low} or more", lambda value: value >= low)


def above(low: float) -> Limit:
    """Return the limit to numbers greater than ``low``."""
    return Limit(f"more than {low}", lambda value: value > low)


def positive_numbers(high: float = math.inf) -> Limit:
    """Return the limit to lists of one or more positive whole numbers, up to ``high``."""
    expected = "one or more positive whole numbers" + (f" up to {high}" if math.isfinite(high) else "")
    return Limit(expected, lambda values: bool(values) and min(values) >= 1 and max(values) <= high)


def distinct_names() -> Limit:
    """Return the limit to lists without repetition."""
    return Limit("each name once", lambda values: len(set(values)) == len(values))


def matching(pattern: str, form: str) -> Limit:
    """Return the limit to text that the regular expression ``pattern`` matches as a whole; ``form`` is it in words."""
    return Limit(form, lambda value: re.fullmatch(pattern, value) is not None)


def any_value(reason: str) -> Limit:
    """Return the limit that allows every value of the setting's type, with the reason why."""
    return Limit(reason, lambda value: True)


@cache
def field_types(kind: type) -> dict[str, Any]:
    """Return the annotation of each field of a settings class, with its limits, by the field's name."""
    return typing.get_type_hints(kind, include_extras=True)


def type_and_limits(annotation: Any) -> tuple[Any, tuple[Limit, ...]]:
    """Split an annotation into the type and its limits.

    Examples:
        >>> from typing import Annotated
        >>> kind, limits = type_and_limits(Annotated[float, between(0, 1)])
        >>> kind, [limit.expected for limit in limits]
        (<class 'float'>, ['0 to 1'])
    """
    if typing.get_origin(annotation) is typing.Annotated:
        kind, *limits = typing.get_args(annotation)
        return kind, tuple(limits)
    return annotation, ()


def section_class(annotation: Any) -> type | None:
    """Return the settings class of a section, such as the field ``svm``; None for any other annotation."""
    kind, _ = type_and_limits(annotation)
    return kind if isinstance(kind, type) and dataclasses.is_dataclass(kind) else None


def checked(key: str, value: Any, annotation: Any, source: str = "") -> Any:
    """Return ``value``, converted to the type that a field's annotation asks for.

    Conversions are from whole numbers and text to float (YAML 1.1 reads ``1e-3`` as text), from numbers to text, from
    lists and single values to tuples, and from ``~/`` at the start of text to the home folder.

    Args:
        key: the setting, for messages.
        value: the value, as YAML or a caller has it.
        annotation: annotation of the field, with its limits.
        source: start of messages, such as a file's name and ``": "``.

    Raises:
        SppdetError: the value has another type, or is outside the limits.

    Examples:
        >>> from typing import Annotated
        >>> checked("detection.nms", "3e-1", Annotated[float, between(0, 1)])
        0.3
    """
    kind, limits = type_and_limits(annotation)
    value = _converted(key, value, kind, source)
    if value is None:
        return None
    if isinstance(value, float) and not math.isfinite(value):
        raise SppdetError(f"{source}{key}: expected a number, found {value!r}")
    whole_numbers = value if isinstance(value, tuple) else (value,)
    if any(isinstance(number, int) and abs(number) > _LARGEST for number in whole_numbers):
        raise SppdetError(f"{source}{key}: expected whole numbers up to {_LARGEST}, found {shortened(value)}")
    for limit in limits:
        if not limit.allows(value):
            raise SppdetError(f"{source}{key}: expected {limit.expected}, found {shortened(value)}")
    return value


def shortened(value: Any) -> str:
    """Return a value as a user writes it, of a long one the beginning.

    Examples:
        >>> shortened((480, 688))
        '[480, 688]'
    """
    try:
        text = repr(list(value) if isinstance(value, tuple) else value)
    except (ValueError, RecursionError):  # a number of thousands of digits, or values nested thousands deep
        text = f"a {type(value).__name__} that is too long to show"
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _converted(key: str, value: Any, kind: Any, source: str) -> Any:
    """Return ``value`` as an instance of ``kind``: a plain type, an optional one, or a tuple of one type."""
    if isinstance(kind, types.UnionType):
        if value is None:
            return None
        kind = next(option for option in typing.get_args(kind) if option is not types.NoneType)
    if typing.get_origin(kind) is tuple:
        item_kind = typing.get_args(kind)[0]  # with limits of each item, or without
        if item_kind is int and isinstance(value, str) and "," in value:
            raise SppdetError(f"{source}{key}: expected a list such as [480,688], found {shortened(value)}")
        items = value if isinstance(value, list | tuple) else [value]
        return tuple(checked(key, item, item_kind, source) for item in items)
    if kind is float and isinstance(value, int | str) and not isinstance(value, bool):
        try:
            return float(value)
        except (ValueError, OverflowError):
            pass
    if kind is str and isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300:
        return str(value)
    if kind is str and isinstance(value, str) and value.startswith("~/"):  # the shell leaves it in key=~/folder
        with suppress(RuntimeError):  # there is no home folder
            return str(Path(value).expanduser())
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise SppdetError(f"{source}{key}: expected {kind.__name__}, found {shortened(value)}")
    return value


@dataclass(frozen=True)
class Checked:
    """Base of the settings classes, which are constructed with values of the right type and inside the limits only."""

    def __post_init__(self) -> None:
        kind: type = type(self)
        for name, annotation in field_types(kind).items():
            if not section_class(annotation):  # sections have checked their fields themselves
                value = checked(f"{kind.__name__}.{name}", getattr(self, name), annotation)
                object.__setattr__(self, name, value)
