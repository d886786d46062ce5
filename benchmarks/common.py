"""What the benchmarks share: images and features to work on, timing side by side, and the machine's own limits."""

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
from sppdet.features.cached_split import FeatureSplit
from sppdet.features.pyramid_features import PyramidFeatures
from sppdet.proposals.search import SelectiveSearch
from sppdet.training.stage_inputs import StageInputs
from sppdet.utils.files import fingerprint
from sppdet.utils.parallel import worker_count

FIVE_SCALES = (480, 576, 688, 864, 1200)  # the paper's
WINDOWS = 2000


@dataclass(frozen=True)
class Row:
    """One line of a table: ``target`` and ``met`` where the project set one, ``floor`` where there is one.

    ``floor`` says how many times the least possible it took, and what that least is.
    """

    what: str
    value: float
    unit: str
    target: str = ""
    met: bool | None = None
    floor: str = ""


def at_least(what: str, value: float, target: float, unit: str = "x", floor: str = "") -> Row:
    return Row(what, value, unit, f"at least {target:g} {unit}", value >= target, floor)


def at_most(what: str, value: float, target: float, unit: str = "x", floor: str = "") -> Row:
    return Row(what, value, unit, f"at most {target:g} {unit}", value <= target, floor)


def milliseconds(what: str, seconds: float, floor: float = 0.0, least: str = "") -> Row:
    """``floor`` in seconds is what ``least`` alone would take."""
    return Row(what, seconds * 1e3, "ms", floor=f"{seconds / floor:.1f} x {least}" if floor else "")


def best(repeats: int = 15, **functions: Callable[[], object]) -> dict[str, float]:
    """The shortest time in seconds of each function; in turns, so that what else the machine does hits all alike."""
    for function in functions.values():
        function()
    times = {name: [] for name in functions}
    gc.collect()
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    return {name: min(found) for name, found in times.items()}


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Torch, what follows its setting, and OpenCV, held to ``count`` threads."""
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
    """What the machine can do: bytes written and copied (read and written) a second, operations a second."""

    write: float
    copy: float
    float32: float
    bfloat16: float

    @classmethod
    def measure(cls, cores: int) -> Limits:
        a, b = torch.zeros(1 << 26), torch.zeros(1 << 26)  # 256 MB each: past every cache
        m, n = torch.randn(2048, 2048), torch.randn(2048, 2048)
        m16, n16 = m.bfloat16(), n.bfloat16()
        with threads(cores):
            found = best(
                5, write=lambda: a.fill_(1), copy=lambda: b.copy_(a), float32=lambda: m @ n, bfloat16=lambda: m16 @ n16
            )
        size, work = a.numel() * 4, 2 * 2048**3
        return cls(size / found["write"], 2 * size / found["copy"], work / found["float32"], work / found["bfloat16"])

    def __str__(self) -> str:
        return (
            f"{self.write / 1e9:.0f} GB/s written, {self.copy / 1e9:.0f} GB/s copied, "
            f"{self.float32 / 1e9:.0f} Gop/s float32, {self.bfloat16 / 1e9:.0f} Gop/s bfloat16"
        )


class Bench:
    """The images, weights and settings that all benchmarks share.

    Args:
        voc_root: a VOC-layout folder; where it is not there, the drawn `shapes` stand in.
        weights: of SqueezeNet 1.0; where the file is not there, random ones.
        work: folder of this program's own cache.
        cache: a filled cache of the same settings, never written to; for what needs thousands of images.
        model: the folder of a trained run, or None.
        images: how many test images proposals are compared on.
    """

    def __init__(
        self, voc_root: str, weights: str, work: str, cache: str | None = None, model: str | None = None,
        images: int = 64,
    ):  # fmt: skip
        self.real = Path(voc_root).is_dir()
        self.voc_root = voc_root if self.real else "shapes"
        self.weights = weights if Path(weights).is_file() else "random"
        self.work, self.cache, self.model, self.images = work, cache, model, images

    def data(self) -> str:
        images = "VOC2007 images" if self.real else "drawn `shapes` images (no VOC folder was given)"
        weights = "random weights (none were given)" if self.weights == "random" else "ImageNet weights"
        return f"{images}, SqueezeNet 1.0 with {weights} in {self.precision}"

    @property
    def cores(self) -> int:
        return worker_count(0)

    @property
    def precision(self) -> str:
        return self.inputs(1).backbone.precision

    def limits(self, cores: int | None = None) -> Limits:
        """Of all cores, or of some."""
        return Limits.measure(cores or self.cores)

    def inputs(self, images: int, *overrides: str, cache: str | None = None) -> StageInputs:
        """A run on the first ``images`` training images, at one scale unless ``overrides`` say otherwise."""
        made = config.load(
            Path(__file__).parents[1] / "configs" / "voc07_sppnet_squeezenet.yaml",
            [
                f"data.root={self.voc_root}", f"backbone.weights={self.weights}", f"data.limit_train={images}",
                f"data.limit_test={images}", f"run.cache={cache or self.work}", f"run.dir={self.work}/run",
                "data.train_split=train", "regions.scales=[688]", "detection.context=0", *overrides,
            ],
        )  # fmt: skip
        run = StageInputs(made)
        if cache:  # not ours: a store of other settings would be made in it
            settings = run.backbone.settings() | {"max_side": made.regions.max_side}
            for kind, wanted in (("proposals", SelectiveSearch.of(made.proposals).settings()), ("maps", settings)):
                if not (Path(cache) / kind / fingerprint(wanted)).is_dir():
                    raise SystemExit(f"{cache}: holds no {kind} of these settings: {wanted}")
        return run

    def filled(self, images: int, *overrides: str) -> StageInputs:
        """The same with proposals and maps in this program's cache."""
        made = self.inputs(images, *overrides)
        made.split.fill_proposals(SelectiveSearch.of(made.config.proposals), 0)
        made.split.fill_maps(made.backbone, 0)
        return made

    @cached_property
    def image(self) -> tuple[StageInputs, np.ndarray, np.ndarray]:
        """A run of eight images, that with most proposals among them, and ``(2000, 4)`` of its proposals."""
        run = self.filled(8)
        i = max(range(len(run.split)), key=lambda i: len(run.split.proposals(i)))
        boxes = run.split.proposals(i)
        boxes = np.random.default_rng(0).permutation(boxes)  # they come best first, the largest ones
        boxes = np.resize(boxes, (WINDOWS, 4)) if len(boxes) < WINDOWS else boxes[:WINDOWS]
        return run, read_image(run.train[i].path), boxes


