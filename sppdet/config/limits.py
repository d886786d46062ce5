"""What the value of one setting may be: the limits that stand beside each field in :mod:`sppdet.config.settings`."""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from sppdet.utils import SppdetError


class Limit(Protocol):
    """A limit in the annotation of a field, as in ``nms: Annotated[float, Between(0, 1)]``."""

    def expected(self, value: Any) -> str | None:
        """Return what was expected where ``value`` is not allowed, else None."""


@dataclass(frozen=True)
class OneOf:
    """One of a few names."""

    choices: tuple[str, ...]

    def expected(self, value: Any) -> str | None:
        return None if value in self.choices else f"expected one of {', '.join(self.choices)}"


@dataclass(frozen=True)
class Between:
    """A number from ``low`` to ``high``, both allowed."""

    low: float
    high: float

    def expected(self, value: Any) -> str | None:
        return None if self.low <= value <= self.high else f"expected {self.low} to {self.high}"


@dataclass(frozen=True)
class AtLeast:
    """A number of ``low`` or more."""

    low: float

    def expected(self, value: Any) -> str | None:
        return None if value >= self.low else f"expected {self.low} or more"


@dataclass(frozen=True)
class Above:
    """A number above ``low``."""

    low: float

    def expected(self, value: Any) -> str | None:
        return None if value > self.low else f"expected more than {self.low}"


@dataclass(frozen=True)
class Sizes:
    """One or more positive whole numbers."""

    def expected(self, value: Any) -> str | None:
        return None if value and min(value) >= 1 else "expected one or more positive whole numbers"


@dataclass(frozen=True)
class EachOnce:
    """A list in which nothing is repeated."""

    def expected(self, value: Any) -> str | None:
        return None if len(set(value)) == len(value) else "expected each name once"


@dataclass(frozen=True)
class Matching:
    """Text of a form.

    Attributes:
        pattern: regular expression that the whole text must match.
        form: the form in words.
    """

    pattern: str
    form: str

    def expected(self, value: Any) -> str | None:
        return None if re.fullmatch(self.pattern, value) else f"expected {self.form}"


@dataclass(frozen=True)
class AnyValue:
    """No limit but the type: what is allowed is decided elsewhere, as ``where`` says."""

    where: str

    def expected(self, value: Any) -> str | None:
        return None


@cache
def field_types(kind: type) -> dict[str, Any]:
    """Return the type of each field of a settings class, with its limits."""
    return typing.get_type_hints(kind, include_extras=True)


def type_and_limits(hint: Any) -> tuple[Any, tuple[Limit, ...]]:
    """Split an annotation into the type itself and its limits, such as ``float`` and ``(Between(0, 1),)``."""
    if typing.get_origin(hint) is typing.Annotated:
        kind, *limits = typing.get_args(hint)
        return kind, tuple(limits)
    return hint, ()


def checked(key: str, value: Any, hint: Any, source: str = "") -> Any:
    """Return ``value`` as the type that a field's annotation asks for.

    Args:
        key: the setting, for the message.
        hint: annotation of the field, with its limits.
        source: what a message begins with, such as a file's name and a colon.

    Raises:
        SppdetError: for a value of another type, or outside the limits.
    """
    kind, limits = type_and_limits(hint)
    value = _converted(key, value, kind, source)
    if value is None:
        return None
    if isinstance(value, float) and not math.isfinite(value):
        raise SppdetError(f"{source}{key}: expected a number, found {value!r}")
    for limit in limits:
        if expected := limit.expected(value):
            raise SppdetError(f"{source}{key}: {expected}, found {_shown(value)}")
    return value


def _shown(value: Any) -> str:
    return repr(list(value) if isinstance(value, tuple) else value)


def _converted(key: str, value: Any, kind: Any, source: str) -> Any:
    """Convert whole numbers where a float is wanted, numbers where text is, and lists to tuples; nothing else."""
    if isinstance(kind, types.UnionType):
        if value is None:
            return None
        kind = next(part for part in typing.get_args(kind) if part is not types.NoneType)
    if typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)[0]
        items: Sequence = value if isinstance(value, list | tuple) else [value]
        if inner is int and isinstance(value, str) and "," in value:
            raise SppdetError(f"{source}{key}: expected a list such as [480,688], found {value!r}")
        return tuple(_converted(key, item, inner, source) for item in items)
    if kind is float and isinstance(value, int | str) and not isinstance(value, bool):
        try:
            return float(value)  # YAML 1.1 reads 1e-3 as text
        except ValueError:
            pass
    if kind is str and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if kind is str and isinstance(value, str) and value.startswith("~/"):  # in key=~/folder the shell leaves it
        return str(Path(value).expanduser())
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise SppdetError(f"{source}{key}: expected {kind.__name__}, found {_shown(value)}")
    return value


class Checked:
    """Base of the settings classes: a field of the wrong type or outside its limits cannot be constructed."""

    def __post_init__(self) -> None:
        hints = field_types(type(self))
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            if not dataclasses.is_dataclass(type_and_limits(hints[field.name])[0]):
                value = checked(f"{type(self).__name__}.{field.name}", getattr(self, field.name), hints[field.name])
                object.__setattr__(self, field.name, value)
