"""What ``sppdet detect`` prints: lines for people, or one JSON document."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from sppdet.config import DEFAULT_THRESHOLD

if TYPE_CHECKING:  # imported late: --help does not wait for torch
    from sppdet.detection import Detector, Ensemble


def lines_of(entry: dict, target: Path | None) -> str:
    """Return the lines for one image: where it was drawn, and each detection."""
    detections = entry["detections"]
    result = f"{len(detections)} found" if detections else "nothing above the threshold"
    if "nearest" in entry:
        nearest = entry["nearest"]
        value = nearest.get("probability", nearest["score"])
        result += f" (nearest: {nearest['label']} {value:.2f}; --threshold lowers it)"
    lines = [f"{entry['path']}: {result}" + (f" -> {target}" if target else "")]
    for detection in detections:
        corners = " ".join(f"{edge:.0f}" for edge in detection["box"])
        score = f"{detection['score']:.2f}"
        if "probability" in detection:
            lines.append(f"  {detection['label']} {detection['probability']:.2f} {corners} (margin {score})")
        else:
            lines.append(f"  {detection['label']} {score} {corners}")
    return "\n".join(lines)


def document_of(
    entries: list[dict], model: str, detector: Detector | Ensemble, options: argparse.Namespace
) -> dict | list:
    """Return what is printed with ``--json``, from the entries of `sppdet.cli.detect_images.detect_in_image`."""
    if options.form == "transformers":
        return [entry.get("detections", []) for entry in entries]
    if options.form == "megadetector":
        from sppdet.detection import megadetector_document

        unreadable = {"detections": None, "failure": "image access failure"}
        images = [
            {"file": entry["path"]} | ({"detections": entry["detections"]} if "detections" in entry else unreadable)
            for entry in entries
        ]
        return megadetector_document(images, detector.classes, model)
    document = {"model": model, "classes": list(detector.classes), **_limits(detector, options)}
    return document | {"images": entries}


def _limits(detector: Detector | Ensemble, options: argparse.Namespace) -> dict:
    """Return the entries of the JSON document that tell from where on detections are shown."""
    if options.margin is None and not (options.threshold == "auto" and detector.calibrated is not None):
        return {"threshold": DEFAULT_THRESHOLD if options.threshold == "auto" else options.threshold}
    margins = detector.lowest_margins(options.threshold, options.margin).tolist()
    by_class = {name: round(margin, 5) for name, margin in zip(detector.classes, margins)}
    return {"threshold": "auto" if options.margin is None else None, "margins": by_class}
