"""The SVM solver against closed forms and against scikit-learn's LinearSVC."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.svm import LinearSVC

from sppdet.training import svm
from sppdet.training.svm import Problem
from sppdet.utils.errors import SppdetError


def data(rng, positives: int, negatives: int, dimension: int, shift: float = 0.4):
    """Return float16 rows of two overlapping clouds, and their labels."""
    labels = np.repeat([1, -1], [positives, negatives])
    rows = rng.normal(size=(len(labels), dimension)) + shift * labels[:, None]
    return rows.astype(np.float16), labels


def primal(weight, intercept, x, labels, problem) -> float:
    """Compute 1/2 |w|^2 + 1/2 b^2 + C sum c_i hinge_i in double precision."""
    cost = problem.C * np.where(labels > 0, problem.positive_weight, 1)
    hinge = np.maximum(0, 1 - labels * (x @ weight + intercept))
    of_constant = intercept / problem.bias if problem.bias else 0
    return (weight @ weight + of_constant**2) / 2 + cost @ hinge


def reference(x, labels, problem) -> LinearSVC:
    solver = LinearSVC(
        C=problem.C, loss="hinge", dual=True, class_weight={1: problem.positive_weight, -1: 1},
        fit_intercept=problem.bias > 0, intercept_scaling=problem.bias or 1, tol=1e-4, max_iter=200_000, random_state=0,
    )  # fmt: skip
    return solver.fit(x, labels)


def check(rows, labels, problem, fitted) -> None:
    """Compare with scikit-learn: the objective is at most 0.1% higher, the margins are close."""
    x = rows.astype(np.float64) * problem.scale
    best = reference(x, labels, problem)
    expected = primal(best.coef_[0], float(np.ravel(best.intercept_)[0]), x, labels, problem)
    ours = primal(fitted.weight.astype(np.float64) / problem.scale, fitted.intercept, x, labels, problem)
    assert ours <= expected * 1.001
    margins = svm.margins(rows, np.arange(len(rows)), fitted)
    np.testing.assert_allclose(margins, best.decision_function(x), atol=0.02 * np.abs(margins).max())
    assert svm.objective(margins, labels, fitted, problem) == pytest.approx(ours, rel=1e-3)


@pytest.mark.parametrize("positive_weight", [1.0, 2.0])
@pytest.mark.parametrize("C", [1e-3, 0.1])
@pytest.mark.parametrize("counts", [(40, 60), (3, 300), (200, 5)])
def test_the_objective_is_that_of_scikit_learn(C, positive_weight, counts):
    rows, labels = data(np.random.default_rng(0), *counts, 20)
    problem = Problem(C, positive_weight, bias=10.0, scale=0.7, tolerance=1e-4, max_epochs=20_000)
    fitted = svm.fit(rows, np.arange(len(rows)), labels, problem)
    assert fitted.converged and fitted.weight.dtype == np.float32
    check(rows, labels, problem, fitted)


def test_more_features_than_rows():
    rows, labels = data(np.random.default_rng(1), 10, 30, 400, shift=0.1)
    problem = Problem(scale=1.0, tolerance=1e-4)
    check(rows, labels, problem, svm.fit(rows, np.arange(40), labels, problem))


def test_float16_extremes():
    # The largest number, the smallest subnormal and zeros are read as NumPy reads them.
    rows, labels = data(np.random.default_rng(2), 20, 20, 10)
    rows[0, 0], rows[25, 0], rows[1, 1], rows[2] = 65504, -65504, 6e-8, 0
    problem = Problem(C=1e-2, scale=1e-4, tolerance=1e-5, max_epochs=20_000)
    check(rows, labels, problem, svm.fit(rows, np.arange(40), labels, problem))
    tiny = np.full((1, 4), 6e-8, np.float16)
    probe = svm.Fit(np.full(4, 1e6, np.float32), 0.5, None, 0, True)
    expected = 4e6 * float(tiny[0, 0]) + 0.5
    np.testing.assert_allclose(svm.margins(tiny, np.array([0]), probe), [expected], rtol=1e-6)


def test_two_rows_inside_the_margin():
    # One feature, +1 and -1. While both lie inside the margin every alpha is at its bound, C * c_i, so
    # w = 0.01 * (2 + 1) and the constant feature's weight is 0.01 * (2 - 1) * bias; with bias 3 the intercept is
    # 3 * 0.03. The margins, 0.12 and 0.06, are below 1: consistent.
    rows = np.array([[1], [-1]], np.float16)
    fitted = svm.fit(rows, np.arange(2), np.array([1, -1]), Problem(C=0.01, positive_weight=2, bias=3))
    assert fitted.weight[0] == pytest.approx(0.03, rel=1e-5)
    assert fitted.intercept == pytest.approx(0.09, rel=1e-5)
    np.testing.assert_allclose(fitted.alpha, [0.02, 0.01])


def test_separable_rows_get_the_widest_margin():
    # With a large C the plane lies halfway between 1 and 5: w = 2 / (5 - 1), intercept -1.5, up to the cost of the
    # intercept, which a large bias makes small.
    rows = np.array([[5], [1], [7], [0]], np.float16)
    problem = Problem(C=1e3, bias=100, tolerance=1e-6, max_epochs=100_000)
    fitted = svm.fit(rows, np.arange(4), np.array([1, -1, 1, -1]), problem)
    assert fitted.weight[0] == pytest.approx(0.5, abs=2e-3)
    assert fitted.intercept == pytest.approx(-1.5, abs=4e-3)
    assert (fitted.alpha[2:] == 0).all()  # 7 and 0 support nothing


def test_the_scale_is_part_of_the_weights():
    rows, labels = data(np.random.default_rng(3), 20, 30, 5)
    scaled = svm.fit(rows * np.float16(4), np.arange(50), labels, Problem(scale=0.25, tolerance=1e-4))
    plain = svm.fit(rows, np.arange(50), labels, Problem(scale=1.0, tolerance=1e-4))
    np.testing.assert_allclose(scaled.weight * 4, plain.weight, rtol=1e-4, atol=1e-6)


def test_rows_are_picked_by_index():
    rows, labels = data(np.random.default_rng(4), 20, 30, 6)
    index = np.array([3, 30, 7, 41, 12, 25])
    problem = Problem(C=0.1, tolerance=1e-4)
    shared = svm.fit(rows, index, labels[index], problem)
    alone = svm.fit(rows[index], np.arange(6), labels[index], problem)
    np.testing.assert_array_equal(shared.weight, alone.weight)
    np.testing.assert_array_equal(svm.margins(rows, index, shared), svm.margins(rows[index], np.arange(6), alone))


def test_a_warm_start_reaches_the_same_solution_sooner():
    rows, labels = data(np.random.default_rng(5), 30, 200, 20)
    problem = Problem(C=0.05, tolerance=1e-4, max_epochs=20_000)
    index = np.arange(len(rows))
    cold = svm.fit(rows, index, labels, problem)
    kept = cold.alpha.copy()
    warm = svm.fit(rows, index, labels, problem, alpha=cold.alpha)
    assert warm.epochs < cold.epochs and warm.converged
    np.testing.assert_array_equal(cold.alpha, kept)  # those of the caller stay as they are
    check(rows, labels, problem, warm)
    # Variables of another problem, even out of bounds, cost time only.
    wild = svm.fit(rows, index, labels, problem, alpha=np.full(len(rows), 9.0))
    check(rows, labels, problem, wild)


@pytest.mark.parametrize("bias", [10.0, 0.0])
def test_liblinear_is_the_same_problem(bias):
    rows, labels = data(np.random.default_rng(6), 30, 50, 8)
    problem = Problem(C=0.01, bias=bias, scale=0.5, max_epochs=50_000)
    fitted = svm.fit_liblinear(rows, np.arange(80), labels, problem)
    assert fitted.converged and fitted.alpha is None and (fitted.intercept == 0) == (bias == 0)
    check(rows, labels, problem, fitted)
    check(rows, labels, problem, svm.fit(rows, np.arange(80), labels, problem))


def test_a_row_of_zeros_without_constant_feature_is_inside_the_margin_and_changes_nothing():
    rows = np.array([[0, 0], [2, 0], [0, 2]], np.float16)
    fitted = svm.fit(rows, np.arange(3), np.array([1, 1, -1]), Problem(C=1.0, bias=0.0))
    np.testing.assert_allclose(fitted.weight, [0.5, -0.5], atol=1e-2)
    assert fitted.converged and fitted.alpha[0] == 2.0 and fitted.intercept == 0  # the bound: C * positive_weight


def test_the_iteration_limit_is_reported():
    rows, labels = data(np.random.default_rng(7), 50, 50, 5, shift=0.05)
    problem = Problem(C=10.0, tolerance=1e-9, max_epochs=2)
    for solve in (svm.fit, svm.fit_liblinear):
        assert not solve(rows, np.arange(100), labels, problem).converged


@pytest.mark.parametrize("label", [1, -1])
def test_rows_with_equal_labels_all_reach_their_margin(label):
    """A class whose objects fill their images has no negatives; liblinear does not take that."""
    rows, labels = np.random.default_rng(0).random((9, 4)).astype(np.float16), np.full(9, label)
    fitted = svm.fit(rows, np.arange(9), labels, Problem(C=10))
    assert fitted.converged
    np.testing.assert_array_less(1 - 0.02, label * svm.margins(rows, np.arange(9), fitted))
    with pytest.raises(SppdetError, match="liblinear needs objects and other windows"):
        svm.fit_liblinear(rows, np.arange(9), labels, Problem())


def test_rows_that_are_not_float16_are_refused():
    rows, labels = np.eye(2, dtype=np.float32), np.array([1, -1])
    with pytest.raises(TypeError, match="rows must be float16, not float32"):
        svm.fit(rows, np.arange(2), labels, Problem())


def two_clouds(count: int = 60, dimension: int = 10, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return rows of two classes that overlap, and their labels."""
    rng = np.random.default_rng(seed)
    labels = np.where(np.arange(count) % 3 == 0, 1, -1)
    rows = rng.normal(size=(count, dimension)) + 0.7 * labels[:, None]
    return rows.astype(np.float16), labels


