"""The store of feature maps: its size on disk, its speed, and what it costs in mAP."""

from __future__ import annotations

import tempfile
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.common import (
    FIVE_SCALES,
    WINDOWS,
    Bench,
    Row,
    at_least,
    at_most,
    best,
    float_maps_of,
    maps_of,
    milliseconds,
    pyramid_of,
)
from sppdet.data.images import read_image
from sppdet.data.splits import load_split
from sppdet.detection.detections import Detections
from sppdet.detection.saved_model import load_detector
from sppdet.evaluation.voc import evaluate_voc
from sppdet.features.feature_split import open_split
from sppdet.features.pyramid_features import FeatureMap, PyramidFeatures
from sppdet.features.store import Store, compress_codes, compress_map, decompress_codes, decompress_map
from sppdet.ops.coded_maps import CodedMap, round_map
from sppdet.utils.errors import SppdetError
from sppdet.utils.parallel import parallel_map

IMAGES, CODED_IMAGES = 8, 100
TEST_IMAGES = 200


def run(bench: Bench) -> list[Row]:
    """Run the benchmark."""
    inputs = bench.inputs(IMAGES, f"regions.scales={list(FIVE_SCALES)}")
    features = pyramid_of(inputs)
    images = [read_image(sample.path) for sample in inputs.train]
    maps = [conv_map for image in images for conv_map in float_maps_of(inputs, features, image)]
    frames = [compress_map(conv_map) for conv_map in maps]
    stored, raw = sum(map(len, frames)), sum(2 * conv_map.size for conv_map in maps)
    vectors = IMAGES * WINDOWS * features.dimension * 2
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder, "maps", {}, ".b2nd")
        names = [str(i) for i in range(len(maps))]
        for name, conv_map in zip(names, maps):
            store.write(name, conv_map)

        def read() -> None:
            for name in names:
                store.read(name)

        def read_as_float32() -> None:
            for name in names:
                torch.from_numpy(store.read(name)).float()

        times = best(7, read=read, float32=read_as_float32, copy=lambda: [conv_map.copy() for conv_map in maps])
    least = f"{times['float32'] / times['copy']:.1f} x copying the float32 maps"
    quick = bench.inputs(CODED_IMAGES, "backbone.weights=imagenet", name="voc07_quick")
    images = [read_image(sample.path) for sample in quick.train]
    rounded = [coded_map for image in images for coded_map in maps_of(quick, pyramid_of(quick), image)]
    codes = [coded_map for coded_map in rounded if isinstance(coded_map, CodedMap)]
    code_frames = [compress_codes(coded_map) for coded_map in codes]
    code_bytes, numbers = sum(map(len, code_frames)), sum(coded_map.codes.size for coded_map in codes)
    coded = best(
        7,
        read=lambda: [decompress_codes(frame) for frame in code_frames],
        checksum=lambda: [zlib.crc32(frame) for frame in code_frames],
    )
    rows = [
        Row(f"five scales, {IMAGES} images: on disk", stored / IMAGES / 1e6, "MB per image"),
        at_least("smaller than 2000 window vectors in float16", vectors / stored, 25),
        at_least("smaller than raw float16 maps", raw / stored, 4),
        at_least("read by one core, bytes in float16", raw / times["read"] / 1e9, 1, "GB/s"),
        Row("read and converted to float32, bytes in float32", 2 * raw / times["float32"] / 1e9, "GB/s", floor=least),
        at_most(f"`quick`, {CODED_IMAGES} images: on disk", code_bytes / CODED_IMAGES / 1e6, 0.8, "MB per image"),
        Row("smaller than raw float16 maps", 2 * numbers / code_bytes, "x"),
        at_least("codes read by one core, bytes in float16", 2 * numbers / coded["read"] / 1e9, 1, "GB/s"),
        milliseconds("codes: the checksums", coded["checksum"], coded["read"], "reading them"),
    ]
    return rows + ([accuracy(bench, bench.model)] if bench.model else [])


def accuracy(bench: Bench, model: str) -> Row:
    """Compare mAP on the first test images from stored maps with that from the network's own maps in float32."""
    detector = load_detector(model)
    if not isinstance(detector.features, PyramidFeatures):
        raise SppdetError(f"{model}: its windows are crops, and no maps are stored; give a model that pools maps")
    dataset = load_split(bench.inputs(TEST_IMAGES).config, "test", detector.classes, TEST_IMAGES)
    features = detector.features
    split = open_split(dataset, bench.work, detector.search, detector.backbone, features)
    split.fill_proposals(detector.search, 0)
    of_network = replace(features, map_type="float16")

    def stored(conv_map: FeatureMap) -> FeatureMap:
        assert isinstance(conv_map, np.ndarray)
        if features.coded:
            return round_map(conv_map, features.map_type)
        return decompress_map(compress_map(conv_map)).astype(np.float32)

    def detect(i: int) -> tuple[Detections, ...]:
        image, size = read_image(dataset[i].path), split.size(i)
        maps = of_network.read(detector.backbone, image)
        of_store = [stored(conv_map) for conv_map in maps]
        return tuple(detector.detect([m], split.proposals(i), size) for m in (maps, of_store))

    plain, from_store = zip(*parallel_map(detect, range(len(dataset)), 0, "detecting", threads=True))
    before, after = (evaluate_voc(dataset, list(detections))["mAP"] for detections in (plain, from_store))
    name = f"mAP of {Path(model).name}, {len(dataset)} test images: {before:.3f} float32, {after:.3f} stored"
    return at_most(f"{name}: lost", before - after, 0.1, "points")
