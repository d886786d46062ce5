"""How many views of each training image are learned from: scales and mirror images, which make objects more varied.

On PASCAL VOC, with few objects per class, two scales and mirror images gain four points. On blood cells, with 1000
objects per class, they gain half a point and take several times as long. With 5 objects per class a third scale gains,
too (docs/experiments/front_door.md and backbones.md).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from sppdet.config import Config
from sppdet.data import Dataset
from sppdet.training.data_settings import Choice

_FEW, _ENOUGH = 10, 1000  # objects per class


@dataclass(frozen=True)
class Views:
    """How many views of each training image are learned from.

    Attributes:
        scales: number of scales. Which ones is left to `sppdet.training.data_settings.choose_settings`.
        reason: a sentence for the user: why there are so many scales. Empty where the config has this number.
        mirrors: settings of mirror images that differ from the config's.
    """

    scales: int
    reason: str
    mirrors: list[Choice]


def choose_views(config: Config, dataset: Dataset, fixed: Collection[str] = ()) -> Views:
    """Choose the number of scales, and whether mirror images are learned, where ``config`` has more than one view.

    Args:
        config: the settings to start from.
        dataset: the training images.
        fixed: settings that the user has given, which stay as ``config`` has them.
    """
    flips = {"finetune.flip": config.finetune.flip, "svm.flip": config.svm.flip, "bbox.flip": config.bbox.flip}
    mirrored = [key for key, flip in flips.items() if flip]
    scales, reason, mirrors = len(config.regions.scales), "", []
    free = scales == 2 and config.regions.crop == "none" and "regions.scales" not in fixed
    per_class = sum(len(sample.boxes) for sample in dataset) / max(1, len(dataset.classes))
    found = f"{per_class:.0f} objects per class"
    if per_class >= _ENOUGH:
        if free:
            scales, reason = 1, f"{found}: one scale is enough"
        why = f"{found}: they are varied enough without mirror images"
        mirrors = [Choice(key, False, why) for key in mirrored if key not in fixed]
    elif 0 < per_class < _FEW and free and mirrored:
        scales, reason = 3, f"{found}: a third scale makes them more varied"
    return Views(scales, reason, mirrors)
