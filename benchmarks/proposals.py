"""Proposals: pictures a second on one core and on all, and recall against OpenCV's default fast mode."""

from __future__ import annotations

import time

import numpy as np

from benchmarks.common import Bench, Row, at_least
from sppdet.images import read_image
from sppdet.parallel import run as run_all
from sppdet.proposals import SelectiveSearch, best_overlaps

PICTURES = 16


def run(bench: Bench) -> list[Row]:
    made = bench.pipeline(PICTURES)
    ours = made.config.proposals
    images = [read_image(sample.path) for sample in made.train]
    # One worker runs in this process and several in their own, which must have started before the clock does.
    list(run_all(ours, images[: bench.cores], 0, "warm-up"))
    seconds, found = {}, {}
    for name, search, workers in (
        ("one", ours, 1),
        ("all", ours, 0),
        ("default", SelectiveSearch(base_k=150, inc_k=150), 1),
    ):
        start = time.perf_counter()
        found[name] = list(run_all(search, images, workers, name))
        seconds[name] = (time.perf_counter() - start) / PICTURES

    def recall(name: str) -> float:
        overlaps = [best_overlaps(boxes, sample.boxes) for boxes, sample in zip(found[name], made.train)]
        return float((np.concatenate(overlaps) >= 0.5).mean())

    windows = {name: np.mean([len(boxes) for boxes in boxes_of]) for name, boxes_of in found.items()}
    share = seconds["one"] / seconds["default"]
    return [
        Row(f"one core, {windows['one']:.0f} windows a picture", 1 / seconds["one"], "pictures/s"),
        Row(f"{bench.cores} cores", 1 / seconds["all"], "pictures/s"),
        at_least("all cores against one", seconds["one"] / seconds["all"], 0.9 * bench.cores),
        Row(
            f"OpenCV's default fast mode, one core, {windows['default']:.0f} windows",
            1 / seconds["default"],
            "pictures/s",
        ),
        Row("time against that mode's", share, "x", "at most a third", share <= 1 / 3),
        at_least("recall@0.5 less that mode's", recall("one") - recall("default"), 0, "of recall"),
    ]
