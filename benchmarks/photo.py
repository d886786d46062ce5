"""Detection in one image after loading, proposals included: the presets beside SqueezeNet at the same scales."""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.common import Bench, Row, at_most, best, pyramid_of, size_of
from benchmarks.detect import detector_of
from sppdet.data.images import read_image
from sppdet.detection.detector import Detector
from sppdet.proposals.search import SelectiveSearch
from sppdet.training.stage_inputs import StageInputs
from sppdet.utils.compilation import multiplies_bfloat16

_PRESETS = {"quick": ("one scale", "[688]"), "default": ("two scales", "[480,864]")}


def run(bench: Bench) -> list[Row]:
    """Run the benchmark."""
    torch.set_num_threads(bench.cores)
    image = read_image(bench.image[0].train[0].path)
    width, height = size_of(image)
    rows = [Row("the image, megapixels", width * height / 1e6, "")]
    # EfficientNet's depthwise convolutions run in float32, so on a CPU that multiplies bfloat16 SqueezeNet gains more.
    precisions = ["float32", *["bfloat16"] * multiplies_bfloat16()]
    for preset, (scales, value) in _PRESETS.items():
        same = f"regions.scales={value}"
        ours = bench.filled(1, same, "backbone.weights=imagenet", name=f"voc07_{preset}")
        others = {f"SqueezeNet in {name}": bench.filled(1, same, f"backbone.precision={name}") for name in precisions}
        detectors = {name: detector(inputs) for name, inputs in {preset: ours, **others}.items()}
        times = best(9, **{name: partial(one.predict, image) for name, one in detectors.items()})
        rows += [Row(f"{scales}: {name}", seconds, "s") for name, seconds in times.items()]
        rows += [at_most(f"{scales}: {preset} against {name}", times[preset] / times[name], 1) for name in others]
    return rows


def detector(inputs: StageInputs) -> Detector:
    """Return a detector with random SVMs that searches as its config says."""
    return detector_of(inputs, pyramid_of(inputs), SelectiveSearch.of(inputs.config.proposals))
