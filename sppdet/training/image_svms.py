"""Per-class SVMs of whole images, which tell whether an image holds an object of a class at all.

Classifying whole images is what SPP-net was made for first (He et al. 2014, section 3). The vector of an image is that
of one more window of its feature maps: the image itself. Where the image's margin is negative, the margins of its
windows are lowered (an idea of Harzallah, Jurie and Schmid, ICCV 2009)::

    margin = margin of the window + weight * min(0, margin of the image)

A positive margin adds nothing: it would raise the false detections of an image together with the true ones.

The SVM of a class depends on which images hold the class and not on the other classes: trained later and alone, it is
the same.
"""

from __future__ import annotations

import numpy as np

from sppdet.config import SvmSettings
from sppdet.detection import LinearSVMs
from sppdet.features import FeatureSplit, WindowFeatures
from sppdet.training import svm
from sppdet.utils import Execution, parallel_map

SETTINGS = ("C", "positive_weight", "bias", "solver")  # the fields of SvmSettings that SVMs of images depend on
_MAX_IMAGES = 20_000  # a random sample of more: vectors of 25,600 features take 51 kB each


def train(
    split: FeatureSplit,
    features: WindowFeatures,
    labels: list[int],
    settings: SvmSettings,
    scale: float,
    execution: Execution,
) -> LinearSVMs:
    """Train the SVMs of whole images.

    A class that all images hold, or none, gives nothing to learn: its margins are 0, and windows are not lowered.

    Args:
        split: the training images with their feature maps.
        features: how an image becomes a vector.
        labels: the classes to train.
        settings: the fields named by `SETTINGS` are used.
        scale: factor that brings the vectors of windows to the norm of the SVMs.
        execution: seed of the sample of images and of the solver; workers.

    Returns:
        One SVM per class of ``labels``.
    """
    images = np.sort(np.random.default_rng(execution.seed).permutation(len(split))[:_MAX_IMAGES])
    vectors = np.empty((len(images), features.dimension), np.float16)

    def fill(row: int) -> None:
        i = int(images[row])
        maps, size = split.maps(i), split.size(i)
        vectors[row] = features.vectors(maps, features.whole(maps, size), np.arange(1), np.float16)[0]

    for _ in parallel_map(fill, range(len(images)), execution.workers, "whole images", threads=True):
        pass
    problem = svm.Problem(settings.C, settings.positive_weight, settings.bias, scale, seed=execution.seed)

    def fit_class(label: int) -> svm.Fit:
        samples = [split.dataset[int(i)] for i in images]
        positive = np.array([label in sample.labels for sample in samples])
        known = positive | [
            sample.was_looked_for([label])[0] and not len(sample.ignored_of(label)) for sample in samples
        ]
        if positive[known].all() or not positive.any():
            return svm.Fit(np.zeros(features.dimension, np.float32), 0.0, None, 0, True)
        signs = np.where(positive[known], 1, -1)
        return svm.SOLVERS[settings.solver](vectors, np.flatnonzero(known), signs, problem)

    return svm.stack(list(parallel_map(fit_class, labels, execution.workers, "fitting SVMs of images", threads=True)))
