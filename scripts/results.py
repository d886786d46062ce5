"""Print the figures of a run as Markdown tables: ``python scripts/results.py RUN``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from sppdet.config.settings import STAGES
from sppdet.proposals.recall import recall_line


def tables(metrics: dict) -> str:
    """Format the content of a metrics.json (`sppdet.evaluation.evaluate_run`) as Markdown."""
    without, proposals = metrics["without_bbox"], metrics["proposals"]
    lines = [
        f"{metrics['pictures']} test images; {proposals['windows']:.0f} proposals per image, {recall_line(proposals)}",
        "",
        "| | 11-point mAP | area mAP |",
        "|---|---|---|",
        f"| SVMs | {without['mAP']:.1f} | {without['mAP_area']:.1f} |",
        f"| SVMs + box regression | {metrics['mAP']:.1f} | {metrics['mAP_area']:.1f} |",
        "",
        "| stage | seconds | peak memory, MB | disk, MB |",
        "|---|---|---|---|",
    ]
    costs = metrics["stages"]
    for stage in [name for name in STAGES if name in costs]:
        cost = costs[stage]
        disk = f"{cost['disk_mb']:.0f}" if "disk_mb" in cost else ""
        lines.append(f"| {stage} | {cost['seconds']:.0f} | {cost['peak_memory_mb']} | {disk} |")
    lines.append(f"| all | {sum(cost['seconds'] for cost in costs.values()):.0f} | | |")
    by_class = ", ".join(f"{name} {value:.1f}" for name, value in metrics["AP"].items() if value is not None)
    return "\n".join([*lines, "", f"AP by class: {by_class}"])


def main(arguments: list[str] | None = None) -> int:
    """Run the script and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of a run, such as runs/demo")
    path = parser.parse_args(arguments).run / "metrics.json"
    if not path.is_file():
        print(f"error: {path}: does not exist; python -m sppdet.evaluate RUN writes it", file=sys.stderr)
        return 2
    print(tables(json.loads(path.read_text())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
