"""Check a GPU: the tests of what runs there, and images per second by stage, in one table.

    python scripts/check_cuda.py                    # meant for 8 minutes; needs torch, torchvision, this folder
    python scripts/check_cuda.py --device cpu       # the same in small, to try the script

Figures are means over runs of one image of 375 x 500 pixels, enlarged to the scales, after a first run. Weights are
random, and so 500 windows of each class are candidates for suppression, the most that there can be. The paper's GPU
took 0.053 s for the conv layers and 0.089 s for the fc layers of its network at one scale (He et al. 2014).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from sppdet.config import DetectionSettings, PoolingSettings, RegionSettings  # noqa: E402
from sppdet.detection.candidates import WindowScores, choose_candidates, move, suppress_and_vote  # noqa: E402
from sppdet.features import PyramidFeatures, WindowFeatures  # noqa: E402
from sppdet.networks import Backbone, Head  # noqa: E402
from sppdet.ops import Products, like, nms_by_class, on_host, vote  # noqa: E402
from sppdet.ops.pooling_torch import pyramid_pool_nested, pyramid_pool_torch  # noqa: E402

ONE, FIVE = (688,), (480, 576, 688, 864, 1200)
WINDOWS, CLASSES, LEVELS = 2000, 20, (6, 3, 2, 1)
DETECTION = DetectionSettings(vote=0.5)
Result = TypeVar("Result")
TESTS = ("ops/test_pooling_torch", "ops/test_suppression_torch", "ops/test_products", "networks/test_fc_head")
# Tests of the device's path in detection and training, which need more packages.
TESTS_OF_ALL = (
    "features/test_window_features", "features/test_pyramid_features", "detection/test_window_detector",
    "training/test_mining", "training/test_bbox_regression", "training/test_finetune",
)  # fmt: skip


def check_pooling(device: str) -> str:
    """Compare pooling on the device with plain torch on the CPU, bit for bit."""
    rng = np.random.default_rng(0)
    feature_map = torch.from_numpy(rng.normal(size=(7, 40, 60)).astype(np.float32))
    corner = np.stack([rng.integers(0, 59, 400), rng.integers(0, 39, 400)], 1)
    far = corner + 1 + (rng.random((400, 2)) * ([60, 40] - corner - 0.01)).astype(np.int64)
    cells = np.concatenate([corner, np.minimum(far, [60, 40])], 1)
    expected = pyramid_pool_torch(feature_map, cells, LEVELS)
    pooled = pyramid_pool_nested(feature_map.to(device), torch.from_numpy(cells), LEVELS)
    return "same bits as on the CPU" if torch.equal(pooled.cpu(), expected) else "DIFFERS FROM THE CPU"


def check_gradient(device: str) -> str:
    """Compare the gradient of pooling on the device with that of plain torch on the CPU."""
    feature_map = torch.randperm(5 * 20 * 30).float().reshape(5, 20, 30)
    cells = np.array([[0, 0, 30, 20], [3, 4, 17, 9], [5, 5, 6, 6]])
    gradients = []
    for pool, leaf in ((pyramid_pool_torch, feature_map.clone()), (None, feature_map.to(device))):
        leaf.requires_grad_()
        pooled = pool(leaf, cells, LEVELS) if pool else pyramid_pool_nested(leaf, torch.from_numpy(cells), LEVELS)
        pooled.sum().backward()
        assert leaf.grad is not None
        gradients.append(leaf.grad.cpu())
    return "same as on the CPU" if torch.allclose(gradients[0], gradients[1]) else "DIFFERS FROM THE CPU"


def check_scores(device: str) -> str:
    """Compare the margins of windows on the device with those of the compiled loops on the CPU."""
    stages = Stages("small", (160,), device, 32, 200, 120)
    maps = stages.features.read(stages.backbone, stages.image)
    windows = stages.features.windows(stages.boxes, stages.size, maps)
    there, _ = stages.features.products(maps, windows, stages.weights)
    compiled = replace(stages.features, device="")
    here, _ = compiled.products([m.float().cpu().contiguous().numpy() for m in maps], windows, stages.weights)
    return (
        f"largest difference from the CPU {np.abs(there - here).max() / np.abs(here).max():.1e} of the largest margin"
    )


def check_suppression(device: str) -> str:
    """Compare the boxes that suppression keeps and moves on the device with those of the compiled loops on the CPU."""
    rng = np.random.default_rng(0)
    corner, size = rng.uniform(0, 400, (5000, 2)), rng.uniform(20, 200, (5000, 2))
    boxes = np.rint(np.concatenate([corner, corner + size], 1)).astype(np.float32)
    scores, labels = rng.integers(0, 900, 5000).astype(np.float32) / 300, rng.integers(0, CLASSES, 5000)
    kept = nms_by_class(boxes, scores, labels, 0.3, 100)
    moved = vote(boxes, scores, labels, kept, 0.5)
    boxes_there, scores_there, labels_there = (torch.from_numpy(one).to(device) for one in (boxes, scores, labels))
    kept_there = nms_by_class(boxes_there, scores_there, labels_there, 0.3, 100)
    if on_host(kept_there).tolist() != kept.tolist():
        return "DIFFERS FROM THE CPU"
    moved_there = vote(boxes_there, scores_there, labels_there, kept_there, 0.5)
    largest = np.abs(on_host(moved_there) - moved).max()
    return f"same boxes as on the CPU, votes within {largest:.1e} pixels"


class Stages:
    """The stages of detection in an image, with random weights.

    Args:
        name: the network.
        scales: pixels of the image's shorter side.
        device: where everything runs.
        units: of fc6 and fc7; 0 leaves them out.
        windows: how many.
        side: pixels of the image's shorter side before it is enlarged.
    """

    def __init__(self, name: str, scales: tuple[int, ...], device: str, units: int, windows: int, side: int):
        rng = np.random.default_rng(0)
        height, width = side, side * 4 // 3
        self.image = rng.integers(0, 256, (height, width, 3), np.uint8)
        corner = rng.random((windows, 2)) * [0.7 * width, 0.7 * height]
        extent = rng.uniform(0.05, 0.3, (windows, 2)) * [width, height]
        self.boxes, self.size = np.concatenate([corner, corner + extent], 1).astype(np.float32), (width, height)
        self.device = device
        self.backbone = Backbone.create(name, "random", device, "auto" if device != "cpu" else "float32")
        levels = (7,) if units else LEVELS  # the level that VGG16's own fc6 reads
        regions = RegionSettings(scales=scales, max_side=2000)
        features: WindowFeatures = PyramidFeatures.create(self.backbone, regions, PoolingSettings(levels=levels))
        if units:
            features = features.under(Head(features.pooled_dimension, units, "fc7").eval())
        self.features = replace(features, device=device)  # on a CPU, too, the path of GPUs
        weights = rng.normal(size=(2, CLASSES, self.features.dimension)).astype(np.float32)
        self.weights = Products(weights[0], np.repeat(weights[1], 4, axis=0))

    def run(self) -> dict[str, float]:
        """Return the seconds of each stage of one image."""
        maps, conv = self._timed(lambda: self.features.read(self.backbone, self.image))
        windows, finding = self._timed(lambda: self.features.windows(self.boxes, self.size, maps))
        products, scoring = self._timed(lambda: self.features.products_on_device(maps, windows, self.weights))
        _, suppressing = self._timed(lambda: self._detect(*products, windows.group))
        return {"conv": conv, "windows": finding, "pool, fc, SVMs": scoring, "boxes, NMS, votes": suppressing}

    def _detect(self, margins: torch.Tensor, shifts: torch.Tensor, group: np.ndarray) -> object:
        """Go from the products of the windows to detections."""
        group = like(group, margins)
        deltas = 0.01 * shifts.reshape(-1, CLASSES, 4)
        scores = [(1.0, WindowScores(margins[group], lambda rows, labels: deltas[group[rows], labels]))]
        candidates = choose_candidates(scores, self.boxes, DETECTION.min_margin, DETECTION.max_candidates)
        moved = move(scores, candidates, self.size, DETECTION)
        assert moved is not None  # the scores have box regression
        return suppress_and_vote(moved, DETECTION, ("",) * CLASSES)

    def _timed(self, stage: Callable[[], Result]) -> tuple[Result, float]:
        begun = time.perf_counter()
        result = stage()
        if self.device != "cpu":
            torch.cuda.synchronize()
        return result, time.perf_counter() - begun


def rows(device: str, seconds: float) -> list[list[str]]:
    """Measure every network for at most ``seconds`` in all."""
    small = device == "cpu"
    cases = [
        ("SqueezeNet, one scale", "squeezenet1_0", ONE, 0),
        ("SqueezeNet, five scales", "squeezenet1_0", FIVE, 0),
        ("VGG16, one scale", "vgg16", ONE, 0),
        ("VGG16, five scales", "vgg16", FIVE, 0),
        ("VGG16 and fc7, one scale", "vgg16", ONE, 4096),
    ]
    if small:
        cases = [("small, one scale", "small", (160,), 0), ("small and fc7, one scale", "small", (160,), 32)]
    table = []
    for title, name, scales, units in cases:
        stages = Stages(name, scales, device, units, 50 if small else WINDOWS, 120 if small else 375)
        stages.run()
        end = time.monotonic() + seconds / len(cases)
        runs: list[dict[str, float]] = []
        while not runs or (time.monotonic() < end and len(runs) < 50):
            runs.append(stages.run())
        means = {stage: sum(run[stage] for run in runs) / len(runs) for stage in runs[0]}
        total = sum(means.values())
        cells = [f"{means[stage]:.4f}" for stage in means]
        table.append([title, *cells, f"{total:.4f}", f"{1 / total:.1f}", str(len(runs))])
    return table


def run_tests(device: str, tests: tuple[str, ...], *options: str, needs: tuple[str, ...] = ()) -> str:
    """Run tests, those of the device's path on ``device``; return the last line of what pytest says."""
    if missing := [package for package in needs if not find_spec(package)]:
        return f"left out, without {', '.join(missing)}"
    files = [f"tests/{name}.py" for name in tests]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options, *files]
    environment = os.environ | {"SPPDET_TEST_DEVICE": device}
    try:
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=150, env=environment)
    except subprocess.TimeoutExpired:
        return "not finished after 150 s"
    return (result.stdout.strip() or result.stderr.strip()).splitlines()[-1]


