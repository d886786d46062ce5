"""The figures of metrics.json as flat numbers, for DVC, MLflow and other trackers."""

from __future__ import annotations

import re
from collections.abc import Iterator

_FIGURES = ("mAP", "mAP_area", "AP", "AP_area", "recall", "without_bbox", "coco", "proposals", "calibration")


def flat_numbers(metrics: dict) -> dict[str, float]:
    """Return the figures of metrics.json as one dict of numbers, as MLflow's ``log_metrics`` takes it.

    Names of levels are joined by a slash. Characters that MLflow does not allow become underscores.

    Examples:
        >>> flat_numbers({"mAP": 61.5, "AP": {"cat": 61.5, "dog": None}, "proposals": {"recall@0.5": 0.99}, "key": "a"})
        {'mAP': 61.5, 'AP/cat': 61.5, 'proposals/recall_0.5': 0.99}
    """
    figures = {name: metrics[name] for name in _FIGURES if name in metrics}
    return {re.sub(r"[^\w/.:\- ]", "_", name): value for name, value in _numbers(figures)}


def _numbers(values: dict, prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yield the numbers of nested dicts with their names; lists, texts and None are left out."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)):
            yield prefix + name, value
