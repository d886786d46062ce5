"""The fit of one class's box regression: ridge regression, and the choice of its ridge.

The ridge of the original programs, the weight of the squared coefficients, was chosen for their features and data. What
is best differs tenfold between classes: many windows of similar objects bear a small one. Where none is given, a class
of enough files takes the usual one or a smaller one, with which windows of files that were left out fit their objects
best.

Names: n windows of the class, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sppdet.ops import boxes as geometry

_MIN_VARIANCE = 0.001  # added to the variances of the targets before whitening, as in the original program
# To choose from, largest first. Still larger ones place good windows better, but bad ones worse: mAP at 0.5 falls.
_RIDGES = (3000.0, 1000.0, 300.0)
_PARTS = 2  # of the files, each left out once
_LEAST_FILES = 50  # fewer judge by chance: of the 20 first images of `boards` a class chose 300, which was worse


@dataclass(frozen=True, eq=False)
class NearWindows:
    """Windows near the objects of one class, from which its regression learns.

    Attributes:
        images: ``(n,)`` index of each window's image.
        boxes: ``(n, 4)`` pixel edges.
        targets: ``(n, 4)`` shifts onto the objects.
        files: ``(n,)`` number of the file that the image is from; a mirror image and tiles are from the image's.
        good: bool ``(n,)``, whether a window overlaps its object nearly as well as any proposal does. The choice of the
            ridge is judged by these, which detection picks; worse windows want larger moves than they bear.
    """

    images: np.ndarray
    boxes: np.ndarray
    targets: np.ndarray
    files: np.ndarray
    good: np.ndarray


def fit_class(rows: np.ndarray, windows: NearWindows, ridge: float, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Fit the regression of one class.

    Args:
        rows: ``(n, D)`` vectors of the windows.
        windows: n of them.
        ridge: weight of the squared coefficients; 0: the one that fits best in files that were left out, or 3000
            where these are few.
        scale: factor of the vectors.

    Returns:
        Weights ``(4, D)`` and bias ``(4,)`` for unscaled vectors.

    Examples:
        >>> rows = np.array([[-1.0], [0.0], [1.0]], np.float32)
        >>> each, good = np.arange(3), np.ones(3, bool)
        >>> windows = NearWindows(each, np.ones((3, 4)), 2 * rows * np.ones(4) + 1, each, good)
        >>> weight, bias = fit_class(rows, windows, ridge=1e-6, scale=1.0)
        >>> weight[:, 0].round(3).tolist(), bias.round(3).tolist()
        ([2.0, 2.0, 2.0, 2.0], [1.0, 1.0, 1.0, 1.0])
    """
    design = np.empty((len(rows), rows.shape[1] + 1), np.float32)
    design[:, :-1] = rows
    design[:, :-1] *= np.float32(scale)
    design[:, -1] = 1
    problem = _Problem.of(design, windows)
    ridge = ridge or problem.best_ridge()
    coefficients = problem.unwhiten.T @ (problem.solve(ridge, np.arange(len(rows))).T @ design)
    return coefficients[:, :-1] * scale, coefficients[:, -1] + problem.mean


@dataclass(frozen=True, eq=False)
class _Problem:
    """The regression of a class by the products of its vectors, as it mostly has fewer windows than features.

    Attributes:
        windows: n of them.
        products: ``(n, n)`` of the vectors.
        mean: of the targets ``(4,)``.
        unwhiten: ``(4, 4)``, turns whitened targets into those without their mean.
        white: the whitened targets ``(n, 4)``.
    """

    windows: NearWindows
    products: np.ndarray
    mean: np.ndarray
    unwhiten: np.ndarray
    white: np.ndarray

    @classmethod
    def of(cls, design: np.ndarray, windows: NearWindows) -> _Problem:
        """Return the problem of vectors ``(n, D + 1)`` whose last column is the constant."""
        mean = windows.targets.mean(axis=0)
        whiten, unwhiten = whitening(windows.targets - mean)
        white = ((windows.targets - mean) @ whiten).astype(np.float32)
        return cls(windows, design @ design.T, mean, unwhiten, white)

    def solve(self, ridge: float, learned: np.ndarray) -> np.ndarray:
        """Return what the vectors of the windows ``learned`` ``(m,)`` are multiplied by in the weights, ``(m, 4)``."""
        from sklearn.kernel_ridge import KernelRidge  # takes as long to load as torch

        products = self.products[np.ix_(learned, learned)]
        return KernelRidge(alpha=ridge, kernel="precomputed").fit(products, self.white[learned]).dual_coef_

    def best_ridge(self) -> float:
        """Return the ridge with which good windows fit their objects best, moved by what other files teach."""
        # Neighbours in the list of files are often of one scene, so each part is a run of files.
        of_class, place = np.unique(self.windows.files, return_inverse=True)
        parts = place * _PARTS // len(of_class)
        good = self.windows.good
        if len(of_class) < _LEAST_FILES or len(np.unique(parts[good])) < _PARTS:
            return _RIDGES[0]
        objects = geometry.decode(self.windows.boxes, self.windows.targets)

        def mean_overlap(ridge: float) -> float:
            overlaps = []
            for part in range(_PARTS):
                left_out, learned = np.flatnonzero(good & (parts == part)), np.flatnonzero(parts != part)
                white = self.products[np.ix_(left_out, learned)] @ self.solve(ridge, learned)
                moved = geometry.decode(self.windows.boxes[left_out], white @ self.unwhiten + self.mean)
                overlaps.append(geometry.iou_of_pairs(moved, objects[left_out]))
            return float(np.concatenate(overlaps).mean())

        return _highest(mean_overlap, _RIDGES)


def whitening(centred: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the symmetric matrix that makes the covariance of centred targets the identity, and the inverse matrix."""
    values, vectors = np.linalg.eigh(centred.T @ centred / len(centred))
    root = np.sqrt(values + _MIN_VARIANCE)
    return vectors @ np.diag(1 / root) @ vectors.T, vectors @ np.diag(root) @ vectors.T


def _highest(function: Callable[[float], float], values: Sequence[float]) -> float:
    """Return the value at which a function with one maximum is highest, uphill from the first.

    Examples:
        >>> _highest(lambda x: -abs(x - 5), [8.0, 4.0, 2.0, 1.0])
        4.0
    """
    best, height = values[0], function(values[0])
    for value in values[1:]:
        if (other := function(value)) < height:
            break
        best, height = value, other
    return best
