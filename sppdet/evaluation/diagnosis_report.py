"""Text of a diagnosis (`sppdet.evaluation.diagnosis`): tables of errors, costs, and settings to look at."""

from __future__ import annotations

from collections.abc import Sequence

from sppdet.evaluation.diagnosis import KINDS, MISSED, STATES, TOTALS

_ADVICE = {
    "localisation": "bbox.*, detection.vote, proposals with a higher recall@0.7",
    "duplicate": "detection.nms",
    "similar": "better features: another backbone, or end_to_end with features=pool5+fc7",
    "misclassified": "better features; more hard negatives",
    "both": "better features; more hard negatives; bbox.*",
    "background": "svm.max_negatives, svm.hard_per_image, svm.passes; objects that nobody annotated",
    "outranked": "the wrong detections of higher scores: the kinds above this row",
    "undetected": "detection.min_margin, detection.nms, detection.max_per_class, detection.max_candidates",
    "unproposed": "proposals.mode, proposals.min_size, proposals.max_side",
}


def report_text(result: dict) -> str:
    """Format a diagnosis for a terminal: what each kind of error costs, the dearest first, and what to do about it.

    Args:
        result: as `sppdet.evaluation.diagnosis.diagnose` returns it.
    """
    gains = {error: _gain(result["mAP"], row["mAP"]) for error, row in result["errors"].items()}
    lines = [f"{result['pictures']} images, mAP {_number(result['mAP'])} (11-point, IoU 0.5)", ""]
    lines.append(f"{'without':<13} {'mAP gains':>9}  {'share':<19} look at")
    for error in sorted(gains, key=lambda error: -(gains[error] or 0)):
        share = f"{100 * result['errors'][error]['share']:.1f}% of {'detections' if error in KINDS else 'objects'}"
        lines.append(f"{error:<13} {_number(gains[error], '+'):>9}  {share:<19} {_ADVICE[error]}")
    for total, row in result["totals"].items():
        lines.append(f"{total:<15} {_number(_gain(result['mAP'], row['mAP']), '+'):>7}  {TOTALS[total]}")
    meanings = (KINDS | MISSED).items()
    lines += ["", *(f"{error}: {meaning}" for error, meaning in meanings if error in gains)]
    return "\n".join(lines)


def report_markdown(result: dict) -> str:
    """Format a diagnosis as Markdown.

    Args:
        result: as `sppdet.evaluation.diagnosis.diagnose` returns it.
    """
    errors, classes = result["errors"], result["classes"]
    overall = []
    for error, row in errors.items():
        share = f"{100 * row['share']:.1f}% of {'detections' if error in KINDS else 'objects'}"
        gain = _number(_gain(result["mAP"], row["mAP"]), "+")
        overall.append([error, (KINDS | MISSED)[error], share, _number(row["mAP"]), gain, _ADVICE[error]])
    for total, row in result["totals"].items():
        gain = _number(_gain(result["mAP"], row["mAP"]), "+")
        overall.append([total, TOTALS[total], "", _number(row["mAP"]), gain, ""])
    detections = [
        [name, _number(figures["AP"]), *figures["detections"].values(), _top_three(figures["confused_with"])]
        for name, figures in classes.items()
    ]
    objects = [
        [name, sum(figures["objects"].values()), *figures["objects"].values()] for name, figures in classes.items()
    ]
    gains = [
        [name, *(_number(_gain(figures["AP"], value), "+") for value in figures["AP_without"].values())]
        for name, figures in classes.items()
    ]
    kinds = [error for error in errors if error in KINDS]
    return "\n".join(
        [
            f"{result['pictures']} images, mAP {_number(result['mAP'])} (11-point, IoU 0.5). mAP without one kind of "
            "error:",
            "",
            *_table(["error", "meaning", "share", "mAP without it", "gain", "look at"], overall),
            "",
            "Shares are of the detections with the highest scores, as many per class as it has objects, or of those "
            "objects. Difficult objects do not count. Gains do not add up.",
            "",
            *_table(["class", "AP", "correct", *kinds, "most often confused with"], detections),
            "",
            *_table(["class", "objects", *STATES], objects),
            "",
            *_table(["gain in AP without", *errors], gains),
        ]
    )


def _table(head: list[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Return the lines of a Markdown table."""
    return ["| " + " | ".join(map(str, row)) + " |" for row in (head, ["---"] * len(head), *rows)]


def _gain(before: float | None, after: float | None) -> float | None:
    """Return the difference, or None where a class has no AP."""
    return None if before is None or after is None else after - before


def _number(value: float | None, sign: str = "") -> str:
    """Format a figure with one decimal."""
    return "-" if value is None else f"{value:{sign}.1f}"


def _top_three(counts: dict[str, int]) -> str:
    """List the three most frequent classes, which come first in ``counts``."""
    return ", ".join(f"{name} {count}" for name, count in list(counts.items())[:3])
