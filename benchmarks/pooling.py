"""Pooling of 2000 windows of one image's map, against torch, torchvision and writing the output alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch.nn import functional
from torchvision.ops import roi_align, roi_pool

from benchmarks.common import Bench, Row, at_least, at_most, best, maps_of, milliseconds, size_of, threads
from sppdet.ops.averaging import average_pool
from sppdet.ops.pooling import pyramid_pool, pyramid_pool_torch

LEVELS = (6, 3, 2, 1)


def run(bench: Bench) -> list[Row]:
    """Run the benchmark."""
    torch.set_num_threads(bench.cores)
    inputs, image, boxes = bench.image
    features = inputs.pooled_features
    conv_map = maps_of(inputs, features, image)[0]
    windows = features.windows(boxes, size_of(image), [conv_map])
    cells = windows.cells[windows.group]
    rows = []
    for channels in (256, 512):
        rows += compare(np.ascontiguousarray(conv_map[:, :, :channels]), cells)
    edges = replace(features, kind="align").windows(boxes, size_of(image), [conv_map]).cells
    return rows + compare_averages(conv_map, cells, edges)


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


def compare_averages(conv_map: np.ndarray, cells: np.ndarray, edges: np.ndarray) -> list[Row]:
    """Compare average and align, on whole ``cells`` and on ``edges`` between them, with the maximum and torchvision."""
    channels_first, rois = torch.from_numpy(conv_map).permute(2, 0, 1)[None].contiguous(), [torch.from_numpy(edges)]
    out = pyramid_pool(conv_map, cells, LEVELS)

    def roi_aligns() -> list[torch.Tensor]:
        return [roi_align(channels_first, rois, n, sampling_ratio=-1, aligned=True).flatten(2) for n in LEVELS]

    def align() -> np.ndarray:
        return average_pool(conv_map, edges, LEVELS, 0, out)

    np.testing.assert_allclose(align().transpose(0, 2, 1), torch.cat(roi_aligns(), dim=2), atol=1e-4 * conv_map.max())
    slow = best(2, roi=roi_aligns)["roi"]
    fast = best(
        20,
        pool=lambda: pyramid_pool(conv_map, cells, LEVELS, out),
        average=lambda: average_pool(conv_map, cells, LEVELS, None, out),
        align=align,
    )
    height, width, channels = conv_map.shape
    name = f"{channels} x {height} x {width}"
    return [
        milliseconds(f"{name}: kind average", fast["average"], fast["pool"], "pooling"),
        milliseconds(f"{name}: kind align", fast["align"], fast["pool"], "pooling"),
        at_least(f"{name}: align against one roi_align per level", slow / fast["align"], 10),
    ]
