"""Reading and changing settings: YAML files, and ``key=value`` overrides from the command line."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import yaml

from sppdet.config.checks import check
from sppdet.config.limits import checked, field_types, section_class, shortened
from sppdet.config.settings import RENAMED, ClassifierConfig, Config
from sppdet.utils import SppdetError, read_json

_LONGEST = 1_000_000  # characters of a file of settings
_MOST_VALUES = 10_000  # in a file of settings, where an alias counts as all that it stands for
# Lists of names: YAML would read 0017 in them as 15, 12:30 as 750 and no as false.
_NAME_LISTS = ("data.classes",)
_OF_ANNOTATIONS = {"names", "nc", "images", "annotations", "categories"}  # keys of YOLO's data.yaml and of COCO's JSON

Settings = TypeVar("Settings", Config, ClassifierConfig)

PRESETS = ("quick", "default", "best")  # from the least time to the highest accuracy
_PRESET_FOLDER = Path(__file__).parent / "presets"
# The presets' layers in each size of their network: the last blocks of the same stages.
_LAYERS = {
    "efficientnet_lite0": ["_blocks.10", "_blocks.14", "_blocks.15"],
    "efficientnet_lite1": ["_blocks.14", "_blocks.19", "_blocks.20"],
    "efficientnet_lite2": ["_blocks.14", "_blocks.19", "_blocks.20"],
}


def load(path: str | Path | None, overrides: Iterable[str] = (), kind: type[Settings] = Config) -> Settings:  # type: ignore[assignment]
    """Return the settings of a file, or the defaults, with overrides applied.

    A file may begin with ``preset: default``: its other keys then change the settings of that preset. With another
    ``backbone.name`` than the preset's, its layers are those that `load_preset` takes.

    Args:
        path: a YAML file or the config.json of a run; None takes the defaults.
        overrides: changes such as ``regions.scales=[480,688]``.
        kind: class of the settings, `Config` or `ClassifierConfig`.

    Raises:
        SppdetError: the file is missing or is not YAML, a key is unknown (the message names the nearest one), a value
            has the wrong type or is outside its limits, or settings do not go together.

    Examples:
        >>> from sppdet import config
        >>> config.load(None, ["regions.scales=[480,688]"]).regions.scales
        (480, 688)
    """
    overrides = [*overrides]
    if path is None:
        return override(kind(), overrides)
    values, texts = _read_yaml(Path(path))
    if values.pop("checksum", None) is not None:  # config.json has one
        read_json(path)
    if values.keys() & _OF_ANNOTATIONS:
        raise SppdetError(
            f"{path}: describes images or their classes, not settings; give the folder of the images, such as "
            f"{Path(path).parent}"
        )
    values.pop("versions", None)  # and the versions of the software beside the settings
    _keep_names(kind, values, texts)
    if kind is Config and (preset := values.pop("preset", None)) is not None:
        values = _merged(_preset_values(preset, _network_of(values, overrides), f"{path}: "), values)
    return override(_build(kind, values, source=f"{path}: "), overrides)


def load_preset(name: str, overrides: Iterable[str] = ()) -> Config:
    """Return the settings of a preset, with overrides applied.

    The layers of a preset are those of its network. Another ``backbone.name`` is read at the same layers if it is an
    EfficientNet-Lite, too, else at its last layer; unless ``backbone.layers`` says otherwise.

    Args:
        name: one of `PRESETS`.
        overrides: changes such as ``data.root=photos``.

    Raises:
        SppdetError: there is no such preset, or an error of `override`.

    Examples:
        >>> load_preset("quick").regions.scales
        (688,)
    """
    overrides = [*overrides]
    return override(_build(Config, _preset_values(name, _network_of({}, overrides))), overrides)


def _preset_values(name: object, network: str | None, source: str = "") -> dict[str, Any]:
    """Return the content of a preset's file, for a ``network`` that may be another than the preset's."""
    if name not in PRESETS:
        raise SppdetError(f"{source}preset: expected one of {', '.join(PRESETS)}, found {name!r}")
    values = _read_yaml(_PRESET_FOLDER / f"{name}.yaml")[0]
    if network not in (None, values["backbone"]["name"]):
        values["backbone"] |= {"name": network, "layers": _LAYERS.get(str(network), [])}
        if not values["backbone"]["layers"]:
            del values["pooling"]["layer_weights"]
    return values


def _network_of(values: dict[str, Any], overrides: Iterable[str]) -> str | None:
    """Return the ``backbone.name`` that a file or, before it, overrides give; None where neither does."""
    section = values.get("backbone")
    name = section.get("name") if isinstance(section, dict) else None
    for text in overrides:
        key, _, value = text.partition("=")
        name = value.strip() if key.strip() == "backbone.name" else name
    return name


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return nested dicts with the changes applied key by key."""
    merged = dict(base)
    for name, value in changes.items():
        old = merged.get(name)
        merged[name] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _read_yaml(path: Path) -> tuple[dict[str, Any], Any]:
    """Return the values of a YAML file, and the same with every scalar as it is written."""
    try:
        with open(path, encoding="utf-8") as file:
            content = file.read(_LONGEST + 1)
        values, texts = _parse_yaml(content) or {}, _parse_yaml(content, _AsWritten)
    except OSError as error:
        reason = (error.strerror or "unreadable").lower()
        raise SppdetError(f"{path}: {reason}; give a YAML file, such as one of configs/") from None
    except (yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise SppdetError(
            f"{path}: not YAML ({reason}); correct it, or give a folder of labelled images or a file of configs/"
        ) from None
    if not isinstance(values, dict):
        raise SppdetError(f"{path}: expected `key: value` lines, found {type(values).__name__}")
    return values, texts


def override(config: Settings, overrides: Iterable[str]) -> Settings:
    """Return a copy of ``config`` with ``key=value`` strings applied, whose values are read as YAML.

    Raises:
        SppdetError: a string is not ``key=value``, a key is unknown, a value has the wrong type or is outside its
            limits, or settings do not go together.

    Examples:
        >>> override(Config(), ["svm.C=1e-2"]).svm.C
        0.01
    """
    values = to_dict(config)
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals:
            raise SppdetError(f"'{text}': expected key=value, such as regions.scales=[480,688]")
        *section_names, name = key.strip().split(".")
        name = RENAMED.get(name, name)
        section: Any = values
        for section_name in section_names:
            section = section.get(section_name) if isinstance(section, dict) else None
        if not isinstance(section, dict):
            raise SppdetError(_unknown_key(key, type(config)))
        section[name] = _parsed(key, value, section.get(name))
    changed = _build(type(config), values)
    check(changed)
    return changed


def _parsed(key: str, value: str, old_value: Any) -> Any:
    """Return the value that the text ``value`` stands for."""
    # Text stays as it is: YAML reads a name such as 0010 as a number, and the end of 'run #2' as a comment.
    text = value.strip()
    if isinstance(old_value, str) and text not in ("", "null") and text[0] not in "'\"[{":
        return text
    try:
        parsed = _parse_yaml(value)
        return _parse_yaml(value, _AsWritten) if parsed is not None and key.strip() in _NAME_LISTS else parsed
    except (yaml.YAMLError, ValueError):
        raise SppdetError(f"{key}: {shortened(value)} is not a YAML value") from None


class _AsWritten(yaml.SafeLoader):
    """Reads every scalar as the text that is written; merged keys are merged."""

    yaml_implicit_resolvers = {"<": yaml.SafeLoader.yaml_implicit_resolvers["<"]}  # noqa: RUF012


def _parse_yaml(text: str, reader: type[yaml.SafeLoader] = yaml.SafeLoader) -> Any:
    """Return the value of a YAML document.

    Args:
        text: the document.
        reader: how scalars become values.

    Raises:
        yaml.YAMLError: it is none, or nested too deeply.
        ValueError: it is too large, its aliases stand for too many values, or a value cannot be converted.
    """
    if len(text) > _LONGEST:
        raise ValueError(f"longer than {_LONGEST:,} characters")
    try:
        loader = reader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _count_values(node, {}) > _MOST_VALUES:
            raise ValueError(f"stands for more than {_MOST_VALUES:,} values")
        return loader.construct_document(node)
    except RecursionError:
        raise yaml.YAMLError("nested too deeply") from None
    except (TypeError, AttributeError, LookupError) as error:  # of constructors, such as that of !!timestamp
        raise ValueError(f"a value that YAML cannot convert: {error}") from None


def _count_values(node: yaml.Node, counts: dict[int, float]) -> float:
    """Return how many values a node stands for, each alias counted; infinite for a node that holds itself.

    Args:
        node: of the document.
        counts: by id, the numbers of the nodes counted so far.
    """
    if id(node) not in counts:
        counts[id(node)] = math.inf
        children = node.value if isinstance(node, yaml.CollectionNode) else []
        flat = [child for pair in children for child in (pair if isinstance(pair, tuple) else [pair])]
        counts[id(node)] = 1 + sum(_count_values(child, counts) for child in flat)
    return counts[id(node)]


def _keep_names(kind: type, values: dict[str, Any], texts: Any) -> None:
    """Replace the names in lists of names by what is written in the file."""
    for key in set(keys(kind)) & set(_NAME_LISTS):
        section, _, name = key.partition(".")
        if isinstance(values.get(section), dict) and values[section].get(name) is not None:
            values[section][name] = texts[section][name]


def in_folder(config: Settings, folder: str | Path) -> Settings:
    """Return a copy of ``config`` whose ``run.dir`` is ``folder``."""
    return replace(config, run=replace(config.run, dir=str(folder)))


def to_dict(config: Any) -> dict[str, Any]:
    """Return settings as nested dicts of JSON's types.

    Examples:
        >>> to_dict(Config().calibration)
        {'folds': 4, 'images': 400}
    """
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def _plain(value: Any) -> Any:
    """Return a setting, or a section, in JSON's types."""
    if isinstance(value, tuple):
        return [*map(_plain, value)]
    return to_dict(value) if dataclasses.is_dataclass(value) else value


def from_dict(values: dict[str, Any], kind: type[Settings] = Config) -> Settings:  # type: ignore[assignment]
    """Return the settings whose nested dicts are ``values``, the inverse of `to_dict`.

    Raises:
        SppdetError: a key is unknown, or a value has the wrong type or is outside its limits. Whether settings go
            together is not checked.
    """
    return _build(kind, values)


def keys(kind: type = Config, prefix: str = "") -> list[str]:
    """Return every dotted key of a settings class.

    Args:
        kind: the settings class.
        prefix: put in front of every key.

    Examples:
        >>> keys()[:3]
        ['data.root', 'data.train_split', 'data.test_split']
    """
    names = []
    for name, annotation in field_types(kind).items():
        section = section_class(annotation)
        names += keys(section, f"{prefix}{name}.") if section else [prefix + name]
    return names


def _build(kind: type, values: Any, prefix: str = "", source: str = "", root: type | None = None) -> Any:
    """Construct settings from nested dicts.

    Args:
        kind: the settings class.
        values: its values by name.
        prefix: key of a section and a dot; empty for the whole settings.
        source: start of error messages.
        root: class of the whole settings, for the keys that error messages suggest.
    """
    root = root or kind
    if not isinstance(values, dict):
        raise SppdetError(f"{source}{prefix.rstrip('.')}: expected keys below it, found {shortened(values)}")
    annotations = field_types(kind)
    arguments = {}
    for name, value in ((RENAMED.get(name, name), value) for name, value in values.items()):
        key = f"{prefix}{name}" if isinstance(name, str) else f"{prefix}{shortened(name)}"
        if name not in annotations:
            raise SppdetError(f"{source}{_unknown_key(key, root)}")
        if section := section_class(annotations[name]):
            arguments[name] = _build(section, {} if value is None else value, f"{key}.", source, root)
        else:
            arguments[name] = checked(key, value, annotations[name], source)
    return kind(**arguments)


def _unknown_key(key: str, kind: type) -> str:
    """Return the message for an unknown key, with the key that was probably meant."""
    known = keys(kind)
    if key in known:
        section, _, name = key.rpartition(".")
        return f"key '{key}' in one line: write {section}: {{{name}: VALUE}}"
    same_name = [other for other in known if other.split(".")[-1] == key.split(".")[-1]]
    nearest = same_name or difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"unknown key '{key}'" + (f"; did you mean '{nearest[0]}'?" if nearest else "")


def to_yaml(config: Any) -> str:
    """Return settings as the text of a YAML file, which `load` reads."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, default_flow_style=None)
