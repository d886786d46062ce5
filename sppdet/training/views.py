"""How many views of each training image are learned from: scales and mirror images, which make objects more varied.

On PASCAL VOC, with few objects per class, two scales and mirror images gain four points. On blood cells, with 1000
objects per class, they gain half a point and take several times as long. With 5 objects per class a third scale gains,
too (docs/experiments/front_door.md and backbones.md).
"""

from __future__ import annotations

from collections.abc import Collection

from sppdet.config import Config
from sppdet.data import Dataset
from sppdet.training.data_settings import Choice

_FEW, _ENOUGH = 10, 1000  # objects per class
_THREE_SCALES = [480, 688, 864]


def choose_views(config: Config, dataset: Dataset, fixed: Collection[str] = ()) -> list[Choice]:
    """Choose the number of scales, and whether mirror images are learned, where ``config`` has more than one view.

    Which scales are best is left to `sppdet.training.data_settings.choose_settings`.

    Args:
        config: the settings to start from.
        dataset: the training images.
        fixed: settings that the user has given, which stay as ``config`` has them.

    Returns:
        The settings that differ from ``config``'s. Empty where that reads each image once.
    """
    flips = {"finetune.flip": config.finetune.flip, "svm.flip": config.svm.flip, "bbox.flip": config.bbox.flip}
    mirrored = [key for key, flip in flips.items() if flip]
    two_scales = len(config.regions.scales) == 2 and config.regions.crop == "none"
    per_class = sum(len(sample.boxes) for sample in dataset) / max(1, len(dataset.classes))
    found = f"{per_class:.0f} objects per class"
    choices = []
    if per_class >= _ENOUGH:
        if two_scales:
            choices.append(Choice("regions.scales", [max(config.regions.scales)], f"{found}: one scale is enough"))
        choices += [Choice(key, False, f"{found}: they are varied enough without mirror images") for key in mirrored]
    elif 0 < per_class < _FEW and two_scales and mirrored:
        choices.append(Choice("regions.scales", _THREE_SCALES, f"{found}: a third scale makes them more varied"))
    return [choice for choice in choices if choice.key not in fixed]
