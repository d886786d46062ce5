"""The settings of a training from what a user gives: a folder of images, a YAML file, or settings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeGuard

from sppdet.config.loading import in_folder, load, load_preset, override
from sppdet.config.settings import Config
from sppdet.utils import SppdetError

DEFAULT_PRESET = "default"


def settings_for(
    source: Config | str | Path | None,
    overrides: Sequence[str] = (),
    preset: str | None = None,
    output: str | Path | None = None,
) -> Config:
    """Return the settings of a training.

    Args:
        source: a folder of labelled images; or a YAML file, the config.json of a run, settings, or None for the
            defaults.
        overrides: changes such as ``regions.scales=[480,688]``.
        preset: one of `sppdet.config.PRESETS`, for a folder.
        output: the run's folder; by default ``runs/NAME`` for a folder of this name.

    Raises:
        SppdetError: settings that cannot be read or do not go together.
    """
    if isinstance(source, Config):
        settings = override(source, overrides)
    elif is_folder(source):
        folder = Path(source)
        if (folder / "stages.json").exists():
            raise SppdetError(
                f"{folder}: is the folder of a run; give its config.json to train with its settings again"
            )
        settings = preset_settings(preset, str(folder), overrides)
        if not any(text.startswith("run.dir=") for text in overrides):
            settings = in_folder(settings, Path("runs") / folder.resolve().name)
        preset = None
    else:
        if source is not None and not Path(source).exists():
            raise SppdetError(f"{source}: does not exist; give a folder of labelled images, or a YAML file of settings")
        settings = load(source, overrides)
    if preset is not None:
        raise SppdetError(f"--preset: is for a folder of images; write `preset: {preset}` in the YAML file")
    return settings if output is None else in_folder(settings, output)


def is_folder(source: object) -> TypeGuard[str | Path]:
    """Whether the source of a training is a folder of images."""
    return isinstance(source, str | Path) and Path(source).is_dir()


def preset_settings(preset: str | None, root: str, overrides: Iterable[str]) -> Config:
    """Return the settings of a preset for the data set ``root``."""
    overrides = [*overrides]
    settings = load_preset(preset or DEFAULT_PRESET, overrides)
    return override(replace(settings, data=replace(settings.data, root=root)), overrides)
