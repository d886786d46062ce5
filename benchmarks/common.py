"""Shared by the benchmarks: images and features to work on, timing side by side, and the limits of the machine."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
import torch

from sppdet import config
from sppdet.data.images import read_image
from sppdet.detection.linear_layers import LinearSVMs
from sppdet.features.feature_split import MapSplit
from sppdet.features.pyramid_features import FeatureMap, PyramidFeatures
from sppdet.features.window_features import WindowFeatures
from sppdet.proposals.search import SelectiveSearch
from sppdet.training.stage_inputs import StageInputs
from sppdet.utils.files import fingerprint
from sppdet.utils.parallel import worker_count

FIVE_SCALES = (480, 576, 688, 864, 1200)  # the paper's
WINDOWS = 2000


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        what: what was measured.
        value: the figure, in ``unit``.
        target: the project's target, if any, as text.
        met: whether the target is met.
        floor: how many times the time of the least possible work it took, and what that work is; empty without a floor.
    """

    what: str
    value: float
    unit: str
    target: str = ""
    met: bool | None = None
    floor: str = ""


def at_least(what: str, value: float, target: float, unit: str = "x", floor: str = "") -> Row:
    """Make a row whose target is a lower limit."""
    return Row(what, value, unit, f"at least {target:g} {unit}", value >= target, floor)


def at_most(what: str, value: float, target: float, unit: str = "x", floor: str = "") -> Row:
    """Make a row whose target is an upper limit."""
    return Row(what, value, unit, f"at most {target:g} {unit}", value <= target, floor)


def milliseconds(what: str, seconds: float, floor: float = 0.0, least: str = "") -> Row:
    """Make a row of a time in seconds; ``floor`` is the time in seconds of the least possible work, ``least``."""
    return Row(what, seconds * 1e3, "ms", floor=f"{seconds / floor:.1f} x {least}" if floor else "")


def best(repeats: int = 15, **functions: Callable[[], object]) -> dict[str, float]:
    """Return the shortest time of each function in seconds.

    The functions run in turns, so that other work of the machine slows all of them alike.
    """
    for function in functions.values():
        function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    gc.collect()
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    return {name: min(seconds) for name, seconds in times.items()}


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Hold torch, what follows its setting, and OpenCV to ``count`` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    cv2.setNumThreads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        cv2.setNumThreads(-1)


@dataclass(frozen=True)
class Limits:
    """Limits of the machine: bytes written and copied (read and written) per second, operations per second."""

    write: float
    copy: float
    float32: float
    bfloat16: float

    @classmethod
    def measure(cls, cores: int) -> Limits:
        """Measure them on ``cores`` cores."""
        a, b = torch.zeros(1 << 26), torch.zeros(1 << 26)  # 256 MB each: larger than every cache
        m, n = torch.randn(2048, 2048), torch.randn(2048, 2048)
        m16, n16 = m.bfloat16(), n.bfloat16()
        with threads(cores):
            times = best(
                5, write=lambda: a.fill_(1), copy=lambda: b.copy_(a), float32=lambda: m @ n, bfloat16=lambda: m16 @ n16
            )
        size, work = a.numel() * 4, 2 * 2048**3
        return cls(size / times["write"], 2 * size / times["copy"], work / times["float32"], work / times["bfloat16"])

    def __str__(self) -> str:
        return (
            f"{self.write / 1e9:.0f} GB/s written, {self.copy / 1e9:.0f} GB/s copied, "
            f"{self.float32 / 1e9:.0f} Gop/s float32, {self.bfloat16 / 1e9:.0f} Gop/s bfloat16"
        )


