"""What the value of a setting may be, by its dotted key; the same in every config that has the key."""

from __future__ import annotations

import math
import re

from sppdet.errors import SppdetError
from sppdet.warp import KINDS

BACKBONES = ("alexnet", "resnet18", "resnet50", "small", "squeezenet1_0", "squeezenet1_1", "vgg16")  # trunks.py's
_CHOICES = {
    "backbone.name": BACKBONES,
    "features": ("pool5", "fc6", "fc7", "pool5+fc7"),
    "classifier": ("svm", "softmax"),
    "pooling.kind": ("max", "average", "align"),
    "bbox.kind": ("ridge", "joint", "ridge+joint"),
    "svm.solver": ("dual", "liblinear"),
    "finetune.init": ("random", "imagenet"),
    "finetune.optimizer": ("adamw", "sgd"),
    "finetune.schedule": ("cosine", "step"),
    "end_to_end.optimizer": ("adamw", "sgd"),
    "backbone.precision": ("auto", "float32", "bfloat16"),
    "regions.crop": ("none", *KINDS),
    "proposals.mode": ("fast", "quality", "balanced"),
    "proposals.engine": ("opencv", "native"),
    "test.views": ("crop", "full", "multi"),
}
_SIZES = ("regions.scales", "pooling.levels", "pretrain.sizes", "end_to_end.scales", "levels", "sizes", "test.scales")
_LIMITS = ("data.limit_train", "data.limit_test", "side", "test.side", "test.view")
_COUNTS = (
    "pretrain.epochs", "pretrain.batch_size", "finetune.units", "finetune.batch_size", "finetune.windows_per_image",
    "end_to_end.pictures_per_step", "end_to_end.windows_per_picture", "end_to_end.units", "svm.passes", "svm.rounds",
    "regions.max_side", "regions.target",
    "bbox.max_windows", "detection.max_candidates", "detection.max_per_class", "epochs", "batch_size",
)  # fmt: skip
_SHARES = (
    "finetune.foreground", "end_to_end.foreground", "end_to_end.background",
    "svm.positive_overlap", "svm.negative_overlap", "svm.duplicate_overlap",
    "bbox.min_overlap", "detection.nms", "detection.vote",
    "finetune.dropout", "end_to_end.dropout", "dropout",
)  # fmt: skip
_POSITIVE = (
    "pretrain.learning_rate", "finetune.learning_rate", "end_to_end.learning_rate", "learning_rate",
    "end_to_end.epochs", "svm.C", "svm.positive_weight", "svm.norm", "bbox.ridge", "proposals.base_k",
    "memory_gb",
)  # fmt: skip
_FROM_ZERO = (
    "end_to_end.hard_of", "end_to_end.focal", "end_to_end.box_weight", "end_to_end.trunk_rate", "pooling.samples",
    "pretrain.weight_decay", "finetune.weight_decay", "end_to_end.weight_decay", "weight_decay",
    "proposals.inc_k", "proposals.sigma", "proposals.max_side", "proposals.min_size", "proposals.max_windows",
    "finetune.steps", "svm.random_negatives", "svm.max_negatives", "svm.hard_per_picture", "workers",
    "detection.context", "run.seed", "end_to_end.frozen_stride", "frozen_stride", "trunk_rate", "units",
)  # fmt: skip


def check_value(key: str, value, source: str = ""):
    """``value`` itself.

    Raises:
        SppdetError: it can not be that of ``key``; the line begins with ``source``, such as a file's name.
    """
    expected = _expected(key, value)
    if expected:
        raise SppdetError(f"{source}{key}: {expected}, found {value!r}")
    return value


def _expected(key: str, value) -> str | None:
    """What is wrong with it; None for nothing."""
    if key in _CHOICES and value not in _CHOICES[key]:
        return f"expected one of {', '.join(_CHOICES[key])}"
    if key in _SIZES and value is not None and (not value or min(value) < 1):
        return "expected one or more positive whole numbers"
    if key in _LIMITS and value is not None and value < 1:
        return "expected a positive number or null"
    if isinstance(value, float) and not math.isfinite(value):
        return "expected a number"
    if key in _COUNTS and value < 1:
        return "expected 1 or more"
    if key in _SHARES and not 0 <= value <= 1:
        return "expected 0 to 1"
    if key in _POSITIVE and value <= 0:
        return "expected more than 0"
    if key in _FROM_ZERO and value is not None and value < 0:
        return "expected 0 or more"
    if key == "device" and not re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):
        return "expected auto, cpu or cuda"
    if key == "data.classes" and value is not None and len(set(value)) < len(value):
        return "expected each name once"
    return None
