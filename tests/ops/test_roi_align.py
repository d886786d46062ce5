"""RoIAlign at several levels: values known in closed form, torchvision's RoIAlign level by level, and gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.ops import roi_align

from sppdet.ops.roi_align import pyramid_roi_align


def feature_map_of(channels_last: np.ndarray) -> torch.Tensor:
    """Return a map ``(H, W, C)`` as a float32 tensor ``(C, H, W)``."""
    return torch.from_numpy(np.asarray(channels_last, np.float32)).permute(2, 0, 1)


def random_windows(rng: np.random.Generator, height: int, width: int, count: int) -> np.ndarray:
    """Return float32 edges up to half a cell outside the map, a narrow window and one around the map at the end."""
    corner, other = (rng.integers(0, [width, height], (count, 2)) for _ in range(2))
    windows = np.concatenate([np.minimum(corner, other), np.maximum(corner, other) + 1], axis=1)
    windows = windows + rng.uniform(-0.45, 0.45, (count, 4))
    outermost = [[-0.5, -0.5, -0.45, height + 0.5], [-0.5, -0.5, width + 0.5, height + 0.5]]
    return np.concatenate([windows, outermost]).astype(np.float32)


def test_a_constant_map_gives_its_constant():
    rng = np.random.default_rng(0)
    constant = torch.full((3, 9, 12), 2.5)
    pooled = pyramid_roi_align(constant, random_windows(rng, 9, 12, 30), (3, 1))
    assert pooled.shape == (32, 10, 3) and pooled.dtype == torch.float32
    np.testing.assert_allclose(pooled, 2.5, rtol=1e-6)


def test_samples_between_known_cells():
    # The value rises from 0 in the middle of cell (0, 0) as 4 x y to the middle of cell (1, 1); the window lies
    # between the two middles.
    known = feature_map_of(np.array([[0, 0], [0, 4]])[..., None])
    window = np.array([[0.5, 0.5, 1.5, 1.5]], np.float32)
    assert pyramid_roi_align(known, window, (1,), samples=1).flatten().tolist() == [1]  # 4 / 2 / 2
    assert pyramid_roi_align(known, window, (1,), samples=0).flatten().tolist() == [1]  # the window is one cell long
    assert pyramid_roi_align(known, window, (2,), samples=1).flatten().tolist() == [0.25, 0.75, 0.75, 2.25]
    # Beyond the outermost middles a sample has the value of the nearest cell: the samples of the whole map are at x, y
    # of 0 and 1, those of its lower half at y of 3/4 and 1.
    windows = np.array([[0, 0, 2, 2], [0, 1, 2, 2]], np.float32)
    assert pyramid_roi_align(known, windows, (1,), samples=2).flatten().tolist() == [1, 1.75]


@pytest.mark.parametrize("samples", [0, 1, 2, 5])
def test_a_linear_ramp_gives_the_centre_of_every_bin(samples):
    height, width = 9, 12
    y, x = np.mgrid[:height, :width] + 0.5  # each cell holds the place of its own middle
    window = np.array([[1.3, 0.9, 10.9, 7.5]], np.float32)
    pooled = pyramid_roi_align(feature_map_of(np.stack([x, y], axis=2)), window, (2, 1), samples)
    centres = [[3.7, 2.55], [8.5, 2.55], [3.7, 5.85], [8.5, 5.85], [6.1, 4.2]]  # level 2 row by row, then level 1
    np.testing.assert_allclose(pooled[0], centres, atol=1e-5)


@pytest.mark.parametrize("levels", [(6, 3, 2, 1), (1, 4), (7,)], ids=str)
@pytest.mark.parametrize("size", [(23, 31), (3, 2), (1, 1)])
@pytest.mark.parametrize("samples", [0, 2])
def test_every_level_is_torchvisions_roi_align(levels, size, samples):
    rng = np.random.default_rng(0)
    feature_map, windows = feature_map_of(rng.normal(size=(*size, 5))), random_windows(rng, *size, 60)
    pooled, start = pyramid_roi_align(feature_map, windows, levels, samples), 0
    for n in levels:
        expected = roi_align(feature_map[None], [torch.from_numpy(windows)], n, 1.0, samples or -1, aligned=True)
        level = pooled[:, start : start + n * n].transpose(1, 2).reshape(expected.shape)
        torch.testing.assert_close(level, expected, rtol=0, atol=0)
        start += n * n
    assert start == pooled.shape[1]


def test_no_windows():
    assert pyramid_roi_align(torch.zeros(3, 4, 4), np.zeros((0, 4), np.float32), (2, 1)).shape == (0, 5, 3)


@pytest.mark.parametrize("samples", [0, 2])
def test_gradients_are_those_of_finite_differences(samples):
    rng = np.random.default_rng(0)
    windows = random_windows(rng, 4, 5, 3)
    feature_map = torch.from_numpy(rng.normal(size=(2, 4, 5))).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: pyramid_roi_align(x, windows, (2, 1), samples), feature_map)


@pytest.mark.parametrize("window", [[0, 0, 4.6, 4], [-0.6, 0, 2, 2], [2, 0, 2, 1], [0, 0, np.nan, 1]])
def test_windows_outside_the_map_are_refused(window):
    with pytest.raises(ValueError, match="at most half a cell outside the 4 x 4 map"):
        pyramid_roi_align(torch.zeros(3, 4, 4), np.array([window]), (2, 1), samples=2)
