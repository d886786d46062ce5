"""Per-class box regression: ridge regression from a window's vector to the shift that moves the window onto its object.

As in R-CNN (arXiv 1311.2524, appendix C) and SPP_net's spp_train_bbox_regressor.m, a class learns from the windows that
overlap one of its objects by more than ``min_overlap``, and from the objects themselves. Features are scaled to the
norm of the SVMs, with a constant column that is regularised like the others; targets are centred and whitened
(`sppdet.training.box_fit`).

Each class is fitted to its own objects only, so that a class can be added alone. (The original programs assign a window
to the object of any class that it overlaps most.)

Names: n windows of one class, D features, K classes.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from sppdet.config import BoxRegressionSettings
from sppdet.data import file_numbers
from sppdet.detection import BoxRegressors
from sppdet.features import CachedSplit, FeatureSplit, WindowFeatures, map_images
from sppdet.ops import boxes as geometry
from sppdet.training.box_fit import NearWindows, fit_class
from sppdet.utils import Execution, bar, parallel_map

_GOOD = 0.1  # a window is good whose IoU with its object is less than this below that of the best proposal

# Of each window: image, box, shift, and whether it is good.
_OfImage = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def train(
    split: FeatureSplit,
    features: WindowFeatures,
    labels: list[int],
    settings: BoxRegressionSettings,
    scale: float,
    execution: Execution,
) -> BoxRegressors:
    """Fit the box regressors of some classes.

    Args:
        split: the training images with their proposals and feature maps.
        features: how windows become vectors.
        labels: the classes to train, K of them.
        settings: overlap, ridge and number of windows.
        scale: factor that brings the vectors to the norm that ``settings.ridge`` is meant for.
        execution: seed of the sample of windows; workers; memory for vectors.

    Returns:
        Weights ``(K, 4, D)`` and biases ``(K, 4)``; zeros, which move nothing, for a class without windows.
    """
    weight = np.zeros((len(labels), 4, features.dimension), np.float32)
    bias = np.zeros((len(labels), 4), np.float32)
    samples = _samples(split, labels, settings, execution)
    bytes_per_class = settings.max_windows * features.dimension * np.dtype(np.float16).itemsize
    at_once = max(1, int(execution.memory_gb * 1e9 / bytes_per_class))

    def fit_group(classes: range) -> None:
        """Fit some classes. Their vectors are freed before those of the next group are pooled."""
        vectors = _vectors(split, features, [samples[k] for k in classes], execution.workers)
        with bar(len(classes), "fitting box regressions") as count:
            for k, rows in zip(classes, vectors):
                if len(rows):
                    weight[k], bias[k] = fit_class(rows, samples[k], settings.ridge, scale)
                count()

    for start in range(0, len(labels), at_once):
        fit_group(range(start, min(start + at_once, len(labels))))
    return BoxRegressors(weight, bias)


def _samples(
    split: FeatureSplit, labels: list[int], settings: BoxRegressionSettings, execution: Execution
) -> list[NearWindows]:
    """Choose the windows of each class, a random sample if they are more than ``settings.max_windows``."""
    chosen = {*labels}
    images = [i for i, sample in enumerate(split.dataset) if not chosen.isdisjoint(sample.labels.tolist())]
    of_classes: dict[int, list[_OfImage]] = {label: [] for label in labels}
    near = partial(_near_objects, labels, settings.min_overlap)
    for i, of_image in zip(images, map_images(near, split, images, execution.workers, "windows near objects")):
        for label, (boxes, targets, good) in of_image.items():
            of_classes[label].append((np.full(len(boxes), i), boxes, targets, good))
    files = file_numbers(split.dataset.samples)
    return [
        _near_windows(split.dataset.classes[label], of_classes.pop(label), files, settings.max_windows, execution.seed)
        for label in labels
    ]


def _near_objects(
    labels: list[int], min_overlap: float, i: int, image: CachedSplit
) -> dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Return the windows of image ``i`` that overlap an object of a class by more than ``min_overlap``, by class.

    Returns:
        Their boxes and the shifts onto the objects, both ``(n, 4)``; and bool ``(n,)``, which are good (`NearWindows`).
    """
    proposals, near_objects = image.proposals(0), {}
    for label in labels:
        objects = image.objects(0, label)
        if len(objects):
            windows = np.concatenate([objects, proposals])
            overlap = geometry.iou(windows, objects)
            near = overlap.max(axis=1) > min_overlap
            nearest = overlap[near].argmax(axis=1)
            best = overlap[len(objects) :].max(axis=0, initial=0)
            good = overlap[near].max(axis=1) > best[nearest] - _GOOD
            good[: len(objects)] = False  # the objects themselves are no proposals
            near_objects[label] = windows[near], geometry.encode(windows[near], objects[nearest]), good
    return near_objects


def _near_windows(name: str, of_images: list[_OfImage], files: np.ndarray, limit: int, seed: int) -> NearWindows:
    """Return the windows of class ``name``, at most ``limit`` of them, drawn at random.

    Args:
        name: of the class. It seeds the draw, which so does not depend on the classes that are trained with it.
        of_images: image numbers, boxes, shifts and whether they are good.
        files: the number of the file of each image.
        limit: number of windows.
        seed: of the run.
    """
    none = (np.zeros(0, np.int64), np.zeros((0, 4)), np.zeros((0, 4)), np.zeros(0, bool))
    images, boxes, targets, good = (np.concatenate(arrays) for arrays in zip(none, *of_images))
    if len(images) > limit:
        rows = np.sort(np.random.default_rng([seed, *name.encode()]).permutation(len(images))[:limit])
        images, boxes, targets, good = images[rows], boxes[rows], targets[rows], good[rows]
    return NearWindows(images, boxes, targets, files[images], good)


def _vectors(
    split: FeatureSplit, features: WindowFeatures, samples: list[NearWindows], workers: int
) -> list[np.ndarray]:
    """Compute the float16 vectors ``(n, D)`` of each class's windows, in one pass over the images."""
    vectors = [np.empty((len(sample.images), features.dimension), np.float16) for sample in samples]
    images = np.unique(np.concatenate([sample.images for sample in samples])).tolist()

    def fill(i: int) -> None:
        rows_of_classes = [np.flatnonzero(sample.images == i) for sample in samples]
        boxes = np.concatenate([sample.boxes[rows] for sample, rows in zip(samples, rows_of_classes)])
        of_image = features.of_boxes(split.maps(i), boxes.astype(np.float32), split.size(i), np.float16)
        ends = np.cumsum([len(rows) for rows in rows_of_classes])[:-1]
        for class_vectors, rows, values in zip(vectors, rows_of_classes, np.split(of_image, ends)):
            class_vectors[rows] = values

    for _ in parallel_map(fill, images, workers, "box regression windows", threads=True):
        pass
    return vectors
