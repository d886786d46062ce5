"""The fit of a class's box regression: planted weights are recovered, and the ridge fits images that were left out."""

from __future__ import annotations

import numpy as np
import pytest

from sppdet.ops import boxes as geometry
from sppdet.training import box_fit
from sppdet.training.box_fit import NearWindows, fit_class, whitening


def near(targets: np.ndarray, files: np.ndarray | None = None) -> NearWindows:
    """Return windows of 100 x 100 pixels with these targets, by default each in a file of its own."""
    each = np.arange(len(targets))
    return NearWindows(
        each, np.tile([100.0, 100, 200, 200], (len(targets), 1)), targets, each if files is None else files
    )


@pytest.fixture
def planted():
    """500 vectors of 6 features, and targets that are a linear function of them."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(500, 6)).astype(np.float32)
    weight, bias = rng.normal(size=(4, 6)), rng.normal(size=4)
    return rows, weight, bias, rows @ weight.T + bias


@pytest.mark.parametrize("scale", [1.0, 0.1, 7.0])
def test_planted_weights_are_recovered(planted, scale):
    rows, weight, bias, targets = planted
    fitted_weight, fitted_bias = fit_class(rows, near(targets), ridge=1e-4, scale=scale)
    np.testing.assert_allclose(fitted_weight, weight, atol=1e-3)
    np.testing.assert_allclose(fitted_bias, bias, atol=1e-3)


def test_fewer_windows_than_features(planted):
    rows, _, _, targets = planted
    fitted_weight, fitted_bias = fit_class(rows[:4], near(targets[:4]), ridge=1e-6, scale=1.0)
    np.testing.assert_allclose(rows[:4] @ fitted_weight.T + fitted_bias, targets[:4], atol=1e-2)


def test_an_infinite_ridge_leaves_the_mean_shift(planted):
    rows, _, _, targets = planted
    fitted_weight, fitted_bias = fit_class(rows, near(targets), ridge=1e12, scale=1.0)
    np.testing.assert_allclose(fitted_weight, 0, atol=1e-6)
    np.testing.assert_allclose(fitted_bias, targets.mean(axis=0), atol=1e-6)


def test_ridge_by_hand():
    # One feature, two windows at +-1 with targets +-(1, 0, 0, 0). Covariance diag(1, 0, 0, 0), whitened by
    # 1 / sqrt(1.001); ridge 2: w = sum(x t) / (sum(x x) + 2) = 2 / 4 of it, and the whitening cancels.
    rows = np.array([[1], [-1]], np.float32)
    weight, bias = fit_class(rows, near(np.array([[1.0, 0, 0, 0], [-1, 0, 0, 0]])), ridge=2.0, scale=1.0)
    np.testing.assert_allclose(weight, [[0.5], [0], [0], [0]], atol=1e-6)
    np.testing.assert_allclose(bias, np.zeros(4), atol=1e-6)


def test_whitened_targets_have_unit_covariance():
    rng = np.random.default_rng(1)
    targets = rng.normal(size=(2000, 4)) @ rng.normal(size=(4, 4)) * 3
    targets -= targets.mean(axis=0)
    whiten, unwhiten = whitening(targets)
    white = targets @ whiten
    np.testing.assert_allclose(white.T @ white / 2000, np.eye(4), atol=0.02)  # 0.001 is added to each variance
    np.testing.assert_allclose(whiten @ unwhiten, np.eye(4), atol=1e-9)


# The choice of the ridge


def noisy(noise: float, files: int = 20, of_each: int = 10, seed: int = 0) -> tuple[np.ndarray, NearWindows]:
    """Return vectors of 300 features, of norm 20, and windows whose small shifts depend on them, but for noise."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(files * of_each, 300)).astype(np.float32)
    rows *= 20 / np.linalg.norm(rows, axis=1, keepdims=True)
    shifts = rows @ rng.normal(size=(300, 4)) / 20 + noise * rng.normal(size=(len(rows), 4))
    return rows, near(0.1 * shifts / np.hypot(1, noise), np.repeat(np.arange(files), of_each))


def fitted_ridge(rows: np.ndarray, windows: NearWindows) -> float:
    """Return the ridge whose fit is that of the choice."""
    chosen = fit_class(rows, windows, 0, 1.0)[0]
    (ridge,) = [each for each in box_fit._RIDGES if np.array_equal(fit_class(rows, windows, each, 1.0)[0], chosen)]
    return ridge


def test_the_more_noise_the_larger_the_ridge():
    ridges = [fitted_ridge(*noisy(noise)) for noise in (0.1, 100.0)]
    assert ridges[0] == box_fit._RIDGES[0] < ridges[1]


def test_the_choice_fits_windows_of_other_files_best():
    rows, windows = noisy(0.7)
    learned, others = windows.files < 10, windows.files >= 10

    def at(keep: np.ndarray) -> NearWindows:
        return NearWindows(windows.images[keep], windows.boxes[keep], windows.targets[keep], windows.files[keep])

    def overlap(learned: np.ndarray, others: np.ndarray, ridge: float) -> np.ndarray:
        """Return the IoU of windows ``others``, moved by what the others teach, with their objects."""
        problem = box_fit._Problem.of(np.pad(rows, ((0, 0), (0, 1)), constant_values=1), windows)
        weights = problem.solve(ridge, np.flatnonzero(learned))
        white = problem.products[np.ix_(others, learned)] @ weights
        moved = geometry.decode(windows.boxes[others], white @ problem.unwhiten + problem.mean)
        return geometry.iou_of_pairs(moved, geometry.decode(windows.boxes, windows.targets)[others])

    judged = geometry.iou_of_pairs(windows.boxes, geometry.decode(windows.boxes, windows.targets)) >= 0.6
    means = [
        np.concatenate([overlap(learned, others & judged, r), overlap(others, learned & judged, r)]).mean()
        for r in box_fit._RIDGES
    ]
    assert fitted_ridge(rows, windows) == box_fit._RIDGES[int(np.argmax(means))]


def test_windows_of_one_file_do_not_judge_each_other():
    """Copies of windows in one file would be known by heart."""
    rows, windows = noisy(100.0, files=20, of_each=2)
    copies = np.repeat(np.arange(len(rows)), 5)
    copied = NearWindows(copies, windows.boxes[copies], windows.targets[copies], windows.files[copies])
    assert fitted_ridge(rows[copies], copied) > box_fit._RIDGES[0]
    apart = near(copied.targets, np.tile(np.arange(2), len(copies) // 2))  # half of the copies in either file
    assert fitted_ridge(rows[copies], apart) == box_fit._RIDGES[0]


@pytest.mark.parametrize("files", [[0, 0, 0, 0], [0, 0, 0, 1]])
def test_without_windows_to_judge_by_in_several_files_the_ridge_is_the_usual_one(files):
    targets = np.array([[0.1, 0, 0, 0], [0, 0.1, 0, 0], [0, 0, 0.1, 0], [0, 0, 0, 0]])  # the last one is an object
    rows = np.eye(4, dtype=np.float32)
    windows = near(targets, np.array(files))
    np.testing.assert_array_equal(fit_class(rows, windows, 0, 1.0)[0], fit_class(rows, windows, 3000, 1.0)[0])
