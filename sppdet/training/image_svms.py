"""The image as context of its windows: per-class SVMs that tell whether it holds such an object at all.

To classify whole images is what SPP-net was made for first (He et al. 2014, section 3), and the vector for it is that
of one more window of the maps that are there already, the image itself. Where its SVM says no, the image's windows
lose margin (the idea is that of Harzallah, Jurie and Schmid, ICCV 2009)::

    margin = the window's + weight * min(0, the image's)

A yes adds nothing: it would lift what is wrong in an image together with what is right.

A class's SVM depends on which images hold the class, never on the other classes: one trained later, alone, is the
same.
"""

from __future__ import annotations

import numpy as np

from sppdet.config import SvmSettings
from sppdet.detection import LinearSVMs
from sppdet.features import CachedSplit, WindowFeatures
from sppdet.training import svm
from sppdet.utils import parallel_map

SETTINGS = ("C", "positive_weight", "bias", "solver")  # those of the windows' SVMs that hold for images too
_MOST = 20_000  # images learned from, a random sample of them beyond that: 51 kB each at 25,600 features


def train(
    split: CachedSplit, features: WindowFeatures, labels: list[int], settings: SvmSettings, scale: float, seed: int = 3,
    workers: int = 0,
) -> LinearSVMs:  # fmt: skip
    """The images' SVMs of the classes ``labels``.

    Of a class that all images hold, or none, there is nothing to tell: margins are 0, and windows lose nothing.

    Args:
        settings: those named by :data:`SETTINGS` count.
        scale: brings the vectors of windows to the norm of the SVMs.
    """
    images = np.sort(np.random.default_rng(seed).permutation(len(split))[:_MOST])
    vectors = np.empty((len(images), features.dimension), np.float16)

    def fill(row: int) -> None:
        i = int(images[row])
        maps, size = split.maps(i), split.size(i)
        vectors[row] = features.vectors(maps, features.whole(maps, size), np.arange(1), np.float16)[0]

    for _ in parallel_map(fill, range(len(images)), workers, "whole images", threads=True):
        pass
    problem = svm.Problem(settings.C, settings.positive_weight, settings.bias, scale, seed=seed)

    def fit_class(label: int) -> svm.Fit:
        held = np.array([label in split.dataset[int(i)].labels for i in images])
        if held.all() or not held.any():
            return svm.Fit(np.zeros(features.dimension, np.float32), 0.0, None, 0, True)
        return svm.SOLVERS[settings.solver](vectors, np.arange(len(vectors)), np.where(held, 1, -1), problem)

    return svm.stack(list(parallel_map(fit_class, labels, workers, "fitting SVMs of images", threads=True)))
