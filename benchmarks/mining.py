"""A pass of hard-negative mining for 20 classes, against reading, pooling and one GEMM alone; memory of mining."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from benchmarks.common import Bench, Row, at_most, best, dense_map, map_split_of, milliseconds, pyramid_of
from sppdet.detection.linear_layers import LinearSVMs
from sppdet.features.feature_split import MapSplit, map_name
from sppdet.features.pyramid_features import FeatureMap, PyramidFeatures
from sppdet.ops.coded_maps import encode_map
from sppdet.ops.products import Products
from sppdet.training.mining import Miner
from sppdet.training.stage_inputs import StageInputs
from sppdet.utils.execution import Execution
from sppdet.utils.meter import Meter
from sppdet.utils.parallel import parallel_map

IMAGES = 40
MANY = (500, 2500)  # numbers of images whose memory is compared


def run(bench: Bench) -> list[Row]:
    """Run the benchmark."""
    ready = prepare(bench.filled(IMAGES, "svm.random_negatives=600"))
    miner, features, split = ready.miner, ready.features, ready.split
    every_image = list(range(len(split)))
    windows = [features.windows(split.proposals(i), split.size(i), split.maps(i)) for i in every_image]

    weights = Products(ready.svms.weight, half=features.half)

    def least(i: int) -> None:
        features.products(split.maps(i), windows[i], weights)

    def floor() -> None:
        for _ in parallel_map(least, every_image, 0, "floor", threads=True):
            pass

    times = best(5, mine=lambda: miner._mine(np.array(every_image), ready.svms), floor=floor)
    rows = [
        milliseconds(
            "a pass, per image", times["mine"] / IMAGES, times["floor"] / IMAGES, "reading, pooling and one GEMM"
        ),
        at_most("a pass against reading, pooling and one GEMM", times["mine"] / times["floor"], 1.5),
        *stages(bench, ready, windows, every_image[:8]),
        *dense(ready, windows[: len(every_image[:8])]),
    ]
    return rows + memory(bench)


@dataclass(frozen=True, eq=False)
class Ready:
    """The images and features of a run, a miner with its first negatives, and the SVMs fitted to them."""

    split: MapSplit
    features: PyramidFeatures
    miner: Miner
    svms: LinearSVMs


def prepare(inputs: StageInputs) -> Ready:
    """Do the first steps of `Miner.train`."""
    miner = Miner(inputs.split, inputs.features, inputs.labels, inputs.config.svm, inputs.scale, Execution())
    miner.cache = miner._start(np.random.default_rng(3).permutation(len(inputs.split)))
    return Ready(map_split_of(inputs), pyramid_of(inputs), miner, miner._fit(miner.problem))


def stages(bench: Bench, ready: Ready, windows: list, images: list[int]) -> list[Row]:
    """Time the steps of the floor, on one core."""
    split, features = ready.split, ready.features
    maps = [features.halved(split.maps(i)) for i in images]
    torch.set_num_threads(1)
    weights = Products(ready.svms.weight, half=features.half)
    kind = np.int16 if features.half else np.float32  # the bits of bfloat16 numbers, or floats
    vectors = np.zeros((max(len(windows[i].cells) for i in images), features.dimension), kind)

    def pool() -> None:
        for i, image_maps in zip(images, maps):
            for rows in features.blocks(windows[i]):
                features.block(image_maps, windows[i], rows)

    def multiply() -> None:
        for i in images:
            weights(vectors[: len(windows[i].cells)])

    times = best(5, read=lambda: [split.maps(i) for i in images], pool=pool, multiply=multiply)
    limits = bench.limits(1)
    numbers = sum(len(windows[i].cells) for i in images) / len(images) * features.dimension
    columns, rate = (2, limits.bfloat16) if features.half else (1, limits.float32)  # see sppdet.ops.products
    return [
        milliseconds("of that, on one core: reading an image's map", times["read"] / len(images)),
        milliseconds(
            "of that, on one core: pooling", times["pool"] / len(images),
            vectors.itemsize * numbers / limits.write, "writing the vectors",
        ),
        milliseconds(
            "of that, on one core: the products with 20 classes", times["multiply"] / len(images),
            2 * columns * len(ready.svms.weight) * numbers / rate, "the matrix rate",
        ),
    ]  # fmt: skip


def dense(ready: Ready, windows: list) -> list[Row]:
    """Compare pooling and products of a dense map of 352 channels with those of SqueezeNet's, on one core."""
    torch.set_num_threads(1)
    features, split = ready.features, ready.split
    maps = [split.maps(i) for i in range(len(windows))]
    weights = Products(ready.svms.weight, half=features.half)
    float_features = replace(features, channels=352)
    code_features = replace(float_features, map_type="uint8")
    weight = np.random.default_rng(0).normal(size=(20, float_features.dimension)).astype(np.float32)
    dense_weights = Products(weight, half=features.half)
    dense_maps = [dense_map(*np.shape(image_maps[0])[:2]) for image_maps in maps]
    coded_maps = [encode_map(feature_map) for feature_map in dense_maps]

    def multiply(features: PyramidFeatures, maps: Sequence[list[FeatureMap]], weights: Products) -> None:
        for image_maps, image_windows in zip(maps, windows):
            features.products(image_maps, image_windows, weights)

    times = best(
        5, sparse=lambda: multiply(features, maps, weights),
        floats=lambda: multiply(float_features, [[m] for m in dense_maps], dense_weights),
        codes=lambda: multiply(code_features, [[m] for m in coded_maps], dense_weights),
    )  # fmt: skip
    name = "pooling and products of an image, one core"
    return [
        milliseconds(f"{name}: SqueezeNet, 512 channels", times["sparse"] / len(maps)),
        milliseconds(f"{name}: dense map, 352 channels", times["floats"] / len(maps)),
        milliseconds(f"{name}: dense map of codes, 352 channels", times["codes"] / len(maps)),
        at_most("dense map of codes against SqueezeNet", times["codes"] / times["sparse"], 1),
    ]


def memory(bench: Bench) -> list[Row]:
    """Measure the memory of all of mining, fits included, on a few images and on five times as many."""
    sizes = MANY if bench.cache else (IMAGES // 5, IMAGES)
    rows = []
    for images in sizes:
        # A process of its own, with a new interpreter: memory that an earlier one left would count.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            seconds, peak = pool.apply(peak_memory, (bench, images))
        rows.append(Row(f"{images} images: peak memory ({seconds:.0f} s with all fits)", peak, "MB"))
    few, many = (row.value for row in rows)
    if not bench.cache:
        return [*rows, Row("peak memory, many against few; --cache has more images", many / few, "x")]
    return [*rows, at_most(f"peak memory, {sizes[1]} images against {sizes[0]}", many / few, 1.1)]


def peak_memory(bench: Bench, images: int) -> tuple[float, float]:
    """Mine on ``images`` images of the filled cache; returns seconds and peak memory in MB."""
    inputs = bench.inputs(images, cache=bench.cache)
    split = map_split_of(inputs)
    names = [map_name(scale, name) for scale in split.features.scales for name in split.names]
    missing = len(split.proposal_store.missing(split.names)) + len(split.map_store.missing(names))
    if missing:
        raise SystemExit(f"{bench.cache}: {missing} entries of the first {images} images are missing")
    start = time.perf_counter()
    with Meter() as meter:
        Miner(split, inputs.features, inputs.labels, inputs.config.svm, inputs.scale, Execution()).train()
    return time.perf_counter() - start, meter.peak_memory_mb
