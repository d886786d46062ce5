"""Detection in one image and in many: time after the proposals, latency, images per second, memory."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from functools import partial

import numpy as np
import torch

from benchmarks.common import (
    Bench,
    Row,
    at_least,
    at_most,
    best,
    map_split_of,
    maps_of,
    pyramid_of,
    random_svms,
    sample,
    size_of,
)
from sppdet.data.images import read_image
from sppdet.detection.detector import Detector
from sppdet.detection.linear_layers import BoxRegressors
from sppdet.features.window_features import WindowFeatures
from sppdet.networks.fc_head import Head
from sppdet.proposals.search import SelectiveSearch
from sppdet.training.stage_inputs import StageInputs
from sppdet.utils.meter import Meter
from sppdet.utils.parallel import parallel_map

CLASSES = 20
FAST = SelectiveSearch(engine="opencv")
MANY = (16, 48)


def run(bench: Bench) -> list[Row]:
    """Run the benchmark."""
    torch.set_num_threads(bench.cores)
    inputs, image, boxes = bench.image
    features = pyramid_of(inputs)
    plain = detector_of(inputs, features)
    torch.manual_seed(0)
    head = Head(features.pooled_dimension, 4096, "fc7").eval()
    head.use_bfloat16 = inputs.backbone.bfloat16_on_cpu
    with_fc7 = detector_of(inputs, features.under(head))
    size = size_of(image)

    def detect(model: Detector) -> None:
        model.detect([maps_of(inputs, features, image)], boxes, size)

    times = best(
        3, proposals=lambda: FAST(image), backbone=lambda: maps_of(inputs, features, image),
        pool5=lambda: detect(plain), fc7=lambda: detect(with_fc7), predict=lambda: plain.predict(image),
    )  # fmt: skip
    limits = bench.limits()
    rate = limits.bfloat16 if plain.features.half else limits.float32
    windows = plain.features.windows(boxes, size, maps_of(inputs, features, image))
    work = 2 * len(windows.cells) * 4096 * (plain.features.dimension + 4096)
    numbers = len(windows.cells) * plain.features.dimension
    exact, rough = plain.window_weights.counts
    bytes_each, columns = (
        (2, 2 * exact + rough) if plain.features.half else (4, exact + rough)
    )  # see sppdet.ops.products
    least = times["backbone"] + bytes_each * numbers / limits.write + 2 * numbers * columns / rate
    rows = [
        Row("proposals, OpenCV fast 50, 50", times["proposals"], "s"),
        Row("conv map, one scale", times["backbone"], "s"),
        at_most(
            "all but the proposals, SVMs on pool5", times["pool5"] / times["proposals"], 1 / 8, "of their time",
            f"{times['pool5'] / least:.1f} x the map, writing the vectors and the products at the matrix rate",
        ),
        at_most(
            "all but the proposals, SVMs on fc7 of 4096", times["fc7"] / times["proposals"], 1 / 2, "of their time",
            f"{times['fc7'] / (work / rate):.1f} x fc6 and fc7 at the matrix rate, {work / 1e9:.0f} Gop",
        ),
        Row("latency of one image, proposals included", times["predict"], "s"),
    ]  # fmt: skip
    return rows + many(bench, plain) + starting(plain)


def detector_of(inputs: StageInputs, features: WindowFeatures, search: SelectiveSearch = FAST) -> Detector:
    """Return a detector with random SVMs and box regressors that do nothing."""
    vectors = sample(map_split_of(inputs), features)
    shape = (CLASSES, 4, features.pooled_dimension)
    regressors = BoxRegressors(np.zeros(shape, np.float32), np.zeros(shape[:2], np.float32))
    return Detector(
        tuple(map(str, range(CLASSES))), inputs.backbone, features, search,
        random_svms(features, CLASSES, vectors), regressors, inputs.config.detection,
    )  # fmt: skip


def many(bench: Bench, model: Detector) -> list[Row]:
    """Measure images per second on one core and on all, and memory for few images and for three times as many."""
    paths = [sample.path for sample in bench.inputs(MANY[1]).train]

    def all_of(count: int, workers: int) -> Meter:
        with Meter() as meter:
            # As the command sppdet.detect does.
            for _ in parallel_map(
                lambda path: len(model.predict(read_image(path))), paths[:count], workers, "detecting", True
            ):
                pass
        return meter

    one, few, more = all_of(MANY[1], 1), all_of(MANY[0], 0), all_of(MANY[1], 0)
    rate, single = MANY[1] / more.seconds, MANY[1] / one.seconds
    return [
        Row("many images, one core", single, "images/s"),
        Row(f"many images, {bench.cores} cores", rate, "images/s"),
        at_least("all cores against one", rate / single, 0.9 * bench.cores),
        at_most(f"peak memory, {MANY[1]} images against {MANY[0]}", more.peak_memory_mb / few.peak_memory_mb, 1.1),
    ]


def starting(model: Detector) -> list[Row]:
    """Time a new process that prints its help or loads a model, against one that only imports torch."""
    with tempfile.TemporaryDirectory() as folder:
        model.save(folder)
        commands = {
            "torch": ["-c", "import torch"],
            "libraries": ["-c", "import torch, torchvision"],
            "help": ["-m", "sppdet.detect", "--help"],
            "load": ["-c", f"import sppdet; sppdet.load({folder!r}, 'cpu')"],
        }
        start = partial(subprocess.run, check=True, stdout=subprocess.DEVNULL)
        times = best(3, **{name: partial(start, [sys.executable, *rest]) for name, rest in commands.items()})
    return [
        Row("importing torch", times["torch"], "s"),
        Row("importing torch and torchvision", times["libraries"], "s"),
        at_most("sppdet.detect --help against importing torch", times["help"] / times["torch"], 1),
        at_most("loading a model against importing torch", times["load"] / times["torch"], 1),
    ]
