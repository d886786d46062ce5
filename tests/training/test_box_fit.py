"""The fit of a class's box regression: planted weights are recovered, and the ridge fits images that were left out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sppdet.ops import boxes as geometry
from sppdet.training import box_fit
from sppdet.training.box_fit import NearWindows, fit_class, whitening


def near(targets: np.ndarray, files: np.ndarray | None = None) -> NearWindows:
    """Return good windows of 100 x 100 pixels with these targets, by default each in a file of its own."""
    each = np.arange(len(targets))
    boxes = np.tile([100.0, 100, 200, 200], (len(each), 1))
    return NearWindows(each, boxes, targets, each if files is None else files, np.ones(len(each), bool))


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


def noisy(noise: float, files: int = 60, of_each: int = 4, seed: int = 0) -> tuple[np.ndarray, NearWindows]:
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
    assert ridges == [min(box_fit._RIDGES), max(box_fit._RIDGES)]


def test_the_choice_fits_good_windows_of_other_files_best():
    rows, windows = noisy(1.7)
    windows = replace(windows, good=np.random.default_rng(1).random(len(rows)) < 0.5)
    objects = geometry.decode(windows.boxes, windows.targets)
    problem = box_fit._Problem.of(np.pad(rows, ((0, 0), (0, 1)), constant_values=1), windows)

    def overlap(ridge: float) -> float:
        """Return the mean IoU of good windows with their objects, moved by what the other half of the files teaches."""
        overlaps = []
        for half in (windows.files < 30, windows.files >= 30):
            others = ~half & windows.good
            white = problem.products[np.ix_(others, half)] @ problem.solve(ridge, np.flatnonzero(half))
            moved = geometry.decode(windows.boxes[others], white @ problem.unwhiten + problem.mean)
            overlaps.append(geometry.iou_of_pairs(moved, objects[others]))
        return float(np.concatenate(overlaps).mean())

    assert fitted_ridge(rows, windows) == max(box_fit._RIDGES, key=overlap)
    assert fitted_ridge(rows, windows) not in (box_fit._RIDGES[0], box_fit._RIDGES[-1])


def test_windows_of_one_file_do_not_judge_each_other():
    """Copies of windows in other files would be known by heart."""
    rows, windows = noisy(100.0, files=60, of_each=1)
    copies = np.repeat(np.arange(60), 4)
    copied = near(windows.targets[copies], windows.files[copies])
    assert fitted_ridge(rows[copies], copied) > min(box_fit._RIDGES)
    apart = replace(copied, files=np.arange(240) % 4 * 15 + np.arange(240) // 16)  # each copy in another quarter
    assert fitted_ridge(rows[copies], apart) == min(box_fit._RIDGES)


@pytest.mark.parametrize(
    ("files", "good"), [(49, slice(None)), (60, slice(0)), (60, slice(0, 100))], ids=["few", "none", "in one half"]
)
def test_without_enough_to_judge_by_the_ridge_is_the_usual_one(files, good):
    rows, windows = noisy(0.1, files)
    are_good = np.zeros(len(rows), bool)
    are_good[good] = True
    assert fitted_ridge(rows, replace(windows, good=are_good)) == 3000
