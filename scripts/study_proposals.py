"""Measure time and recall of proposals: ``python scripts/study_proposals.py VOC --split train --images 150``.

Prints the tables of ``docs/experiments/proposals.md`` and draws ``docs/experiments/proposals.png``. Seconds are
processor time of one thread, without reading the images.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from sppdet.cli import common as cli
from sppdet.data.dataset import Sample
from sppdet.data.images import read_image
from sppdet.data.voc import read_voc
from sppdet.proposals.native import ALL, NO_COLOUR, RECIPES, Recipe, selective_search
from sppdet.proposals.recall import recall_of_samples
from sppdet.proposals.search import SelectiveSearch, enlarge, shrink
from sppdet.utils.files import atomic_write

WIDTHS = (200, 300, 400, 500)
COUNTS = (100, 200, 500, 1000, 1500, 2000)
BOTH = (ALL, NO_COLOUR)
STUDIED = {
    "lab, 1 k, 1 mix": Recipe(("lab",), 1, (ALL,)),
    "lab, 3 k, 2 mixes": Recipe(("lab",), 3, BOTH),
    "hsv+lab, 1 k, 2 mixes": Recipe(("hsv", "lab"), 1, BOTH),
    "hsv+lab, 2 k, 2 mixes": Recipe(("hsv", "lab"), 2, BOTH),
    "hsv+lab, 3 k, 1 mix": Recipe(("hsv", "lab"), 3, (ALL,)),
    "hsv+lab, 3 k, 2 mixes (fast)": RECIPES["fast"],
    "hsv+lab, 5 k, 2 mixes": RECIPES["balanced"],
    "hsv+lab+rgi, 3 k, 2 mixes": Recipe(("hsv", "lab", "rgi"), 3, BOTH),
    "5 colours, 5 k, 4 mixes (quality)": RECIPES["quality"],
}
MEASURES = {"recall@0.5": "recall@0.5", "recall@0.7": "recall@0.7", "ABO": "average_best_overlap"}


def study(options: argparse.Namespace) -> int:
    """Print the tables and draw the plot."""
    samples = list(read_voc(options.root, options.split))
    samples = samples[:: max(1, len(samples) // options.images)][: options.images]
    images = [read_image(sample.path) for sample in samples]
    print(f"{len(samples)} images of `{options.split}`\n")
    rows = {}
    for name, recipe in STUDIED.items():
        if options.recipes and name not in options.recipes:
            continue
        for width in WIDTHS:
            rows[name, width], _ = measure(partial(native, recipe=recipe, max_side=width), samples, images)
    print_table(["recipe", "longer side"], rows)
    if options.recipes:
        return 0

    proposals: dict[str, list[np.ndarray]] = {}
    by_count: dict[tuple, dict[str, float]] = {}
    fast = partial(native, recipe=RECIPES["fast"], max_side=500)
    for engine, search in (("opencv", SelectiveSearch(engine="opencv")), ("native", fast)):
        by_count[engine, "all"], proposals[engine] = measure(search, samples, images)
    for count in COUNTS:
        for engine, of_images in proposals.items():
            by_count[engine, count] = recall_of_samples([windows[:count] for windows in of_images], samples)
    print_table(["engine", "best"], by_count)
    atomic_write(Path(options.plot), lambda temporary: plot(rows, by_count).save(temporary))
    return 0


def native(image: np.ndarray, recipe: Recipe, max_side: int) -> np.ndarray:
    """Search an image that is shrunk to ``max_side``; returns proposals ``(N, 4)`` in its own pixels."""
    working = shrink(image, max_side)
    defaults = SelectiveSearch()
    proposals = selective_search(working, recipe, defaults.base_k, defaults.inc_k, defaults.sigma)
    return enlarge(proposals, working.shape, image.shape, defaults.min_size)


def measure(
    search: Callable[[np.ndarray], np.ndarray], samples: Sequence[Sample], images: list[np.ndarray]
) -> tuple[dict[str, float], list[np.ndarray]]:
    """Return the recall table of a search with its seconds per image, and the proposals of each image."""
    search(images[0])  # warms up
    start = time.process_time()
    proposals = [search(image) for image in images]
    seconds = (time.process_time() - start) / len(images)
    return recall_of_samples(proposals, samples) | {"seconds": seconds}, proposals


def print_table(names: list[str], rows: dict[tuple, dict[str, float]]) -> None:
    """Print a Markdown table; ``names`` are the heads of the columns of the rows' keys."""
    print("| " + " | ".join([*names, "windows", "seconds", *MEASURES]) + " |")
    print("|---" * (len(names) + 2 + len(MEASURES)) + "|")
    for key, row in rows.items():
        seconds = f"{row['seconds']:.3f}" if "seconds" in row else ""
        cells = [*map(str, key), f"{row['windows']:.0f}", seconds, *(f"{row[name]:.3f}" for name in MEASURES.values())]
        print("| " + " | ".join(cells) + " |")
    print()


