"""Pooling of 2000 windows of one image's map, against torch, torchvision and writing the output alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch.nn import functional
from torchvision.ops import roi_pool

from benchmarks.common import (
    Bench,
    Row,
    at_least,
    at_most,
    best,
    float_maps_of,
    milliseconds,
    pyramid_of,
    size_of,
    threads,
)
from sppdet.ops.pooling import pyramid_pool
from sppdet.ops.pooling_torch import pyramid_pool_torch
from sppdet.ops.roi_align import pyramid_roi_align

LEVELS = (6, 3, 2, 1)


def run(bench: Bench) -> list[Row]:
    """Run the benchmark."""
    torch.set_num_threads(bench.cores)
    inputs, image, boxes = bench.image
    features = pyramid_of(inputs)
    conv_map = float_maps_of(inputs, features, image)[0]
    windows = features.windows(boxes, size_of(image), [conv_map])
    cells = windows.cells[windows.group]
    rows = []
    for channels in (256, 512):
        rows += compare(np.ascontiguousarray(conv_map[:, :, :channels]), cells)
    edges = replace(features, kind="align").windows(boxes, size_of(image), [conv_map]).cells
    return rows + time_align(conv_map, cells, edges)


def compare(conv_map: np.ndarray, cells: np.ndarray) -> list[Row]:
    """Compare maximum pooling on one map ``(H, W, C)``; ``cells`` ``(N, 4)`` are the windows."""
    channels_first = torch.from_numpy(conv_map).permute(2, 0, 1).contiguous()
    rois = torch.from_numpy(np.column_stack([np.zeros(len(cells)), cells - [0, 0, 1, 1]]).astype(np.float32))
    out = pyramid_pool(conv_map, cells, LEVELS)
    assert np.array_equal(out, pyramid_pool_torch(channels_first, cells, LEVELS).numpy())

    def loop() -> None:
        for x1, y1, x2, y2 in cells.tolist():
            for n in LEVELS:
                functional.adaptive_max_pool2d(channels_first[:, y1:y2, x1:x2], n)

    def roi_pools() -> None:
        for n in LEVELS:
            roi_pool(channels_first[None], rois, (n, n))

    def pool() -> None:
        pyramid_pool(conv_map, cells, LEVELS, out=out)

    # Windows whose bins hold one cell: pooling cannot read less of the map.
    height, width, channels = conv_map.shape
    corners = np.random.default_rng(0).integers(0, [width - 6, height - 6], (len(cells), 2))
    least = np.concatenate([corners, corners + 6], axis=1)

    slow = best(2, loop=loop, roi=roi_pools)
    fast = best(
        40, pool=pool, write=lambda: torch.from_numpy(out).fill_(0),
        least=lambda: pyramid_pool(conv_map, least, LEVELS, out=out),
    )  # fmt: skip
    with threads(1):
        one = best(15, pool=pool)["pool"]
    name = f"{channels} x {height} x {width}"
    return [
        milliseconds(f"{name}: pooling", fast["pool"], fast["write"], f"writing the output, {out.nbytes / 1e6:.0f} MB"),
        milliseconds(f"{name}: pooling on one core", one),
        at_least(f"{name}: against a loop of adaptive_max_pool2d", slow["loop"] / fast["pool"], 60),
        at_least(f"{name}: against one roi_pool per level", slow["roi"] / fast["pool"], 35),
        at_most(f"{name}: against writing the output", fast["pool"] / fast["write"], 2),
        Row(
            f"{name}: pooling windows of 6 x 6 cells, one per bin, against writing the output",
            fast["least"] / fast["write"],
            "x",
        ),
    ]


def time_align(conv_map: np.ndarray, cells: np.ndarray, edges: np.ndarray) -> list[Row]:
    """Time ``align`` on window ``edges`` beside the maximum of whole ``cells``."""
    channels_first = torch.from_numpy(conv_map).permute(2, 0, 1)
    out = pyramid_pool(conv_map, cells, LEVELS)
    pool = best(20, pool=lambda: pyramid_pool(conv_map, cells, LEVELS, out))["pool"]
    align = best(2, align=lambda: pyramid_roi_align(channels_first, edges, LEVELS))["align"]
    height, width, channels = conv_map.shape
    return [milliseconds(f"{channels} x {height} x {width}: kind align", align, pool, "pooling")]
