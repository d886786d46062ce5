"""Configurations read and changed: YAML files, and ``key=value`` overrides on the command line."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import yaml

from sppdet.config.checks import check
from sppdet.config.limits import checked, field_types, type_and_limits
from sppdet.config.settings import RENAMED, ClassifierConfig, Config
from sppdet.utils import SppdetError

Settings = TypeVar("Settings", Config, ClassifierConfig)


def load(path: str | Path | None, overrides: Iterable[str] = (), kind: type[Settings] = Config) -> Settings:  # type: ignore[assignment]
    """Read a YAML file or a run's config.json, or take the defaults, and apply overrides.

    Args:
        path: the file; None takes the defaults.
        overrides: changes such as ``regions.scales=[480,688]``.
        kind: which settings they are, :class:`Config` or :class:`ClassifierConfig`.

    Raises:
        SppdetError: no such file, not YAML, an unknown key (the message names the nearest one), a value of
            the wrong type, or choices that do not go together.

    >>> from sppdet import config
    >>> config.load(None, ["regions.scales=[480,688]"]).regions.scales
    (480, 688)
    """
    values: Any = {}
    if path is not None:
        try:
            values = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
        except OSError as error:
            raise SppdetError(
                f"{path}: {(error.strerror or 'unreadable').lower()}; the configs are in configs/"
            ) from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise SppdetError(f"{path}: not YAML ({' '.join(str(error).split())})") from None
        if not isinstance(values, dict):
            raise SppdetError(f"{path}: expected `key: value` lines, found {type(values).__name__}")
    values.pop("versions", None)  # a run's config.json says what it was made with
    return override(_build(kind, values, source=f"{path}: "), overrides)


def override(config: Settings, overrides: Iterable[str]) -> Settings:
    """Return a copy of ``config`` with ``key=value`` strings applied; values are read as YAML.

    Raises:
        SppdetError: as :func:`load`.
    """
    values = to_dict(config)
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals:
            raise SppdetError(f"'{text}': expected key=value, such as regions.scales=[480,688]")
        *parents, last = key.strip().split(".")
        last = RENAMED.get(last, last)
        place: Any = values
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


def in_folder(config: Settings, folder: str | Path) -> Settings:
    """Return a copy of ``config`` whose run is in ``folder``."""
    return replace(config, run=replace(config.run, dir=str(folder)))


def to_dict(config: Any) -> dict[str, Any]:
    """Return settings as nested dicts of JSON's types."""
    return {
        name: to_dict(value) if dataclasses.is_dataclass(value) else list(value) if isinstance(value, tuple) else value
        for name, value in ((field.name, getattr(config, field.name)) for field in dataclasses.fields(config))
    }


def from_dict(values: dict, kind: type[Settings] = Config) -> Settings:  # type: ignore[assignment]
    """Return the settings of which :func:`to_dict` made ``values``.

    Raises:
        SppdetError: as :func:`load`, but for choices that do not go together.
    """
    return _build(kind, values)


def keys(kind: type = Config, prefix: str = "") -> list[str]:
    """Return every dotted key, such as ``detection.nms``."""
    found = []
    for name, hint in field_types(kind).items():
        part = type_and_limits(hint)[0]
        found += keys(part, f"{prefix}{name}.") if dataclasses.is_dataclass(part) else [prefix + name]
    return found


def _build(kind: type, values: Any, prefix: str = "", source: str = "", whole: type | None = None) -> Any:
    """Construct settings of class ``kind``, which stand at ``prefix`` of the class ``whole``, from their values."""
    whole = whole or kind
    if not isinstance(values, dict):
        raise SppdetError(f"{source}{prefix.rstrip('.')}: expected keys below it, found {values!r}")
    hints = field_types(kind)
    values = {RENAMED.get(name, name): value for name, value in values.items()}
    for name in values:
        if name not in hints:
            raise SppdetError(f"{source}{_hint(f'{prefix}{name}', whole)}")
    arguments = {}
    for name, value in values.items():
        key, part = prefix + name, type_and_limits(hints[name])[0]
        if dataclasses.is_dataclass(part):
            arguments[name] = _build(part, value or {}, f"{key}.", source, whole)  # type: ignore[arg-type]
        else:
            arguments[name] = checked(key, value, hints[name], source)
    return kind(**arguments)


def _hint(key: str, kind: type) -> str:
    """Return the message for an unknown key, with the key that may have been meant."""
    known = keys(kind)
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    last = [other for other in known if other.rsplit(".")[-1] == key.rsplit(".")[-1]]
    if key in known:
        section, _, name = key.rpartition(".")
        return f"key '{key}' in one line: write {section}: {{{name}: VALUE}}"
    guess = (last or near)[:1]
    return f"unknown key '{key}'" + (f"; did you mean '{guess[0]}'?" if guess else "")


def to_yaml(config: Any) -> str:
    """Return settings as the text of a YAML file."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, default_flow_style=None)