def main() -> None:
    """Run the checks and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=120, help="time for the figures (default: 120)")
    parser.add_argument("--no-tests", action="store_true", help="leave out pytest")
    options = parser.parse_args()
    if options.device != "cpu" and not torch.cuda.is_available():
        raise SystemExit("error: --device: this machine has no usable CUDA; --device cpu tries the script")
    name = "CPU" if options.device == "cpu" else torch.cuda.get_device_name()
    print(f"{name}; torch {torch.__version__}; {WINDOWS} windows, {CLASSES} classes; seconds per image")
    checks = {
        "pooling": check_pooling, "gradient of pooling": check_gradient, "scores": check_scores,
        "suppression": check_suppression,
    }  # fmt: skip
    for title, check in checks.items():
        print(f"{title}: {check(options.device)}", flush=True)
    if not options.no_tests:
        print(f"tests: {run_tests(options.device, TESTS, '--noconftest')}", flush=True)
        result = run_tests(options.device, TESTS_OF_ALL, "-k", "device", needs=("blosc2", "sklearn", "yaml"))
        print(f"tests of detection and training: {result}", flush=True)
    header = ["network", "conv", "windows", "pool, fc, SVMs", "boxes, NMS, votes", "all", "images/s", "images"]
    lines = [header, ["---"] * len(header), *rows(options.device, options.seconds)]
    lines.append(["paper, fastest network", "0.053", "-", "0.089", "-", "0.142", "7.0", "-"])
    print("\n".join(f"| {' | '.join(line)} |" for line in lines))


if __name__ == "__main__":
    main()