def size_of(image: np.ndarray) -> tuple[int, int]:
    return image.shape[1], image.shape[0]


def maps_of(run: StageInputs, features: PyramidFeatures, image: np.ndarray) -> list[np.ndarray]:
    return features.read(run.backbone, image)


def random_svms(features: PyramidFeatures, classes: int, vectors: np.ndarray) -> LinearSVMs:
    """Weights whose margins on ``vectors`` are spread as those of trained SVMs: most below -1, a few above 0."""
    weight = np.random.default_rng(0).normal(size=(classes, features.dimension)).astype(np.float32)
    margins = vectors.astype(np.float32) @ weight.T
    weight *= (0.4 / margins.std(axis=0))[:, None]
    return LinearSVMs(weight, (-1.3 - (vectors.astype(np.float32) @ weight.T).mean(axis=0)).astype(np.float32))


def table(rows: list[Row]) -> str:
    """Markdown."""
    lines = ["| what | measured | target | met | above its floor |", "|---|---|---|---|---|"]
    for row in rows:
        met = {None: "", True: "yes", False: "**no**"}[row.met]
        lines.append(f"| {row.what} | {row.value:.3g} {row.unit} | {row.target} | {met} | {row.floor} |")
    return "\n".join(lines)


def sample(split: FeatureSplit, features: PyramidFeatures, i: int = 0) -> np.ndarray:
    """``(200, D)`` vectors of some windows of image ``i``."""
    boxes = np.random.default_rng(0).permutation(split.proposals(i))[:200]
    return features.of_boxes(split.maps(i), boxes, split.size(i))
