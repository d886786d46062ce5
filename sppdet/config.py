"""Configurations read and changed: YAML files, and ``key=value`` overrides on the command line."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable
from pathlib import Path

import yaml

from sppdet.checks import check
from sppdet.errors import SppdetError
from sppdet.limits import check_value
from sppdet.settings import Config


def load(path: str | Path | None, overrides: Iterable[str] = (), kind: type = Config):
    """A YAML file, a run's config.json or the defaults, changed by ``key=value`` such as ``regions.scales=[480,688]``.

    Args:
        kind: which settings they are, :class:`Config` or :class:`Classify`.

    Raises:
        SppdetError: no such file, not YAML, an unknown key (the message names the nearest one), or a value of
            the wrong type.
    """
    values = {}
    if path is not None:
        try:
            values = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
        except OSError as error:
            raise SppdetError(f"{path}: {error.strerror.lower()}; the configs are in configs/") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise SppdetError(f"{path}: not YAML ({' '.join(str(error).split())})") from None
        if not isinstance(values, dict):
            raise SppdetError(f"{path}: expected `key: value` lines, found {type(values).__name__}")
    values.pop("versions", None)  # a run's config.json tells of what it was made with
    return override(_build(kind, values, source=f"{path}: "), overrides)


def override(config, overrides: Iterable[str]):
    """A copy of ``config`` with ``key=value`` strings applied; values are read as YAML."""
    values = to_dict(config)
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals:
            raise SppdetError(f"'{text}': expected key=value, such as regions.scales=[480,688]")
        *parents, last = key.strip().split(".")
        place = values
        for parent in parents:
            place = place.get(parent) if isinstance(place, dict) else None
        if not isinstance(place, dict):
            raise SppdetError(_hint(key, type(config)))
        # To YAML a name such as 0010 is a number, and part of 'run #2' a comment.
        bare = value.strip()
        named = isinstance(place.get(last), str) and bare not in ("", "null") and bare[0] not in "'\"[{"
        try:
            place[last] = bare if named else yaml.safe_load(value)
        except yaml.YAMLError:
            raise SppdetError(f"{key}: '{value}' is not a YAML value") from None
    changed = _build(type(config), values)
    check(changed)
    return changed


def to_dict(config) -> dict:
    return dataclasses.asdict(config)


def from_dict(values: dict, kind: type = Config):
    """The inverse of :func:`to_dict`."""
    return _build(kind, values)


def keys(kind: type = Config, prefix: str = "") -> list[str]:
    """Every dotted key."""
    found = []
    for name, hint in typing.get_type_hints(kind).items():
        found += keys(hint, f"{prefix}{name}.") if dataclasses.is_dataclass(hint) else [prefix + name]
    return found


def _build(kind: type, values, prefix: str = "", source: str = "", whole: type | None = None):
    """``kind`` from its values; it stands at ``prefix`` of the settings ``whole``."""
    whole = whole or kind
    if not isinstance(values, dict):
        raise SppdetError(f"{source}{prefix.rstrip('.')}: expected keys below it, found {values!r}")
    hints = typing.get_type_hints(kind)
    for name in values:
        if name not in hints:
            raise SppdetError(f"{source}{_hint(f'{prefix}{name}', whole)}")
    arguments = {}
    for name, value in values.items():
        key, hint = prefix + name, hints[name]
        if dataclasses.is_dataclass(hint):
            arguments[name] = _build(hint, value or {}, f"{key}.", source, whole)
        else:
            arguments[name] = check_value(key, _convert(key, value, hint, source), source)
    return kind(**arguments)


def _convert(key: str, value, hint, source: str):
    """``value`` as the type ``hint``; whole numbers are fine where a float is wanted, nothing else is bent."""
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        hint = next(part for part in typing.get_args(hint) if part is not types.NoneType)
    if typing.get_origin(hint) is list:
        (inner,) = typing.get_args(hint)
        listed = value if isinstance(value, list) else [value]
        if inner is int and isinstance(value, str) and "," in value:
            raise SppdetError(f"{source}{key}: expected a list such as [480,688], found {value!r}")
        return [_convert(key, item, inner, source) for item in listed]
    if hint is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:
            return float(value)  # YAML 1.1 reads 1e-3 as text
        except ValueError:
            pass
    if hint is str and isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    if hint is str and isinstance(value, str) and value.startswith("~/"):  # in key=~/folder the shell leaves it
        return str(Path(value).expanduser())
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise SppdetError(f"{source}{key}: expected {hint.__name__}, found {value!r}")
    return value


def _hint(key: str, kind: type) -> str:
    """What an unknown key may have been meant for among those of the settings ``kind``."""
    known = keys(kind)
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    last = [other for other in known if other.rsplit(".")[-1] == key.rsplit(".")[-1]]
    if key in known:
        section, _, name = key.rpartition(".")
        return f"key '{key}' in one line: write {section}: {{{name}: VALUE}}"
    guess = (last or near)[:1]
    return f"unknown key '{key}'" + (f"; did you mean '{guess[0]}'?" if guess else "")


def to_yaml(config) -> str:
    return yaml.safe_dump(to_dict(config), sort_keys=False, default_flow_style=None)
