"""The text of a diagnosis (:mod:`sppdet.evaluation.diagnosis`): tables of what goes wrong, what it costs, and what to look at."""

from __future__ import annotations

from sppdet.evaluation.diagnosis import KINDS, MISSED, STATES

_ADVICE = {
    "localisation": "bbox.*, detection.vote, proposals with a higher recall@0.7",
    "duplicate": "detection.nms",
    "similar": "better features: another backbone, or end_to_end with features=pool5+fc7",
    "other": "better features; more hard negatives",
    "background": "svm.max_negatives, svm.hard_per_image, svm.passes; objects that nobody annotated",
    "outranked": "the detections above: the kinds before this line",
    "undetected": "detection.min_margin, detection.nms, detection.max_per_class, detection.max_candidates",
    "unproposed": "proposals.mode, proposals.min_size, proposals.max_side",
}


def report_markdown(result: dict) -> str:
    """Markdown of what :func:`sppdet.evaluation.diagnosis.diagnose` returns."""
    errors, classes = result["errors"], result["classes"]
    overall = []
    for error, row in errors.items():
        share = f"{100 * row['share']:.1f}% of {'detections' if error in KINDS else 'objects'}"
        gain = _number(_gain(result["mAP"], row["mAP"]), "+")
        overall.append([error, (KINDS | MISSED)[error], share, _number(row["mAP"]), gain, _ADVICE[error]])
    detections = [
        [name, _number(own["AP"]), *own["detections"].values(), _listed(own["confused_with"])]
        for name, own in classes.items()
    ]
    objects = [[name, sum(own["objects"].values()), *own["objects"].values()] for name, own in classes.items()]
    gains = [
        [name, *(_number(_gain(own["AP"], value), "+") for value in own["AP_without"].values())]
        for name, own in classes.items()
    ]
    kinds = [error for error in errors if error in KINDS]
    return "\n".join(
        [
            f"{result['pictures']} images, mAP {_number(result['mAP'])} (11-point, IoU 0.5). What it would be "
            "without one kind of error:",
            "",
            *_rows(["error", "what", "share", "mAP without it", "gain", "look at"], overall),
            "",
            "Shares are of each class's surest detections, as many as it has objects, and of those objects; difficult "
            "ones do not count. Gains do not add up.",
            "",
            *_rows(["class", "AP", "correct", *kinds, "most often confused with"], detections),
            "",
            *_rows(["class", "objects", *STATES], objects),
            "",
            *_rows(["gain in AP without", *errors], gains),
        ]
    )


def _rows(head: list[str], rows: list[list]) -> list[str]:
    return ["| " + " | ".join(map(str, row)) + " |" for row in (head, ["---"] * len(head), *rows)]


def _gain(before: float | None, after: float | None) -> float | None:
    return None if before is None else after - before


def _number(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.1f}"


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in list(counts.items())[:3])