def test_a_fit_on_from_some_rows_and_the_rest_of_an_svm_starts_at_it():
    rows, labels = two_clouds()
    problem = Problem(C=0.01, tolerance=1e-6)
    every = np.arange(len(rows))
    whole = svm.fit(rows, every, labels, problem)
    some = every[::2]
    alpha = svm.optimal_alpha(svm.margins(rows, some, whole), labels[some], problem)
    rest = svm.remainder(rows, some, labels[some], alpha, whole, problem)
    again = svm.fit(rows, some, labels[some], replace(problem, tolerance=0.01), alpha, rest)
    np.testing.assert_allclose(again.weight, whole.weight, atol=1e-3)
    assert again.intercept == pytest.approx(whole.intercept, abs=1e-2)


def test_new_rows_move_a_fit_on_towards_the_fit_of_all_rows():
    rows, labels = two_clouds(90)
    problem = Problem(C=0.01, tolerance=1e-6)
    old, new = np.arange(60), np.arange(60, 90)[labels[60:] < 0]
    start = svm.fit(rows, old, labels[old], problem)
    expected = svm.fit(rows, np.concatenate([old, new]), labels[[*old, *new]], problem)
    alpha = svm.optimal_alpha(svm.margins(rows, old, start), labels[old], problem)
    rest = svm.remainder(rows, old, labels[old], alpha, start, problem)
    index = np.concatenate([old, new])
    fitted = svm.fit(rows, index, labels[index], problem, np.concatenate([alpha, np.zeros(len(new))]), rest)

    def cost(svm_fit: svm.Fit) -> float:
        return svm.objective(svm.margins(rows, index, svm_fit), labels[index], svm_fit, problem)

    assert cost(fitted) - cost(expected) < 0.5 * (cost(start) - cost(expected))
