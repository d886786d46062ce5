"""The detector that is part of the package: VOC's 20 classes. Its model card is ``voc07/README.md``."""

from __future__ import annotations

from pathlib import Path

SHIPPED = "voc07"  # its name where a run's folder is expected


def shipped_model() -> Path:
    """Return the folder of the detector that is part of the package."""
    return Path(__file__).parent / SHIPPED


def model_folder(name: str | Path) -> Path:
    """Return the folder that is meant by ``name``: a folder, or ``voc07`` for the detector of the package.

    Examples:
        >>> model_folder("runs/demo")
        PosixPath('runs/demo')
        >>> model_folder("voc07").name
        'voc07'
    """
    folder = Path(name)
    return shipped_model() if str(name) == SHIPPED and not folder.exists() else folder
