"""Images that a trained model learns from later: the classes to learn from them, and their proposals and maps."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from sppdet.config import load as load_config
from sppdet.data import Dataset, Sample, find_images, open_pixels, tile_dataset
from sppdet.detection import Detector, StoredModel
from sppdet.features import FeatureSplit, open_split
from sppdet.training.bank import Bank
from sppdet.utils import SppdetError


def new_names(
    model: StoredModel, dataset: Dataset, classes: Sequence[str] | None, images: str | Path | Dataset
) -> list[str]:
    """Return the classes to learn, checked."""
    where = "the images" if isinstance(images, Dataset) else str(images)
    present = {dataset.classes[label] for sample in dataset for label in sample.labels.tolist()}
    names = [*dict.fromkeys(classes or [name for name in dataset.classes if name in present])]
    new = [name for name in names if name not in model.classes]
    if classes is None:
        names = new
    if known := [name for name in names if name in model.classes]:
        raise SppdetError(f"{model.folder}: has a class '{known[0]}' already; remove or rename it, or give another")
    if missing := [name for name in names if name not in present]:
        shown = ", ".join(sorted(present)) or "none"
        raise SppdetError(f"{where}: has no object of class '{missing[0]}'; its classes are {shown}")
    if not names:
        shown = ", ".join(sorted(present)) or "none"
        raise SppdetError(f"{where}: has no object of a new class; its classes are {shown}, which the model has")
    return names


def without_objects(images: str | Path | Dataset, classes: tuple[str, ...]) -> Dataset:
    """Return images as a data set without objects."""
    boxes, labels, difficult = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool)
    if isinstance(images, Dataset):
        # What else a sample says of classes is of the data set's own classes.
        samples = [
            replace(
                sample, boxes=boxes, labels=labels, difficult=difficult, looked_for=None, ignored=boxes,
                ignored_labels=labels,
            )
            for sample in images
        ]  # fmt: skip
        return Dataset(classes, tuple(samples))
    samples = []
    for path in map(Path, find_images([str(images)])):
        pixels = open_pixels(path)
        samples.append(Sample(path.stem, path, pixels.width, pixels.height, boxes, labels, difficult))
    return Dataset(classes, tuple(samples))


def as_trained(dataset: Dataset, detector: Detector) -> Dataset:
    """Return the images, or their tiles if the model was trained on tiles."""
    return tile_dataset(dataset, detector.trained_on.tiles if detector.trained_on else None)


@contextmanager
def filled_split(
    folder: Path, dataset: Dataset, detector: Detector, cache: str | Path | None, workers: int, bank: Bank
) -> Iterator[tuple[FeatureSplit, FeatureSplit]]:
    """Provide the images with their proposals and maps, and with their mirror images where they are learned from."""
    with TemporaryDirectory(prefix="sppdet-") as temporary:
        store = str(cache or _cache_of_run(folder) or temporary)
        split = open_split(dataset, store, detector.search, detector.backbone, detector.features.pooled)
        mirrored = split.with_mirror_images() if bank.svm.flip or bank.bbox.flip else split
        split.fill_proposals(detector.search, workers)
        mirrored.fill_maps(detector.backbone, workers)
        yield split, mirrored


def _cache_of_run(folder: Path) -> str | None:
    """Return the cache of a run that can be written."""
    path = folder / "config.json"
    cache = load_config(path).run.cache if path.is_file() else None
    return cache if cache and os.path.isdir(cache) and os.access(cache, os.W_OK) else None
