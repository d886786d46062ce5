"""Per-class box regression: ridge regression from a window's vector to the shift that moves the window onto its object.

As in R-CNN (arXiv 1311.2524, appendix C) and SPP_net's spp_train_bbox_regressor.m, a class learns from the windows that
overlap one of its objects by more than ``min_overlap``, and from the objects themselves. Features are scaled to the
norm of the SVMs, with a constant column that is regularised like the others; targets are centred and whitened.

Each class is fitted to its own objects only, so that a class can be added alone. (The original programs assign a window
to the object of any class that it overlaps most.)

Names: n windows of one class, D features, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from sppdet.config import BoxRegressionSettings
from sppdet.detection import BoxRegressors
from sppdet.features import CachedSplit, FeatureSplit, WindowFeatures, map_images
from sppdet.ops import boxes as geometry
from sppdet.utils import Execution, bar, parallel_map

_MIN_VARIANCE = 0.001  # added to the variances of the targets before whitening, as in the original program


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
                    weight[k], bias[k] = fit_class(rows, samples[k].targets, settings.ridge, scale)
                count()

    for start in range(0, len(labels), at_once):
        fit_group(range(start, min(start + at_once, len(labels))))
    return BoxRegressors(weight, bias)


def fit_class(rows: np.ndarray, targets: np.ndarray, ridge: float, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Fit the regressor of one class.

    Args:
        rows: ``(n, D)`` vectors of windows.
        targets: ``(n, 4)`` shifts of `sppdet.ops.boxes.encode`.
        ridge: weight of the squared coefficients.
        scale: factor of the vectors.

    Returns:
        Weights ``(4, D)`` and bias ``(4,)`` for unscaled vectors.

    Examples:
        >>> import numpy as np
        >>> rows = np.array([[-1.0], [0.0], [1.0]], np.float32)
        >>> weight, bias = fit_class(rows, 2 * rows * np.ones(4) + 1, ridge=1e-6, scale=1.0)
        >>> weight[:, 0].round(3).tolist(), bias.round(3).tolist()
        ([2.0, 2.0, 2.0, 2.0], [1.0, 1.0, 1.0, 1.0])
    """
    from sklearn.linear_model import Ridge  # takes as long to load as torch

    mean = targets.mean(axis=0)
    whiten, unwhiten = _whitening(targets - mean)
    design = np.empty((len(rows), rows.shape[1] + 1), np.float32)
    design[:, :-1] = rows
    design[:, :-1] *= np.float32(scale)
    design[:, -1] = 1
    solver = Ridge(alpha=ridge, fit_intercept=False, solver="cholesky")  # by the kernel matrix where n < D
    solver.fit(design, ((targets - mean) @ whiten).astype(np.float32))
    coefficients = unwhiten.T @ solver.coef_
    return coefficients[:, :-1] * scale, coefficients[:, -1] + mean


def _whitening(centred: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the symmetric matrix that makes the covariance of centred targets the identity, and the inverse matrix."""
    values, vectors = np.linalg.eigh(centred.T @ centred / len(centred))
    root = np.sqrt(values + _MIN_VARIANCE)
    return vectors @ np.diag(1 / root) @ vectors.T, vectors @ np.diag(root) @ vectors.T


@dataclass(frozen=True, eq=False)
class _Sample:
    """The windows that one class learns from.

    Attributes:
        images: ``(n,)`` index of each window's image.
        boxes: ``(n, 4)`` pixel edges.
        targets: ``(n, 4)`` shifts onto the objects.
    """

    images: np.ndarray
    boxes: np.ndarray
    targets: np.ndarray

    @classmethod
    def none(cls) -> _Sample:
        """Return no windows."""
        return cls(np.zeros(0, np.int64), np.zeros((0, 4)), np.zeros((0, 4)))


def _samples(
    split: FeatureSplit, labels: list[int], settings: BoxRegressionSettings, execution: Execution
) -> list[_Sample]:
    """Choose the windows of each class, a random sample if they are more than ``settings.max_windows``."""
    chosen = {*labels}
    images = [i for i, sample in enumerate(split.dataset) if not chosen.isdisjoint(sample.labels.tolist())]
    of_classes: dict[int, list[_Sample]] = {label: [_Sample.none()] for label in labels}
    near = partial(_near_objects, labels, settings.min_overlap)
    for of_image in map_images(near, split, images, execution.workers, "windows near objects"):
        for label, windows in of_image.items():
            of_classes[label].append(windows)
    return [_limited(split.dataset.classes[label], of_classes.pop(label), settings, execution.seed) for label in labels]


def _near_objects(labels: list[int], min_overlap: float, i: int, image: CachedSplit) -> dict[int, _Sample]:
    """Return the windows of image ``i`` that overlap an object of a class by more than ``min_overlap``, by class."""
    proposals, near_objects = image.proposals(0), {}
    for label in labels:
        objects = image.objects(0, label)
        if len(objects):
            windows = np.concatenate([objects, proposals])
            overlap = geometry.iou(windows, objects)
            near = overlap.max(axis=1) > min_overlap
            targets = geometry.encode(windows[near], objects[overlap[near].argmax(axis=1)])
            near_objects[label] = _Sample(np.full(near.sum(), i), windows[near], targets)
    return near_objects


def _limited(name: str, of_images: list[_Sample], settings: BoxRegressionSettings, seed: int) -> _Sample:
    """Return the windows of class ``name`` in all images, or a random sample of them."""
    values = ([getattr(sample, field) for sample in of_images] for field in ("images", "boxes", "targets"))
    images, boxes, targets = (np.concatenate(arrays) for arrays in values)
    if len(images) <= settings.max_windows:
        return _Sample(images, boxes, targets)
    # The name of the class seeds the sample, which so does not depend on the classes that are trained with it.
    order = np.random.default_rng([seed, *name.encode()]).permutation(len(images))
    rows = np.sort(order[: settings.max_windows])
    return _Sample(images[rows], boxes[rows], targets[rows])


def _vectors(split: FeatureSplit, features: WindowFeatures, samples: list[_Sample], workers: int) -> list[np.ndarray]:
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
