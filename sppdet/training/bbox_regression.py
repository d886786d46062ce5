"""Per-class box regression: ridge from a window's pooled vector to the shift that moves it onto its object.

R-CNN (arXiv 1311.2524, appendix C) and SPP_net's spp_train_bbox_regressor.m: windows that overlap an object of the
class by more than ``min_overlap``, and the objects themselves; features scaled to the SVMs' norm, with a constant
column that is regularised like the rest; targets centred and whitened.

Each class is fitted to its own objects only, so that one can be added alone. (The originals give a window to the
object it overlaps most among all classes.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sppdet.config import BoxRegressionSettings
from sppdet.detection import BoxRegressors
from sppdet.features import CachedSplit, WindowFeatures
from sppdet.ops import boxes as geometry
from sppdet.utils import parallel_map


def train(
    split: CachedSplit, features: WindowFeatures, labels: list[int], settings: BoxRegressionSettings, scale: float,
    seed: int = 3, workers: int = 0, memory_gb: float = 2.0,
) -> BoxRegressors:  # fmt: skip
    """Fit the regressors of the classes ``labels``; a class without windows gets zeros, which move nothing.

    ``scale`` brings the vectors to the norm that ``settings.ridge`` is meant for; ``memory_gb`` of them are held at a
    time.
    """
    weight = np.zeros((len(labels), 4, features.dimension), np.float32)
    bias = np.zeros((len(labels), 4), np.float32)
    chosen = [_choose(split, label, settings, seed) for label in labels]
    at_once = max(1, int(memory_gb * 1e9 / (settings.max_windows * features.dimension * 2)))
    for start in range(0, len(labels), at_once):
        part = range(start, min(start + at_once, len(labels)))
        gathered = _gather(split, features, [chosen[k] for k in part], workers)
        for k, (rows, targets) in zip(part, gathered):
            if len(rows):
                weight[k], bias[k] = fit_class(rows, targets, settings.ridge, scale)
    return BoxRegressors(weight, bias)


def fit_class(rows: np.ndarray, targets: np.ndarray, ridge: float, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """``(4, D)`` weights and ``(4,)`` bias from vectors ``(n, D)`` and targets ``(n, 4)``."""
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
    """The symmetric matrix that makes the targets' covariance the identity, and its inverse."""
    values, vectors = np.linalg.eigh(centred.T @ centred / len(centred))
    root = np.sqrt(values + 0.001)
    return vectors @ np.diag(1 / root) @ vectors.T, vectors @ np.diag(root) @ vectors.T


@dataclass(frozen=True, eq=False)
class _Chosen:
    """One class's windows: image ``(n,)``, box ``(n, 4)`` and target ``(n, 4)``."""

    images: np.ndarray
    boxes: np.ndarray
    targets: np.ndarray


def _choose(split: CachedSplit, label: int, settings: BoxRegressionSettings, seed: int) -> _Chosen:
    images, boxes, targets = [np.zeros(0, np.int64)], [np.zeros((0, 4))], [np.zeros((0, 4))]
    for i in range(len(split)):
        objects = split.objects(i, label)
        if len(objects):
            windows = np.concatenate([objects, split.proposals(i)])
            overlap = geometry.iou(windows, objects)
            near = overlap.max(axis=1) > settings.min_overlap
            images.append(np.full(near.sum(), i))
            boxes.append(windows[near])
            targets.append(geometry.encode(windows[near], objects[overlap[near].argmax(axis=1)]))
    found = _Chosen(np.concatenate(images), np.concatenate(boxes), np.concatenate(targets))
    if len(found.images) <= settings.max_windows:
        return found
    # The class's own name seeds its sample: it is the same whichever classes are trained with it.
    seeds = [seed, *split.dataset.classes[label].encode()]
    sample = np.sort(np.random.default_rng(seeds).permutation(len(found.images))[: settings.max_windows])
    return _Chosen(found.images[sample], found.boxes[sample], found.targets[sample])


def _gather(
    split: CachedSplit, features: WindowFeatures, chosen: list[_Chosen], workers: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each class its float16 rows ``(n, D)`` and targets ``(n, 4)``, in one pass over the images."""
    rows = [np.empty((len(one.images), features.dimension), np.float16) for one in chosen]
    images = np.unique(np.concatenate([one.images for one in chosen])).tolist()

    def fill(i: int) -> None:
        places = [np.flatnonzero(one.images == i) for one in chosen]
        boxes = np.concatenate([one.boxes[place] for one, place in zip(chosen, places)]).astype(np.float32)
        vectors = features.of_boxes(split.maps(i), boxes, split.size(i), np.float16)
        for own, place, part in zip(rows, places, np.split(vectors, np.cumsum([len(p) for p in places])[:-1])):
            own[place] = part

    for _ in parallel_map(fill, images, workers, "box regression windows", threads=True):
        pass
    return [(own, one.targets) for own, one in zip(rows, chosen)]