class Bench:
    """Images, weights and settings of all benchmarks.

    Args:
        voc_root: a folder in VOC's layout; if it does not exist, the drawn `shapes` are used.
        weights: file of SqueezeNet 1.0's weights; if it does not exist, random weights are used.
        work: folder of the benchmarks' own cache.
        cache: a filled cache of the same settings, which is only read, for benchmarks of thousands of images.
        model: the folder of a trained run.
        images: number of test images on which proposals are compared.
    """

    def __init__(
        self, voc_root: str, weights: str, work: str, cache: str | None = None, model: str | None = None,
        images: int = 64,
    ) -> None:  # fmt: skip
        self.real = Path(voc_root).is_dir()
        self.voc_root = voc_root if self.real else "shapes"
        self.weights = weights if Path(weights).is_file() else "random"
        self.work, self.cache, self.model, self.images = work, cache, model, images

    def data(self) -> str:
        """Describe images and weights."""
        images = "VOC2007 images" if self.real else "drawn `shapes` images (no VOC folder was given)"
        weights = "random weights (none were given)" if self.weights == "random" else "ImageNet weights"
        return f"{images}, SqueezeNet 1.0 with {weights} in {self.precision}"

    @property
    def cores(self) -> int:
        """Number of cores."""
        return worker_count(0)

    @property
    def precision(self) -> str:
        """Precision of the network: float32 or bfloat16."""
        return self.inputs(1).backbone.precision

    def limits(self, cores: int | None = None) -> Limits:
        """Measure the limits of all cores, or of some."""
        return Limits.measure(cores or self.cores)

    def inputs(
        self, images: int, *overrides: str, cache: str | None = None, name: str = "voc07_sppnet_squeezenet"
    ) -> StageInputs:
        """Return the inputs of a run of the config ``name`` on the first ``images`` training images.

        At one scale and without image context, unless overridden.
        """
        settings = config.load(
            Path(__file__).parents[1] / "configs" / f"{name}.yaml",
            [
                f"data.root={self.voc_root}", f"backbone.weights={self.weights}", f"data.limit_train={images}",
                f"data.limit_test={images}", f"run.cache={cache or self.work}", f"run.dir={self.work}/run",
                "data.train_split=train", "regions.scales=[688]", "detection.context=0", *overrides,
            ],
        )  # fmt: skip
        run = StageInputs(settings)
        if cache:  # only read: with other settings a new store would be made in it
            maps = run.backbone.settings() | {"max_side": settings.regions.max_side}
            for kind, wanted in (("proposals", SelectiveSearch.of(settings.proposals).settings()), ("maps", maps)):
                if not (Path(cache) / kind / fingerprint(wanted)).is_dir():
                    raise SystemExit(f"{cache}: holds no {kind} of these settings: {wanted}")
        return run

    def filled(self, images: int, *overrides: str, **options: str) -> StageInputs:
        """Return `inputs` with all proposals and maps computed, in the benchmarks' own cache."""
        inputs = self.inputs(images, *overrides, **options)
        inputs.split.fill_proposals(SelectiveSearch.of(inputs.config.proposals), 0)
        inputs.split.fill_maps(inputs.backbone, 0)
        return inputs

    @cached_property
    def image(self) -> tuple[StageInputs, np.ndarray, np.ndarray]:
        """Inputs of eight images, the image with the most proposals, and ``(2000, 4)`` of its proposals."""
        run = self.filled(8)
        i = max(range(len(run.split)), key=lambda i: len(run.split.proposals(i)))
        boxes = run.split.proposals(i)
        boxes = np.random.default_rng(0).permutation(boxes)  # they are ranked, large ones first
        boxes = np.resize(boxes, (WINDOWS, 4)) if len(boxes) < WINDOWS else boxes[:WINDOWS]
        return run, read_image(run.train[i].path), boxes


def size_of(image: np.ndarray) -> tuple[int, int]:
    """Return width and height."""
    return image.shape[1], image.shape[0]


def pyramid_of(run: StageInputs) -> PyramidFeatures:
    """Return the features of a run whose windows are pooled from feature maps."""
    assert isinstance(run.pooled_features, PyramidFeatures)
    return run.pooled_features


def map_split_of(run: StageInputs) -> MapSplit:
    """Return the training images of a run with their feature maps."""
    assert isinstance(run.split, MapSplit)
    return run.split


def maps_of(run: StageInputs, features: PyramidFeatures, image: np.ndarray) -> list[FeatureMap]:
    """Compute the feature maps of an image, one per scale."""
    return features.read(run.backbone, image)


def float_maps_of(run: StageInputs, features: PyramidFeatures, image: np.ndarray) -> list[np.ndarray]:
    """Compute the feature maps of an image where they are not rounded to codes."""
    return [feature_map for feature_map in maps_of(run, features, image) if isinstance(feature_map, np.ndarray)]


def dense_map(height: int = 43, width: int = 58, channels: int = 352) -> np.ndarray:
    """Return a map of both signs, smooth like the output of EfficientNet-Lite2 at scale 688, float32 ``(H, W, C)``."""
    noise = np.random.default_rng(0).normal(size=(height, width, channels)).astype(np.float32)
    # OpenCV filters few channels at a time. Then neighbours are as alike as in real maps: 5 bits per code when stored.
    rounds = [cv2.GaussianBlur(noise[:, :, c : c + 4], (0, 0), 1.6) for c in range(0, channels, 4)]
    return np.ascontiguousarray(np.concatenate(rounds, axis=2))


def random_svms(features: WindowFeatures, classes: int, vectors: np.ndarray) -> LinearSVMs:
    """Return SVMs whose margins on ``vectors`` are spread like those of trained ones: most below -1, a few above 0."""
    weight = np.random.default_rng(0).normal(size=(classes, features.dimension)).astype(np.float32)
    margins = vectors.astype(np.float32) @ weight.T
    weight *= (0.4 / margins.std(axis=0))[:, None]
    return LinearSVMs(weight, (-1.3 - (vectors.astype(np.float32) @ weight.T).mean(axis=0)).astype(np.float32))


def table(rows: list[Row]) -> str:
    """Format rows as a Markdown table."""
    lines = ["| what | measured | target | met | above its floor |", "|---|---|---|---|---|"]
    for row in rows:
        met = {None: "", True: "yes", False: "**no**"}[row.met]
        lines.append(f"| {row.what} | {row.value:.3g} {row.unit} | {row.target} | {met} | {row.floor} |")
    return "\n".join(lines)


def sample(split: MapSplit, features: WindowFeatures, i: int = 0) -> np.ndarray:
    """Return the vectors ``(200, D)`` of 200 random proposals of image ``i``."""
    boxes = np.random.default_rng(0).permutation(split.proposals(i))[:200]
    return features.of_boxes(split.maps(i), boxes, split.size(i))
