"""Per-class linear SVMs: hinge loss, dual coordinate descent on dense half-precision rows.

The problem is liblinear's ``-s 3 -B bias -w1 positive_weight``, which R-CNN and SPP_net solved::

    minimise  1/2 |w|^2 + 1/2 b^2 + C sum_i c_i max(0, 1 - y_i (w . x_i + b * bias))

with c_i = positive_weight for positives, else 1; the constant feature's weight b is regularised with the rest.
The solver is Hsieh et al. 2008 (the one inside liblinear), run on rows that stay in float16 as the conv maps are
stored. It differs from ``LinearSVC`` in three ways that hard-negative mining needs: rows are dense and never copied
to float64 (liblinear's copies are 16 times larger), classes share them by index, and a fit goes on from the dual
variables of the one before. ``solver="liblinear"`` uses scikit-learn instead.

Names: R rows, D features, n the rows of one class's problem.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from sppdet.detection import LinearSVMs
from sppdet.utils import SppdetError, compiled


@dataclass(frozen=True)
class Problem:
    """What the SVMs of all classes have in common.

    Attributes:
        C, positive_weight, bias: see the module's formula.
        scale: features are multiplied by this first.
        tolerance: stop when the projected gradients of an epoch span less than this (liblinear's epsilon).
    """

    C: float = 1e-3
    positive_weight: float = 2.0
    bias: float = 10.0
    scale: float = 1.0
    tolerance: float = 0.01
    max_epochs: int = 1000
    seed: int = 3


@dataclass(frozen=True, eq=False)
class Fit:
    """One class's SVM: ``margin = rows @ weight + intercept``, on the unscaled features.

    ``alpha`` are the dual variables, for a warm start; None from liblinear. ``epochs`` is 0 from liblinear.
    """

    weight: np.ndarray
    intercept: float
    alpha: np.ndarray | None
    epochs: int
    converged: bool


def fit(
    rows: np.ndarray, index: np.ndarray, labels: np.ndarray, problem: Problem, alpha: np.ndarray | None = None
) -> Fit:
    """Fit one class by dual coordinate descent.

    Args:
        rows: float16 ``(R, D)``, shared by all classes.
        index: ``(n,)`` which rows belong to this class's problem.
        labels: ``(n,)`` +1 or -1; all may be the same: the formula does not need both.
        alpha: ``(n,)`` dual variables to start from; zeros if not given.

    Raises:
        TypeError: rows of another kind, whose bits would be taken for float16's.
    """
    labels = np.asarray(labels, np.float64)
    bounds = problem.C * np.where(labels > 0, problem.positive_weight, 1.0)
    alpha = np.zeros(len(index)) if alpha is None else np.clip(alpha, 0, bounds)
    weight = np.zeros(rows.shape[1], np.float32)
    bias_weight, epochs, converged = _descend(
        _bits(rows), np.asarray(index, np.int64), labels, bounds, alpha, weight,
        problem.scale, problem.bias, problem.tolerance, problem.max_epochs, problem.seed,
    )  # fmt: skip
    return Fit(weight * np.float32(problem.scale), bias_weight * problem.bias, alpha, epochs, converged)


def fit_liblinear(rows: np.ndarray, index: np.ndarray, labels: np.ndarray, problem: Problem) -> Fit:
    """The same problem by scikit-learn's ``LinearSVC``: the reference, slower and with more memory.

    Raises:
        SppdetError: without positives, or without negatives, which it does not take.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.svm import LinearSVC

    if not (np.any(labels > 0) and np.any(labels < 0)):
        raise SppdetError("svm.solver: liblinear needs objects and other windows of each class; set it to dual")
    solver = LinearSVC(
        C=problem.C,
        loss="hinge",
        dual=True,
        class_weight={1: problem.positive_weight, -1: 1.0},
        intercept_scaling=problem.bias,
        random_state=problem.seed,
        max_iter=problem.max_epochs,
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        solver.fit(rows[index].astype(np.float32) * np.float32(problem.scale), np.asarray(labels, np.int64))
    converged = not any(issubclass(warning.category, ConvergenceWarning) for warning in caught)
    weight = (solver.coef_[0] * problem.scale).astype(np.float32)
    return Fit(weight, float(solver.intercept_[0]), None, 0, converged)


SOLVERS = {"dual": fit, "liblinear": fit_liblinear}


def stack(fits: list[Fit]) -> LinearSVMs:
    """The SVMs of all classes as one."""
    bias = np.array([fitted.intercept for fitted in fits], np.float32)
    return LinearSVMs(np.stack([fitted.weight for fitted in fits]), bias)


def never(dimension: int) -> Fit:
    """The SVM of a class without positives: no window is ever of it."""
    return Fit(np.zeros(dimension, np.float32), -100.0, None, 0, True)


def objective(margins: np.ndarray, labels: np.ndarray, fitted: Fit, problem: Problem) -> float:
    """The primal objective of the module's formula at ``margins`` ``(n,)``."""
    cost = problem.C * np.where(labels > 0, problem.positive_weight, 1.0)
    weight = fitted.weight.astype(np.float64) / problem.scale
    square = weight @ weight + (fitted.intercept / problem.bias) ** 2
    return float(square / 2 + cost @ np.maximum(0, 1 - labels * margins))


def margins(rows: np.ndarray, index: np.ndarray, fitted: Fit) -> np.ndarray:
    """``(n,)`` margins of the rows at ``index`` of float16 ``rows``; scores, not probabilities."""
    found = np.empty(len(index))
    _dots(_bits(rows), np.asarray(index, np.int64), fitted.weight, found)
    return found + fitted.intercept


def _bits(rows: np.ndarray) -> np.ndarray:
    if rows.dtype != np.float16:
        raise TypeError(f"rows must be float16, not {rows.dtype}")
    return rows.view(np.uint16)


@intrinsic
def _widen(typing_context, bits):
    """The bits of a float16 as float32: one instruction where the processor has it, 8 or 16 at a time."""

    def codegen(context, builder, signature, arguments):
        half = builder.bitcast(arguments[0], ir.HalfType())
        return builder.fpext(half, ir.FloatType())

    return types.float32(types.uint16), codegen


@compiled(fastmath=True)
def _dot(bits, weight):
    total = np.float32(0)
    for d in range(weight.shape[0]):
        total += _widen(bits[d]) * weight[d]
    return total


@compiled(fastmath=True)
def _add(factor, bits, weight):
    for d in range(weight.shape[0]):
        weight[d] += factor * _widen(bits[d])


@compiled(fastmath=True)
def _square(bits):
    total = np.float32(0)
    for d in range(bits.shape[0]):
        value = _widen(bits[d])
        total += value * value
    return total


@compiled()
def _dots(rows, index, weight, found):
    for i in range(index.shape[0]):
        found[i] = _dot(rows[index[i]], weight)


@compiled()
def _descend(rows, index, labels, bounds, alpha, weight, scale, bias, tolerance, max_epochs, seed):
    """Hsieh et al. 2008, algorithm 3 (with shrinking); ``alpha`` and ``weight`` are updated in place."""
    np.random.seed(seed)
    n = index.shape[0]
    bias_weight = 0.0
    diagonal = np.empty(n)
    for i in range(n):
        row = rows[index[i]]
        diagonal[i] = scale * scale * _square(row) + bias * bias
        if alpha[i] > 0:
            _add(np.float32(alpha[i] * labels[i] * scale), row, weight)
            bias_weight += alpha[i] * labels[i] * bias

    active = np.arange(n)
    count = n
    old_high, old_low = np.inf, -np.inf
    for epoch in range(max_epochs):
        high, low = -np.inf, np.inf
        for i in range(count):
            j = i + np.random.randint(count - i)
            active[i], active[j] = active[j], active[i]
        position = 0
        while position < count:
            i = active[position]
            row = rows[index[i]]
            gradient = labels[i] * (scale * _dot(row, weight) + bias_weight * bias) - 1
            projected = gradient
            if alpha[i] == 0:
                if gradient > old_high:  # stays at its bound: out of the active set
                    count -= 1
                    active[position], active[count] = active[count], active[position]
                    continue
                projected = min(gradient, 0.0)
            elif alpha[i] == bounds[i]:
                if gradient < old_low:
                    count -= 1
                    active[position], active[count] = active[count], active[position]
                    continue
                projected = max(gradient, 0.0)
            high, low = max(high, projected), min(low, projected)
            if abs(projected) > 1e-12:
                old = alpha[i]
                alpha[i] = min(max(old - gradient / diagonal[i], 0.0), bounds[i])
                change = (alpha[i] - old) * labels[i]
                _add(np.float32(change * scale), row, weight)
                bias_weight += change * bias
            position += 1
        if high - low <= tolerance:
            if count == n:
                return bias_weight, epoch + 1, True
            count, old_high, old_low = n, np.inf, -np.inf  # check those that were set aside
            continue
        old_high = high if high > 0 else np.inf
        old_low = low if low < 0 else -np.inf
    return bias_weight, max_epochs, False
