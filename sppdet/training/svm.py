"""Per-class linear SVMs: hinge loss, dual coordinate descent on dense half-precision rows.

The problem is liblinear's ``-s 3 -B bias -w1 positive_weight``, which R-CNN and SPP_net solved::

    minimise  1/2 |w|^2 + 1/2 b^2 + C sum_i c_i max(0, 1 - y_i (w . x_i + b * bias))

with c_i = positive_weight for positives, else 1; the weight b of the constant feature is regularised like the others.
The solver is that of Hsieh et al. 2008, which liblinear has, too. It reads rows in float16, as the feature maps are
stored. Hard-negative mining needs three properties that ``LinearSVC`` does not have: rows are dense and never copied to
float64 (liblinear's copies are 16 times larger), classes share rows by index, and a fit starts from the dual variables
of the previous one. ``solver="liblinear"`` uses scikit-learn instead.

Names: R rows, D features, n rows of one class's problem.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from sppdet.detection import LinearSVMs
from sppdet.utils import SppdetError, compiled

_NEVER = -100.0  # margin of every window for a class without positives: far below any threshold
_SMALLEST_STEP = 1e-12  # projected gradients below this change nothing, as in liblinear
_SMALLEST_DIAGONAL = 1e-200


@dataclass(frozen=True)
class Problem:
    """The parameters that the SVMs of all classes share.

    Attributes:
        C: weight of the loss, see the module's formula.
        positive_weight: factor of the loss of positives.
        bias: value of the constant feature; 0 leaves it out.
        scale: factor of the features.
        tolerance: training stops when the projected gradients of an epoch span less than this (liblinear's epsilon).
        max_epochs: training stops after this many passes over the rows.
        seed: of the order of the rows.
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
    """The SVM of one class: ``margin = rows @ weight + intercept`` on the unscaled features.

    Attributes:
        weight: float32 ``(D,)``.
        intercept: the constant feature times its weight.
        alpha: ``(n,)`` dual variables for a warm start; None from liblinear.
        epochs: passes over the rows; 0 from liblinear.
        converged: whether training stopped before the limit of epochs.
    """

    weight: np.ndarray
    intercept: float
    alpha: np.ndarray | None
    epochs: int
    converged: bool


def fit(
    rows: np.ndarray,
    index: np.ndarray,
    labels: np.ndarray,
    problem: Problem,
    alpha: np.ndarray | None = None,
    fixed: tuple[np.ndarray, float] | None = None,
) -> Fit:
    """Fit the SVM of one class by dual coordinate descent.

    Args:
        rows: float16 ``(R, D)``, shared by all classes.
        index: ``(n,)`` the rows of this class's problem.
        labels: ``(n,)`` +1 or -1; all may be equal: the formula does not need both.
        problem: the parameters.
        alpha: ``(n,)`` dual variables to start from; None starts from zeros. Not changed.
        fixed: a summand of the weights that stays as it is, and one of the intercept: what rows that are not here
            contribute to the SVM (`remainder`).

    Raises:
        TypeError: rows that are not float16.

    Examples:
        >>> rows = np.array([[1], [-1]], np.float16)
        >>> fitted = fit(rows, np.arange(2), np.array([1, -1]), Problem(C=0.01, positive_weight=2, bias=3))
        >>> margins(rows, np.arange(2), fitted).round(4).tolist()
        [0.12, 0.06]
    """
    labels = np.asarray(labels, np.float64)
    bounds = problem.C * np.where(labels > 0, problem.positive_weight, 1.0)
    alpha = np.zeros(len(index)) if alpha is None else np.clip(alpha, 0, bounds)
    weight, bias_weight = np.zeros(rows.shape[1], np.float32), 0.0
    if fixed is not None:
        weight = (fixed[0] / problem.scale).astype(np.float32)
        bias_weight = fixed[1] / problem.bias if problem.bias else 0.0
    bias_weight, epochs, converged = _descend(
        _bits(rows), np.asarray(index, np.int64), labels, bounds, alpha, weight, bias_weight,
        problem.scale, problem.bias, problem.tolerance, problem.max_epochs, problem.seed,
    )  # fmt: skip
    return Fit(weight * np.float32(problem.scale), bias_weight * problem.bias, alpha, epochs, converged)


def optimal_alpha(margins: np.ndarray, labels: np.ndarray, problem: Problem) -> np.ndarray:
    """Return dual variables ``(n,)`` with which an SVM is optimal for rows, from its margins on these.

    A row inside the margin is at its bound, as the optimum requires; a row outside of it has 0. Rows exactly on the
    margin may have any value, and have 0.

    Args:
        margins: ``(n,)``.
        labels: ``(n,)`` +1 or -1.
        problem: the parameters.
    """
    bounds = problem.C * np.where(labels > 0, problem.positive_weight, 1.0)
    return np.where(labels * margins < 1, bounds, 0.0)


def remainder(
    rows: np.ndarray, index: np.ndarray, labels: np.ndarray, alpha: np.ndarray, fitted: Fit, problem: Problem
) -> tuple[np.ndarray, float]:
    """Return what is left of the weights and the intercept of an SVM without the summands of some rows.

    `fit` with this as ``fixed``, and with the rows and their ``alpha``, starts at the SVM itself.

    Args:
        rows: float16 ``(R, D)``.
        index: ``(n,)`` rows.
        labels: ``(n,)`` +1 or -1.
        alpha: ``(n,)`` dual variables of the rows.
        fitted: the SVM.
        problem: the parameters.
    """
    factors = alpha * labels
    used = np.flatnonzero(factors)
    total = np.zeros(rows.shape[1])
    for part in np.array_split(used, max(1, len(used) // 256)):
        total += factors[part].astype(np.float32) @ rows[index[part]].astype(np.float32)
    weight = fitted.weight - (total * problem.scale**2).astype(np.float32)
    return weight, fitted.intercept - float(factors.sum()) * problem.bias**2


def fit_liblinear(rows: np.ndarray, index: np.ndarray, labels: np.ndarray, problem: Problem) -> Fit:
    """Fit the SVM of one class by scikit-learn's ``LinearSVC``, the reference; it takes more time and memory.

    Args:
        rows: float16 ``(R, D)``.
        index: ``(n,)`` the rows of this class's problem.
        labels: ``(n,)`` +1 or -1.
        problem: the parameters; ``tolerance`` is not used.

    Raises:
        SppdetError: all labels are equal, which ``LinearSVC`` does not accept.
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
        fit_intercept=problem.bias > 0,
        intercept_scaling=problem.bias or 1.0,
        random_state=problem.seed,
        max_iter=problem.max_epochs,
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        solver.fit(rows[index].astype(np.float32) * np.float32(problem.scale), np.asarray(labels, np.int64))
    converged = not any(issubclass(warning.category, ConvergenceWarning) for warning in caught)
    weight = (solver.coef_[0] * problem.scale).astype(np.float32)
    return Fit(weight, float(np.ravel(solver.intercept_)[0]), None, 0, converged)


# By the setting svm.solver. Only ``fit`` takes dual variables to start from.
SOLVERS: dict[str, Callable[..., Fit]] = {"dual": fit, "liblinear": fit_liblinear}


def stack(fits: Sequence[Fit]) -> LinearSVMs:
    """Return the SVMs of all classes as arrays, in the order of ``fits``."""
    bias = np.array([fitted.intercept for fitted in fits], np.float32)
    return LinearSVMs(np.stack([fitted.weight for fitted in fits]), bias)


def never(dimension: int) -> Fit:
    """Return the SVM of a class without positives, which no window is taken for."""
    return Fit(np.zeros(dimension, np.float32), _NEVER, None, 0, True)


def objective(margins: np.ndarray, labels: np.ndarray, fitted: Fit, problem: Problem) -> float:
    """Compute the primal objective of the module's formula.

    Args:
        margins: ``(n,)`` margins of the rows.
        labels: ``(n,)`` +1 or -1.
        fitted: the SVM with these margins.
        problem: the parameters.
    """
    cost = problem.C * np.where(labels > 0, problem.positive_weight, 1.0)
    weight = fitted.weight.astype(np.float64) / problem.scale
    of_constant = fitted.intercept / problem.bias if problem.bias else 0.0
    square = weight @ weight + of_constant**2
    return float(square / 2 + cost @ np.maximum(0, 1 - labels * margins))


def margins(rows: np.ndarray, index: np.ndarray, fitted: Fit) -> np.ndarray:
    """Compute the margins ``(n,)`` of the rows at ``index`` of float16 ``rows``; they are no probabilities.

    Raises:
        TypeError: rows that are not float16.
    """
    products = np.empty(len(index))
    _dots(_bits(rows), np.asarray(index, np.int64), fitted.weight, products)
    return products + fitted.intercept


def _bits(rows: np.ndarray) -> np.ndarray:
    """Return float16 rows as uint16, which Numba can read."""
    if rows.dtype != np.float16:
        raise TypeError(f"rows must be float16, not {rows.dtype}")
    return rows.view(np.uint16)


@intrinsic
def _widen(typing_context: Any, bits: Any) -> tuple:
    """Convert the bits of a float16 to float32: one instruction for 8 or 16 numbers where the processor has it."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Sequence) -> Any:
        half = builder.bitcast(arguments[0], ir.HalfType())
        return builder.fpext(half, ir.FloatType())

    return types.float32(types.uint16), codegen


@compiled(fastmath=True)
def _dot(bits: np.ndarray, weight: np.ndarray) -> np.float32:
    """Compute the product of a row, given by its bits, with a weight vector."""
    total = np.float32(0)
    for d in range(weight.shape[0]):
        total += _widen(bits[d]) * weight[d]  # type: ignore[call-arg]
    return total


@compiled(fastmath=True)
def _add(factor: np.float32, bits: np.ndarray, weight: np.ndarray) -> None:
    """Add a multiple of a row to a weight vector."""
    for d in range(weight.shape[0]):
        weight[d] += factor * _widen(bits[d])  # type: ignore[call-arg]


@compiled(fastmath=True)
def _square(bits: np.ndarray) -> np.float32:
    """Compute the squared norm of a row."""
    total = np.float32(0)
    for d in range(bits.shape[0]):
        value: np.float32 = _widen(bits[d])  # type: ignore[call-arg]
        total += value * value
    return total


@compiled()
def _dots(rows: np.ndarray, index: np.ndarray, weight: np.ndarray, products: np.ndarray) -> None:
    """Compute the products of the rows at ``index`` with a weight vector."""
    for i in range(index.shape[0]):
        products[i] = _dot(rows[index[i]], weight)


@compiled()
def _descend(
    rows: np.ndarray,
    index: np.ndarray,
    labels: np.ndarray,
    bounds: np.ndarray,
    alpha: np.ndarray,
    weight: np.ndarray,
    bias_weight: float,
    scale: float,
    bias: float,
    tolerance: float,
    max_epochs: int,
    seed: int,
) -> tuple[float, int, bool]:
    """Run algorithm 3 of Hsieh et al. 2008, with shrinking; update ``alpha`` and ``weight`` in place.

    Returns the weight of the constant feature, the number of epochs, and whether they were enough.
    """
    np.random.seed(seed)
    n = index.shape[0]
    diagonal = np.empty(n)
    for i in range(n):
        row = rows[index[i]]
        # Of a row of zeros without the constant feature it is 0; as in liblinear, alpha then goes to one of its bounds.
        diagonal[i] = max(scale * scale * _square(row) + bias * bias, _SMALLEST_DIAGONAL)
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
                if gradient > old_high:  # shrinking: it stays at its bound, so leave it out
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
            if abs(projected) > _SMALLEST_STEP:
                old = alpha[i]
                alpha[i] = min(max(old - gradient / diagonal[i], 0.0), bounds[i])
                change = (alpha[i] - old) * labels[i]
                _add(np.float32(change * scale), row, weight)
                bias_weight += change * bias
            position += 1
        if high - low <= tolerance:
            if count == n:
                return bias_weight, epoch + 1, True
            count, old_high, old_low = n, np.inf, -np.inf  # converged on the active rows: check the others, too
            continue
        old_high = high if high > 0 else np.inf
        old_low = low if low < 0 else -np.inf
    return bias_weight, max_epochs, False
