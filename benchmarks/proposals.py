"""Proposals: the native selective search beside OpenCV's in the same mode; images per second on one core and on all."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks.common import Bench, Row, at_least, at_most, threads
from sppdet.data.images import read_image
from sppdet.proposals.recall import recall_of_samples
from sppdet.proposals.search import SelectiveSearch
from sppdet.utils.parallel import parallel_map

OPENCV, NATIVE = SelectiveSearch(engine="opencv"), SelectiveSearch()
DEFAULT = SelectiveSearch(base_k=150, inc_k=150, engine="opencv")  # OpenCV's own fast mode
FEW = 16


def run(bench: Bench) -> list[Row]:
    """Run the benchmark."""
    samples = list(bench.inputs(bench.images).test)
    images = [read_image(sample.path) for sample in samples]
    NATIVE.warm_up()
    with threads(1):
        seconds, proposals = in_turns({"opencv": OPENCV, "native": NATIVE}, images)
        few_seconds, few_proposals = in_turns({"default": DEFAULT, "native": NATIVE}, images[:FEW])
    with threads(bench.cores):
        latency, _ = in_turns({"opencv": OPENCV, "native": NATIVE}, images[:FEW])
    tables = {name: recall_of_samples(boxes, samples) for name, boxes in proposals.items()}
    few_recall = {name: recall_of_samples(boxes, samples[:FEW])["recall@0.5"] for name, boxes in few_proposals.items()}
    count = {name: row["windows"] for name, row in tables.items()}
    rows = [
        Row(f"OpenCV fast(50, 50), one core, {len(images)} test images", seconds["opencv"], "s per image"),
        Row("native, the same mode", seconds["native"], "s per image"),
        at_least("OpenCV's time against native's, one core", seconds["opencv"] / seconds["native"], 5),
        Row(f"native, one image on {bench.cores} cores, {FEW} images", latency["native"], "s per image"),
        at_least(f"OpenCV's time against native's, {bench.cores} cores", latency["opencv"] / latency["native"], 8),
        Row("windows per image, OpenCV", count["opencv"], "windows"),
        Row("windows per image, native", count["native"], "windows"),
        at_most("difference in windows per image", abs(count["native"] / count["opencv"] - 1), 0.1, "of OpenCV's"),
        Row(
            "windows that both find",
            shared(proposals["opencv"], proposals["native"]),
            "of the windows that either finds",
        ),
    ]
    for name in ("recall@0.5", "recall@0.7", "average_best_overlap"):
        rows += [
            Row(f"{name}, OpenCV", tables["opencv"][name], ""),
            at_least(f"{name}, native less OpenCV's", tables["native"][name] - tables["opencv"][name], -0.003, ""),
        ]
    return [
        *rows,
        at_most(
            "native's time against OpenCV's default fast mode", few_seconds["native"] / few_seconds["default"], 1 / 3
        ),
        at_least(
            "recall@0.5, native less that of OpenCV's default fast mode",
            few_recall["native"] - few_recall["default"],
            0,
            "",
        ),
        *throughput(bench, [sample.path for sample in samples[: 20 * FEW]]),
    ]


def shared(some: list[np.ndarray], others: list[np.ndarray]) -> float:
    """Return the share of windows that both of two searches find in the same images."""
    pairs = [(set(map(tuple, a)), set(map(tuple, b))) for a, b in zip(some, others)]
    return sum(len(a & b) for a, b in pairs) / sum(len(a | b) for a, b in pairs)


def in_turns(
    searches: dict[str, Callable[[np.ndarray], np.ndarray]], images: Sequence[np.ndarray]
) -> tuple[dict[str, float], dict[str, list[np.ndarray]]]:
    """Run all searches on each image in turn; returns mean seconds per image and the proposals of each search."""
    seconds = dict.fromkeys(searches, 0.0)
    proposals: dict[str, list[np.ndarray]] = {name: [] for name in searches}
    for image in tqdm(images, desc="proposals", unit=""):
        for name, search in searches.items():
            start = time.perf_counter()
            proposals[name].append(search(image))
            seconds[name] += (time.perf_counter() - start) / len(images)
    return seconds, proposals


def search_file(path: Path) -> int:
    """Count the proposals of an image."""
    return len(NATIVE(read_image(path)))


def search_files(paths: Sequence[Path]) -> int:
    """Count the proposals of several images."""
    return sum(map(search_file, paths))


def throughput(bench: Bench, paths: Sequence[Path]) -> list[Row]:
    """Measure the native search on many files, with one process per core, started before the clock."""
    list(parallel_map(search_file, paths[: bench.cores], 0, "warm-up"))
    rate = {}
    for workers in (1, bench.cores):
        with threads(1):
            start = time.perf_counter()
            list(parallel_map(search_file, paths, workers, f"{workers} workers"))
            rate[workers] = len(paths) / (time.perf_counter() - start)
    start = time.perf_counter()
    list(
        parallel_map(search_files, [paths[first :: bench.cores] for first in range(bench.cores)], 0, "a share per core")
    )
    apart = len(paths) / (time.perf_counter() - start)
    return [
        Row("native, one core", rate[1], "images/s"),
        Row(f"native, {bench.cores} cores", rate[bench.cores], "images/s"),
        at_least("all cores against one", rate[bench.cores] / rate[1], 0.9 * bench.cores),
        Row("all cores against one, each process with a fixed share of the images", apart / rate[1], "x"),
    ]