def plot(rows: dict[tuple, dict[str, float]], by_count: dict[tuple, dict[str, float]]) -> Image.Image:
    """Draw recall@0.5 and average best overlap against time, and recall against the number of windows."""
    image = Image.new("RGB", (1700, 500), "white")
    draw = ImageDraw.Draw(image)
    quick = [name for name in STUDIED if "quality" not in name]  # quality takes several times as long as the rest
    for left, measure_name in ((70, "recall@0.5"), (640, "average_best_overlap")):
        lines = {
            name: [(rows[name, width]["seconds"] * 1000, rows[name, width][measure_name]) for width in WIDTHS]
            for name in quick
        }
        panel(draw, (left, 30, left + 490, 440), lines, f"ms per image; longer side {WIDTHS}", measure_name)
    lines = {}
    for name in ("recall@0.5", "recall@0.7"):
        for engine in ("opencv", "native"):
            lines[f"{engine} {name}"] = [(count, by_count[engine, count][name]) for count in COUNTS]
    panel(draw, (1200, 30, 1670, 440), lines, "windows per image", "recall")
    return image


def panel(
    draw: ImageDraw.ImageDraw,
    box: tuple[int, int, int, int],
    lines: dict[str, list[tuple[float, float]]],
    x_label: str,
    y_label: str,
) -> None:
    """Draw lines of ``(x, y)`` points in ``box`` (left, top, right, bottom), with axes and a legend."""
    left, top, right, bottom = box
    points = np.array([point for line in lines.values() for point in line])
    least, most = points.min(axis=0) * (0, 1), points.max(axis=0)
    span = (most - least) * 1.05
    colours = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f")

    def pixel(point: Sequence[float] | np.ndarray) -> tuple[float, float]:
        x, y = (np.asarray(point) - least) / span
        return left + x * (right - left), bottom - y * (bottom - top)

    draw.rectangle(box, outline="black")
    for i in range(6):
        value = least + span * i / 5
        x, y = pixel(value)
        draw.text((x, bottom + 5), f"{value[0]:.0f}", "black", anchor="ma")
        draw.text((left - 5, y), f"{value[1]:.2f}", "black", anchor="rm")
    draw.text(((left + right) / 2, bottom + 25), x_label, "black", anchor="ma")
    draw.text((left, top - 5), y_label, "black", anchor="lb")
    for i, (name, line) in enumerate(lines.items()):
        pixels = [pixel(point) for point in line]
        draw.line(pixels, colours[i % len(colours)], 2)
        for x, y in pixels:
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), colours[i % len(colours)])
        draw.text((right - 230, bottom - 15 * (len(lines) - i) - 5), name, colours[i % len(colours)])


def main(arguments: list[str] | None = None) -> int:
    """Run the script and return its exit status."""
    parser = argparse.ArgumentParser(prog="study_proposals.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("root", help="a VOC folder")
    parser.add_argument("--split", default="train")
    parser.add_argument(
        "--images", type=int, default=150, help="number of images, evenly spread over the split; default: %(default)s"
    )
    parser.add_argument(
        "--recipes",
        nargs="+",
        choices=STUDIED,
        metavar="NAME",
        help="only these recipes, without the comparison of engines and the plot",
    )
    parser.add_argument("--plot", default="docs/experiments/proposals.png", metavar="FILE")
    return cli.run(study, parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
