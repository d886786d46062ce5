"""The picture as context of its windows: per-class SVMs that tell whether it holds such an object at all.

To classify whole pictures is what SPP-net was made for first (He et al. 2014, section 3), and the vector for it is that
of one more window of the maps that are there already, the picture itself. Where its SVM says no, the picture's windows
lose margin (the idea is that of Harzallah, Jurie and Schmid, ICCV 2009)::

    margin = the window's + weight * min(0, the picture's)

A yes adds nothing: it would lift what is wrong in a picture together with what is right.

A class's SVM depends on which pictures hold the class, never on the other classes: one trained later, alone, is the
same.
"""

from __future__ import annotations

import numpy as np

from sppdet import svm
from sppdet.corpus import Corpus
from sppdet.features import WindowFeatures
from sppdet.linear import LinearSVMs
from sppdet.parallel import run
from sppdet.settings import Svm

SETTINGS = ("C", "positive_weight", "bias", "solver")  # those of the windows' SVMs that hold for pictures too
_MOST = 20_000  # pictures learned from, a random sample of them beyond that: 51 kB each at 25,600 features


def train(
    corpus: Corpus, features: WindowFeatures, labels: list[int], settings: Svm, scale: float, seed: int = 3,
    workers: int = 0,
) -> LinearSVMs:  # fmt: skip
    """The pictures' SVMs of the classes ``labels``.

    Of a class that all pictures hold, or none, there is nothing to tell: margins are 0, and windows lose nothing.

    Args:
        settings: those named by :data:`SETTINGS` count.
        scale: brings the vectors of windows to the norm of the SVMs.
    """
    pictures = np.sort(np.random.default_rng(seed).permutation(len(corpus))[:_MOST])
    vectors = np.empty((len(pictures), features.dimension), np.float16)

    def fill(row: int) -> None:
        i = int(pictures[row])
        maps, size = corpus.maps(i), corpus.size(i)
        vectors[row] = features.vectors(maps, features.whole(maps, size), np.arange(1), np.float16)[0]

    for _ in run(fill, range(len(pictures)), workers, "whole pictures", threads=True):
        pass
    problem = svm.Problem(settings.C, settings.positive_weight, settings.bias, scale, seed=seed)

    def fit_class(label: int) -> svm.Fit:
        held = np.array([label in corpus.dataset[int(i)].labels for i in pictures])
        if held.all() or not held.any():
            return svm.Fit(np.zeros(features.dimension, np.float32), 0.0, None, 0, True)
        return svm.SOLVERS[settings.solver](vectors, np.arange(len(vectors)), np.where(held, 1, -1), problem)

    return svm.stack(list(run(fit_class, labels, workers, "fitting SVMs of pictures", threads=True)))
