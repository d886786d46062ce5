"""Features of 2000 windows of one picture: SPP at one scale and at five against R-CNN's 2000 warped crops."""

from __future__ import annotations

import time

import cv2
import numpy as np
import torch

from benchmarks.common import FIVE_SCALES, Bench, Row, at_least, best, maps_of, size_of
from sppdet.backbone import MEAN, STD, Backbone

CROP = 227
BATCH = 32


def run(bench: Bench) -> list[Row]:
    torch.set_num_threads(bench.cores)
    made, image, boxes = bench.picture
    five = bench.pipeline(8, f"regions.scales={list(FIVE_SCALES)}").pooled_features
    times = best(
        3, one=lambda: spp(made, made.pooled_features, image, boxes), five=lambda: spp(made, five, image, boxes)
    )
    warp(made.backbone, image, boxes[:BATCH])
    start = time.perf_counter()
    for first in range(0, len(boxes), BATCH):
        warp(made.backbone, image, boxes[first : first + BATCH])
    crops = time.perf_counter() - start
    bounds = {
        name: len(boxes) * CROP**2 / area(five if name == "five" else made.pooled_features, image) for name in times
    }
    return [
        Row("R-CNN: 2000 crops of 227 x 227", crops, "s"),
        Row("SPP, one scale", times["one"], "s"),
        Row("SPP, five scales", times["five"], "s"),
        at_least("one scale against R-CNN", crops / times["one"], 120, floor=f"by area alone {bounds['one']:.0f} x"),
        at_least("five scales against R-CNN", crops / times["five"], 22, floor=f"by area alone {bounds['five']:.0f} x"),
    ]


def spp(made, features, image: np.ndarray, boxes: np.ndarray) -> None:
    """Conv maps and the pooled vectors of all windows, a block at a time."""
    maps = maps_of(made, features, image)
    for _ in features.blocks(maps, features.windows(boxes, size_of(image), maps)):
        pass


def area(features, image: np.ndarray) -> float:
    """Pixels that the network sees."""
    width, height = size_of(image)
    return sum(width * height * factor**2 for factor in features.factors(width, height))


def warp(backbone: Backbone, image: np.ndarray, boxes: np.ndarray) -> torch.Tensor:
    """R-CNN's features: each window warped to 227 x 227, all in one batch through the same layers."""
    crops = np.empty((len(boxes), CROP, CROP, 3), np.float32)
    for crop, (x1, y1, x2, y2) in zip(crops, boxes.astype(int)):
        crop[:] = cv2.resize(image[y1:y2, x1:x2], (CROP, CROP))
    crops *= 1 / 255 / STD
    crops -= MEAN / STD
    x = torch.from_numpy(crops).permute(0, 3, 1, 2)  # channels last, as the trunk has them
    return torch.nn.functional.adaptive_max_pool2d(backbone._run(x).float(), 6)
