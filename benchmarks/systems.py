"""Features of 2000 windows of one image: SPP at one scale and at five, against R-CNN's 2000 warped crops."""

from __future__ import annotations

import time

import numpy as np
import torch

from benchmarks.common import FIVE_SCALES, Bench, Row, at_least, best, maps_of, pyramid_of, size_of
from sppdet.features.crop_features import CropFeatures
from sppdet.features.pyramid_features import PyramidFeatures
from sppdet.features.warp import Crop
from sppdet.training.stage_inputs import StageInputs


def run(bench: Bench) -> list[Row]:
    """Run the benchmark."""
    torch.set_num_threads(bench.cores)
    inputs, image, boxes = bench.image
    one, five = pyramid_of(inputs), pyramid_of(bench.inputs(8, f"regions.scales={list(FIVE_SCALES)}"))
    times = best(3, one=lambda: spp(inputs, one, image, boxes), five=lambda: spp(inputs, five, image, boxes))
    crops = CropFeatures(channels=inputs.backbone.channels, crop=Crop(), levels=(6,))
    crops.read(inputs.backbone, image, boxes[:64])
    start = time.perf_counter()
    crops.read(inputs.backbone, image, boxes)
    rcnn = time.perf_counter() - start
    pixels = len(boxes) * crops.crop.size**2
    bounds = {name: pixels / area(features, image) for name, features in (("one", one), ("five", five))}
    return [
        Row("R-CNN: 2000 crops of 227 x 227", rcnn, "s"),
        Row("SPP, one scale", times["one"], "s"),
        Row("SPP, five scales", times["five"], "s"),
        at_least("one scale against R-CNN", rcnn / times["one"], 120, floor=f"by area alone {bounds['one']:.0f} x"),
        at_least("five scales against R-CNN", rcnn / times["five"], 22, floor=f"by area alone {bounds['five']:.0f} x"),
    ]


def spp(inputs: StageInputs, features: PyramidFeatures, image: np.ndarray, boxes: np.ndarray) -> None:
    """Compute the feature maps and the pooled vectors of all windows, one block at a time."""
    maps = maps_of(inputs, features, image)
    windows, maps = features.windows(boxes, size_of(image), maps), features.halved(maps)
    for rows in features.blocks(windows):
        features.block(maps, windows, rows)


def area(features: PyramidFeatures, image: np.ndarray) -> float:
    """Return the number of pixels that the network reads."""
    width, height = size_of(image)
    return sum(width * height * factor**2 for factor in features.factors(width, height))
