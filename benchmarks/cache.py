"""What the store of conv maps takes on disk, how fast it is read, and what it costs in mAP."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks.common import FIVE_SCALES, WINDOWS, Bench, Row, at_least, at_most, best, maps_of
from sppdet.data.images import read_image
from sppdet.data.splits import load_split
from sppdet.detection import load_detector
from sppdet.evaluation.voc import evaluate_voc
from sppdet.features.cached_split import open_split
from sppdet.features.store import Store, compress_map, decompress_map
from sppdet.utils.parallel import parallel_map as run_all

PICTURES = 8
TEST_PICTURES = 200


def run(bench: Bench) -> list[Row]:
    made = bench.inputs(PICTURES, f"regions.scales={list(FIVE_SCALES)}")
    features = made.pooled_features
    maps = [conv_map for s in made.train for conv_map in maps_of(made, features, read_image(s.path))]
    frames = [compress_map(conv_map) for conv_map in maps]
    stored, raw = sum(map(len, frames)), sum(2 * conv_map.size for conv_map in maps)
    vectors = PICTURES * WINDOWS * features.dimension * 2
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder, "maps", {}, ".b2nd")
        names = [str(i) for i in range(len(maps))]
        for name, conv_map in zip(names, maps):
            store.write(name, conv_map)

        def read() -> None:
            for name in names:
                store.read(name)

        def widened() -> None:
            for name in names:
                torch.from_numpy(store.read(name)).float()

        times = best(7, read=read, widened=widened, copy=lambda: [conv_map.copy() for conv_map in maps])
    least = f"{times['widened'] / times['copy']:.1f} x copying the float32 maps"
    rows = [
        Row(f"five scales, {PICTURES} images: on disk", stored / PICTURES / 1e6, "MB an image"),
        at_least("smaller than 2000 window vectors in float16", vectors / stored, 25),
        at_least("smaller than raw float16 maps", raw / stored, 4),
        at_least("read by one core, float16 bytes delivered", raw / times["read"] / 1e9, 1, "GB/s"),
        Row("the same widened to float32, float32 bytes", 2 * raw / times["widened"] / 1e9, "GB/s", floor=least),
    ]
    return rows + ([accuracy(bench)] if bench.model else [])


def accuracy(bench: Bench) -> Row:
    """mAP on the first test images from maps that were stored, against those the network gave."""
    detector = load_detector(bench.model)
    made = bench.inputs(TEST_PICTURES)
    dataset = load_split(made.config, "test", detector.classes, TEST_PICTURES)
    features = detector.features
    split = open_split(dataset, bench.work, detector.search, detector.backbone, features)
    split.fill_proposals(detector.search, 0)

    def detect(i: int):
        image, size = read_image(dataset[i].path), split.size(i)
        maps = features.read(detector.backbone, image)
        kept = [decompress_map(compress_map(conv_map)).astype(np.float32) for conv_map in maps]
        return tuple(detector.detect([m], split.proposals(i), size) for m in (maps, kept))

    plain, stored = zip(*run_all(detect, range(len(dataset)), 0, "detecting", threads=True))
    before, after = (evaluate_voc(dataset, list(found))["mAP"] for found in (plain, stored))
    name = f"mAP of {Path(bench.model).name}, {len(dataset)} test images: {before:.3f} float32, {after:.3f} stored"
    return at_most(name, abs(after - before), 0.1, "points")
