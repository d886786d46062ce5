"""Detection in one image after loading, proposals included: the presets' network beside SqueezeNet."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from benchmarks.common import Bench, Row, at_most, best, size_of
from benchmarks.detect import detector_of
from sppdet import config
from sppdet.data.images import read_image
from sppdet.detection.detector import Detector
from sppdet.proposals.search import SelectiveSearch
from sppdet.training.stage_inputs import StageInputs
from sppdet.utils.compilation import multiplies_bfloat16

_LITE, _SQUEEZENET = "voc07_quick", "voc07_sppnet_squeezenet"
_SCALES = {"one scale": "[688]", "two scales": "[480,864]"}


def run(bench: Bench) -> list[Row]:
    """Run the benchmark."""
    torch.set_num_threads(bench.cores)
    image = read_image(bench.image[0].train[0].path)
    width, height = size_of(image)
    rows = [Row("the image, megapixels", width * height / 1e6, "")]
    weights = f"backbone.weights={bench.weights}"
    # EfficientNet's depthwise convolutions run in float32, so on a CPU that multiplies bfloat16 SqueezeNet gains more.
    precisions = ["float32", *["bfloat16"] * multiplies_bfloat16()]
    for scales, value in _SCALES.items():
        ours = detector(bench, _LITE, f"regions.scales={value}")
        others = {
            f"SqueezeNet in {name}": detector(
                bench, _SQUEEZENET, f"regions.scales={value}", f"backbone.precision={name}", weights
            )
            for name in precisions
        }
        detectors = {"EfficientNet-Lite0": ours, **others}
        times = best(9, **{name: partial(one.predict, image) for name, one in detectors.items()})
        rows += [Row(f"{scales}: {name}", seconds, "s") for name, seconds in times.items()]
        rows += [at_most(f"{scales}: against {name}", times["EfficientNet-Lite0"] / times[name], 1) for name in others]
    return rows


def detector(bench: Bench, name: str, *overrides: str) -> Detector:
    """Return a detector with random SVMs, of the config ``name`` with other settings, without the context."""
    settings = config.load(
        Path(__file__).parents[1] / "configs" / f"{name}.yaml",
        [
            f"data.root={bench.voc_root}", "data.train_split=train", "data.limit_train=1", "data.limit_test=1",
            f"run.cache={bench.work}", f"run.dir={bench.work}/run", "detection.context=0", *overrides,
        ],
    )  # fmt: skip
    inputs, search = StageInputs(settings), SelectiveSearch.of(settings.proposals)
    inputs.split.fill_proposals(search, 0)
    inputs.split.fill_maps(inputs.backbone, 0)
    return detector_of(inputs, inputs.pooled_features, search)
