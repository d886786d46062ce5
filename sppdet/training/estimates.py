"""How long the stages of a training will take, from a second of this machine.

A few training images pass through proposals, backbone and pooling, as many at a time as there are workers. Their times
and the number of images make the estimate; `sppdet.utils.Progress` corrects it as the work goes on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sppdet.features import FeatureSplit
from sppdet.ops import Products
from sppdet.proposals import SelectiveSearch
from sppdet.training.stage_inputs import StageInputs
from sppdet.utils import Estimate, SppdetError, duration, in_threads, worker_count

logger = logging.getLogger(__name__)

_IMAGES = 1  # timed per worker
_START = 4.0  # seconds until the processes that search for proposals have started
# Times that pooling and scoring all windows of an image take, per image of a stage. Hard-negative mining pools each
# image once to score it, and reads it again for each fit. Measured on `boards` and BCCD.
_SVM, _BBOX, _DETECTION, _CALIBRATION = 3.0, 0.6, 1.2, 0.2
_UNMINED = 2 / 3  # share of `_SVM` with mirror images, in which nothing is mined
# Seconds, of the fits; box regression also multiplies.
_PER_CLASS = {"svm": 1.0, "bbox": 0.2, "context": 0.2, "calibration": 0.5}
_NEAR_WINDOWS = 30  # per object, from which box regression learns
_PRODUCT = 1024, 4096  # rows and columns of the matrix whose product with itself is timed


@dataclass(frozen=True)
class Speed:
    """Seconds of all workers together per image, of the training images, and per operation.

    Attributes:
        proposals: search in an image.
        maps: backbone on an image.
        pooling: pooling and scoring of all windows of an image.
        operation: a multiplication, or an addition, of a large product of matrices.
    """

    proposals: float
    maps: float
    pooling: float
    operation: float


def measure_speed(inputs: StageInputs) -> Speed | None:
    """Time a few training images; nothing is stored. None if one of them cannot be read, which the stages will say."""
    logger.info("measuring the speed of this machine (the first time, code is compiled: up to a minute)")
    config, features, backbone = inputs.config, inputs.pooled_features, inputs.backbone
    workers = worker_count(config.workers)
    search = SelectiveSearch.of(config.proposals)
    count = min(len(inputs.train_pieces), workers * _IMAGES)
    samples = [inputs.train_pieces[int(i)] for i in np.linspace(0, len(inputs.train_pieces) - 1, count)]
    try:
        images = [sample.read() for sample in samples]
    except SppdetError:
        return None
    weights = Products(np.zeros((len(inputs.labels), features.dimension), np.float32), half=features.half)
    search.warm_up()

    def score(i: int) -> object:
        height, width = images[i].shape[:2]
        windows = features.windows(proposals[i], (width, height), feature_maps[i])
        return features.products(feature_maps[i], windows, weights)

    def timed(function: Callable[[int], object]) -> tuple[float, list]:
        begun = time.perf_counter()
        results = list(in_threads(function, range(count), workers))
        return (time.perf_counter() - begun) / count, results

    for_proposals, proposals = timed(lambda i: search(images[i]))
    for_maps, feature_maps = timed(lambda i: features.read(backbone, images[i], proposals[i]))
    score(0)  # compiles
    for_pooling, _ = timed(score)
    return Speed(for_proposals, for_maps, for_pooling, _seconds_per_operation())


def _seconds_per_operation() -> float:
    """Time a product of matrices of float32, as box regression has them."""
    rows, columns = _PRODUCT
    matrix = np.ones(_PRODUCT, np.float32)
    begun = time.perf_counter()
    _ = matrix @ matrix.T.copy()
    return (time.perf_counter() - begun) / (2 * rows * rows * columns)


def estimate(inputs: StageInputs, stages: list[str], speed: Speed | None, again: bool = False) -> dict[str, Estimate]:
    """Return an estimate of each stage.

    Args:
        inputs: what the stages read.
        stages: those that will run.
        speed: of this machine; None where it was not measured: the seconds are unknown then.
        again: whether what is in the cache is computed again.
    """
    estimates = {}
    for stage in stages:
        seconds: float | None = None
        items = 0
        if stage == "proposals":
            stores = [(split.proposal_store, split.names) for split in inputs.proposal_splits]
            items = sum(len(names if again else store.missing(names)) for store, names in stores)
        if speed and stage == "proposals":
            seconds = speed.proposals * items + (_START if worker_count(inputs.config.workers) > 1 else 0)
        elif speed and stage == "maps":
            items, images = missing_maps(inputs, again)
            seconds = speed.maps * images
        elif speed and stage == "evaluate":
            items = len(inputs.test_pieces)
            mirrored = speed.maps if inputs.config.detection.flip else 0.0  # the maps of mirror images are not stored
            seconds = 1 + (speed.pooling * _DETECTION + mirrored) * items
        elif speed and stage in _PER_CLASS:
            images = float(len(inputs.split_of(stage)))
            if stage == "svm" and inputs.config.svm.flip:
                images *= _UNMINED
            pooling = {"svm": _SVM, "bbox": _BBOX, "calibration": _CALIBRATION}.get(stage, 0.1)
            seconds = speed.pooling * pooling * images + _PER_CLASS[stage] * len(inputs.labels)
            if stage == "calibration":
                seconds += speed.pooling * _DETECTION * min(len(inputs.train_pieces), inputs.config.calibration.images)
            if stage == "svm" and inputs.config.data.incomplete_labels:  # folds, and another fit
                seconds += speed.pooling * (_DETECTION + 2 * _CALIBRATION) * images
                seconds += 2 * _PER_CLASS["svm"] * len(inputs.labels)
            if stage == "bbox":
                seconds += speed.operation * _ridge_operations(inputs)
        estimates[stage] = Estimate(seconds, items)
    return estimates


def _ridge_operations(inputs: StageInputs) -> float:
    """Return about how many operations the ridge regressions of all classes take, by their kernel matrices."""
    labels = np.concatenate([sample.labels for sample in inputs.train_pieces])
    objects = np.bincount(labels, minlength=len(inputs.labels)).astype(float)
    windows = np.minimum(_NEAR_WINDOWS * objects * (1 + inputs.config.bbox.flip), inputs.config.bbox.max_windows)
    fits = 1 if inputs.config.bbox.ridge else 2  # to choose one, up to three are tried on either half: an eighth each
    return float((2 * windows**2 * inputs.pooled_features.dimension + fits * windows**3 / 3).sum())


def log_plan(stages: list[str], estimates: dict[str, Estimate], workers: int) -> None:
    """Log which stages will run, and in how many minutes if that is known."""
    seconds = [estimate.seconds for estimate in estimates.values()]
    known = [value for value in seconds if value is not None]
    time = f"about {duration(sum(known))}" if len(known) == len(seconds) else "the time is told on the way"
    cores = worker_count(workers)
    logger.info("to do: %s; %s on %d core%s", ", ".join(stages), time, cores, "s" if cores > 1 else "")


def missing_maps(inputs: StageInputs, again: bool = False) -> tuple[int, float]:
    """Return the number of maps that are not stored, or of all maps, and the number of images that take as long."""
    shares: dict[str, float] = {}
    missing: set[str] = set()
    splits = map_splits(inputs)
    for split in splits:
        entries = split.map_entries()
        shares |= entries
        missing |= {*entries} if again else {*split.map_store.missing([*entries])}
    whole = sum(splits[0].map_entries().values()) / max(len(splits[0]), 1)
    return len(missing), sum(shares[entry] for entry in missing) / whole


def map_splits(inputs: StageInputs) -> list[FeatureSplit]:
    """Return the splits whose maps the run needs: test images, and training images if a stage learns from their maps.

    With mirror images the training images include those without.
    """
    learned_from = [inputs.split_of(stage) for stage in inputs.stages_with_maps()]
    return [*sorted(learned_from, key=len)[-1:], inputs.splits[1]]
