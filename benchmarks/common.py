"""What the benchmarks share: pictures and features to work on, timing side by side, and the machine's own limits."""

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
from sppdet.corpus import Corpus
from sppdet.features import PyramidFeatures
from sppdet.files import fingerprint
from sppdet.images import read_image
from sppdet.inputs import Inputs
from sppdet.linear import LinearSVMs
from sppdet.parallel import worker_count

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
    """The pictures, weights and settings that all benchmarks share.

    Args:
        voc_root: a VOC-layout folder; where it is not there, the drawn `shapes` stand in.
        weights: of SqueezeNet 1.0; where the file is not there, random ones.
        work: folder of this program's own cache.
        cache: a filled cache of the same settings, never written to; for what needs thousands of pictures.
        model: the folder of a trained run, or None.
        pictures: how many test pictures proposals are compared on.
    """

    def __init__(
        self, voc_root: str, weights: str, work: str, cache: str | None = None, model: str | None = None,
        pictures: int = 64,
    ):  # fmt: skip
        self.real = Path(voc_root).is_dir()
        self.voc_root = voc_root if self.real else "shapes"
        self.weights = weights if Path(weights).is_file() else "random"
        self.work, self.cache, self.model, self.pictures = work, cache, model, pictures

    def data(self) -> str:
        pictures = "VOC2007 pictures" if self.real else "drawn `shapes` pictures (no VOC folder was given)"
        weights = "random weights (none were given)" if self.weights == "random" else "ImageNet weights"
        return f"{pictures}, SqueezeNet 1.0 with {weights} in {self.precision}"

    @property
    def cores(self) -> int:
        return worker_count(0)

    @property
    def precision(self) -> str:
        return self.inputs(1).backbone.precision

    def limits(self, cores: int | None = None) -> Limits:
        """Of all cores, or of some."""
        return Limits.measure(cores or self.cores)

    def inputs(self, pictures: int, *overrides: str, cache: str | None = None) -> Inputs:
        """A run on the first ``pictures`` training pictures, at one scale unless ``overrides`` say otherwise."""
        made = config.load(
            Path(__file__).parents[1] / "configs" / "voc07_sppnet_squeezenet.yaml",
            [
                f"data.root={self.voc_root}", f"backbone.weights={self.weights}", f"data.limit_train={pictures}",
                f"data.limit_test={pictures}", f"run.cache={cache or self.work}", f"run.dir={self.work}/run",
                "data.train_split=train", "regions.scales=[688]", "detection.context=0", *overrides,
            ],
        )  # fmt: skip
        run = Inputs(made)
        if cache:  # not ours: a store of other settings would be made in it
            settings = run.backbone.settings() | {"max_side": made.regions.max_side}
            for kind, wanted in (("proposals", made.proposals.settings()), ("maps", settings)):
                if not (Path(cache) / kind / fingerprint(wanted)).is_dir():
                    raise SystemExit(f"{cache}: holds no {kind} of these settings: {wanted}")
        return run

    def filled(self, pictures: int, *overrides: str) -> Inputs:
        """The same with proposals and maps in this program's cache."""
        made = self.inputs(pictures, *overrides)
        made.corpus.fill_proposals(made.config.proposals, 0)
        made.corpus.fill_maps(made.backbone, 0)
        return made

    @cached_property
    def picture(self) -> tuple[Inputs, np.ndarray, np.ndarray]:
        """A run of eight pictures, that with most proposals among them, and ``(2000, 4)`` of its proposals."""
        run = self.filled(8)
        i = max(range(len(run.corpus)), key=lambda i: len(run.corpus.proposals(i)))
        boxes = run.corpus.proposals(i)
        boxes = np.random.default_rng(0).permutation(boxes)  # they come best first, the largest ones
        boxes = np.resize(boxes, (WINDOWS, 4)) if len(boxes) < WINDOWS else boxes[:WINDOWS]
        return run, read_image(run.train[i].path), boxes


def size_of(image: np.ndarray) -> tuple[int, int]:
    return image.shape[1], image.shape[0]


def maps_of(run: Inputs, features: PyramidFeatures, image: np.ndarray) -> list[np.ndarray]:
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


def sample(corpus: Corpus, features: PyramidFeatures, i: int = 0) -> np.ndarray:
    """``(200, D)`` vectors of some windows of picture ``i``."""
    boxes = np.random.default_rng(0).permutation(corpus.proposals(i))[:200]
    return features.of_boxes(corpus.maps(i), boxes, corpus.size(i))
