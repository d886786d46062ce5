"""Learn from a few labelled images, pre-label others, and count what a person still has to do.

    python scripts/study_label.py BCCD --train train --images 20 --more 100 --work runs/study_label

The objects of the other images stand for the person's corrections. A pre-label of the right class is kept from an IoU
of ``--good`` with its object on, moved from 0.5 on, and otherwise deleted; objects without a pre-label are drawn.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import Literal

import sppdet
from sppdet.cli import common as cli
from sppdet.data import Sample, read_dataset
from sppdet.detection import Detections
from sppdet.ops import boxes as geometry


def corrections(sample: Sample, detections: Detections, good: float) -> Counter[str]:
    """Count what a person does with the pre-labels of an image: keep, move, delete, draw."""
    counts: Counter[str] = Counter()
    free = ~sample.difficult
    for box, label in zip(detections.xyxy, detections.labels):  # the surest first
        overlap = geometry.iou(box[None], sample.boxes)[0] * (free & (sample.labels == label))
        best = int(overlap.argmax()) if len(overlap) else -1
        if best < 0 or overlap[best] < 0.5:
            counts["delete"] += 1
            continue
        free[best] = False
        counts["keep" if overlap[best] >= good else "move"] += 1
    counts["draw"] = int(free.sum())
    return counts


def study(options: argparse.Namespace) -> None:
    """Run the study and print a row of a Markdown table."""
    dataset = read_dataset(options.root, options.train, limit=options.images + options.more)
    few, others = dataset[: options.images], dataset[options.images :]
    detector = sppdet.train_detector(few, options.overrides, preset=options.preset, output=options.work, test=few)
    threshold: float | Literal["auto"] = "auto" if options.threshold == "auto" else float(options.threshold)
    found = ((one, detector.predict(one.read(), threshold=threshold)) for one in others)
    counts = sum((corrections(one, detections, options.good) for one, detections in found), Counter())
    objects = sum(int((~one.difficult).sum()) for one in others)
    todo = counts["move"] + counts["delete"] + counts["draw"]
    print("| labelled | pre-labelled | objects | kept | moved | deleted | drawn | boxes handled | of drawing all |")
    print("|---|---|---|---|---|---|---|---|---|")
    done = " | ".join(str(counts[name]) for name in ("keep", "move", "delete", "draw"))
    print(f"| {len(few)} | {len(others)} | {objects} | {done} | {todo} | {100 * todo / objects:.0f}% |")


def main(arguments: list[str] | None = None) -> int:
    """Run the script and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", metavar="DATA", help="folder of labelled images")
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="settings of the training")
    parser.add_argument("--train", default="train", help="split of the images; default: %(default)s")
    parser.add_argument("--images", type=int, default=20, help="images that are labelled by hand; default: %(default)s")
    parser.add_argument("--more", type=int, default=100, help="images that are pre-labelled; default: %(default)s")
    parser.add_argument("--good", type=float, default=0.75, help="IoU from which on a box stays; default: %(default)s")
    parser.add_argument("--threshold", default="auto", help="lowest probability, or auto; default: %(default)s")
    parser.add_argument("--preset", default="default")
    parser.add_argument("--work", type=Path, default=Path("runs/study_label"))
    return cli.run(study, parser.parse_intermixed_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
