"""Averages of whole cells and of points between them: known numbers, torchvision's RoIAlign, and gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional
from torchvision.ops import roi_align

from sppdet.ops.averaging import average_pool, average_pool_batch, average_pool_torch

SAMPLES = [None, 0, 1, 2, 3]
LEVELS = [(6, 3, 2, 1), (1, 4), (7,)]


def whole_cells(rng: np.random.Generator, height: int, width: int, count: int) -> np.ndarray:
    """Windows from one cell to the whole map, which comes last."""
    corner, other = (rng.integers(0, [width, height], (count, 2)) for _ in range(2))
    windows = np.concatenate([np.minimum(corner, other), np.maximum(corner, other) + 1], axis=1)
    return np.concatenate([windows, [[0, 0, width, height]]]).astype(np.int32)


def anywhere(rng: np.random.Generator, height: int, width: int, count: int) -> np.ndarray:
    """The same with edges up to half a cell further out; a narrow one and one around the whole map come last."""
    windows = whole_cells(rng, height, width, count) + rng.uniform(-0.45, 0.45, (count + 1, 4))
    outermost = [[-0.5, -0.5, -0.45, height + 0.5], [-0.5, -0.5, width + 0.5, height + 0.5]]
    return np.concatenate([windows, outermost]).astype(np.float32)


def windows_for(samples, *arguments) -> np.ndarray:
    return (whole_cells if samples is None else anywhere)(*arguments)


def test_means_of_known_cells():
    # 4 x 4 cells of 0..15; the window leaves out the first column and the last row:
    #    1  2  3        columns of two bins: [0, 2) and [1, 3); rows alike
    #    5  6  7
    #    9 10 11
    conv_map = np.arange(16, dtype=np.float32).reshape(4, 4, 1)
    vector = average_pool(conv_map, np.array([[1, 0, 4, 3]], np.int32), (2, 1))
    assert vector.shape == (1, 5, 1) and vector.dtype == np.float32
    assert vector.ravel().tolist() == [3.5, 4.5, 7.5, 8.5, 6]


def test_points_between_known_cells():
    # The value rises from 0 at the centre of cell (0, 0) to 4 x y between it and that of cell (1, 1); the window lies
    # between the two centres.
    conv_map = np.array([[0, 0], [0, 4]], np.float32)[..., None]
    window = np.array([[0.5, 0.5, 1.5, 1.5]], np.float32)
    assert average_pool(conv_map, window, (1,), samples=1).ravel().tolist() == [1]  # 4 / 2 / 2
    assert average_pool(conv_map, window, (1,), samples=0).ravel().tolist() == [1]  # it is one cell long
    assert average_pool(conv_map, window, (2,), samples=1).ravel().tolist() == [0.25, 0.75, 0.75, 2.25]
    # Beyond the outermost centres a point has the value of the nearest cell: the points of the whole map are at x, y of
    # 0 and 1, those of its lower half at y of 3/4 and 1.
    windows = np.array([[0, 0, 2, 2], [0, 1, 2, 2]], np.float32)
    assert average_pool(conv_map, windows, (1,), samples=2).ravel().tolist() == [1, 1.75]


def test_where_windows_are_read():
    # A map whose cells hold their own centres: every bin returns its own.
    height, width = 9, 12
    y, x = np.mgrid[:height, :width] + 0.5
    conv_map = np.stack([x, y], axis=2).astype(np.float32)
    window = np.array([[1.3, 0.9, 10.9, 7.5]], np.float32)
    for samples in (0, 1, 2, 5):
        first, second, third, fourth, whole = average_pool(conv_map, window, (2, 1), samples)[0]
        np.testing.assert_allclose(whole, [6.1, 4.2], atol=1e-5)
        np.testing.assert_allclose([first, second], [[3.7, 2.55], [8.5, 2.55]], atol=1e-5)
        np.testing.assert_allclose([third, fourth], [[3.7, 5.85], [8.5, 5.85]], atol=1e-5)


@pytest.mark.parametrize("levels", LEVELS, ids=str)
@pytest.mark.parametrize("size", [(23, 31), (3, 2), (1, 1)])
@pytest.mark.parametrize("samples", [0, 1, 2, 3])
def test_every_level_is_roi_align(levels, size, samples):
    rng = np.random.default_rng(0)
    conv_map, windows = rng.normal(size=(*size, 5)).astype(np.float32), anywhere(rng, *size, 60)
    found, start = average_pool(conv_map, windows, levels, samples), 0
    for n in levels:
        expected = roi_align(
            torch.from_numpy(conv_map).permute(2, 0, 1)[None],
            [torch.from_numpy(windows)],
            output_size=n,
            sampling_ratio=samples or -1,
            aligned=True,
        )
        level = found[:, start : start + n * n].transpose(0, 2, 1).reshape(expected.shape)
        np.testing.assert_allclose(level, expected.numpy(), atol=2e-6)
        start += n * n
    assert start == found.shape[1]


@pytest.mark.parametrize("levels", LEVELS, ids=str)
@pytest.mark.parametrize("size", [(23, 31), (3, 2), (1, 1)])
def test_means_of_cells_are_those_of_torch(levels, size):
    rng = np.random.default_rng(0)
    conv_map, cells = rng.normal(size=(*size, 5)).astype(np.float32), whole_cells(rng, *size, 60)
    found, plain = average_pool(conv_map, cells, levels), torch.from_numpy(conv_map).permute(2, 0, 1)
    for vector, (x1, y1, x2, y2) in zip(found, cells):
        means = [functional.adaptive_avg_pool2d(plain[:, y1:y2, x1:x2], n).flatten(1) for n in levels]
        np.testing.assert_allclose(vector.T, torch.cat(means, dim=1), atol=1e-6)


@pytest.mark.parametrize("samples", SAMPLES)
def test_every_form_gives_the_same(samples):
    rng = np.random.default_rng(0)
    conv_map = rng.normal(size=(13, 17, 6)).astype(np.float32)
    channels_first = torch.from_numpy(conv_map).permute(2, 0, 1)
    windows = windows_for(samples, rng, 13, 17, 70)
    for some in (windows, windows[:0]):
        found = average_pool(conv_map, some, (3, 2), samples)
        assert found.shape == (len(some), 13, 6)
        assert torch.equal(average_pool_batch(channels_first, some, (3, 2), samples), torch.from_numpy(found))
        plain = average_pool_torch(channels_first, some, (3, 2), samples)
        np.testing.assert_allclose(found, plain, atol=2e-6)
        exact = average_pool_batch(channels_first.double(), some, (3, 2), samples)
        assert exact.dtype == torch.float64 and torch.allclose(exact, plain.double(), atol=2e-5)


@pytest.mark.parametrize("samples", [None, 0, 2])
def test_gradients_are_those_of_finite_differences(samples):
    rng = np.random.default_rng(0)
    windows = windows_for(samples, rng, 4, 5, 3)
    conv_map = torch.from_numpy(rng.normal(size=(2, 4, 5))).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: average_pool_torch(x, windows, (2, 1), samples), conv_map)
    # The compiled form is float32, too coarse for small steps. It is linear in the map: steps may be large.
    given = torch.from_numpy(rng.normal(size=(len(windows), 5, 2)).astype(np.float32))
    single = conv_map.detach().float().requires_grad_()
    (average_pool_batch(single, windows, (2, 1), samples) * given).sum().backward()
    for place in np.ndindex(2, 4, 5):
        step = torch.zeros(2, 4, 5)
        step[place] = 1
        change = (average_pool_batch(step, windows, (2, 1), samples) * given).sum()
        assert single.grad[place].item() == pytest.approx(change.item(), abs=1e-5)


@pytest.mark.parametrize("samples", [None, 0])
def test_threads_change_nothing(samples):
    rng = np.random.default_rng(0)
    conv_map = torch.from_numpy(rng.normal(size=(600, 20, 25)).astype(np.float32))  # more channels than a thread takes
    windows = windows_for(samples, rng, 20, 25, 200)

    def values_and_gradient() -> tuple[torch.Tensor, torch.Tensor]:
        leaf = conv_map.clone().requires_grad_()
        pooled = average_pool_batch(leaf, windows, (3, 1), samples)
        pooled.square().sum().backward()
        return pooled.detach(), leaf.grad

    alone, before = values_and_gradient(), torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert all(map(torch.equal, values_and_gradient(), alone))
    finally:
        torch.set_num_threads(before)


def test_a_given_array_is_written_to():
    conv_map, cells = np.ones((6, 6, 3), np.float32), np.array([[0, 0, 6, 6], [1, 2, 4, 3]])
    out = np.full((2, 5, 3), 99, np.float32)
    assert average_pool(conv_map, cells, (2, 1), out=out) is out
    np.testing.assert_allclose(out, 1, atol=1e-6)
    with pytest.raises(ValueError, match=r"contiguous float32 array of shape \(2, 5, 3\)"):
        average_pool(conv_map, cells, (2, 1), out=out[:1])


@pytest.mark.parametrize("cells", [[0, 0, 5, 4], [-1, 0, 2, 2], [2, 0, 2, 1]])
def test_cells_outside_the_map(cells):
    with pytest.raises(ValueError, match="at least one cell of the 4 x 4 map"):
        average_pool(np.zeros((4, 4, 3), np.float32), np.array([cells]), (2, 1))


@pytest.mark.parametrize("window", [[0, 0, 4.6, 4], [-0.6, 0, 2, 2], [2, 0, 2, 1], [0, 0, np.nan, 1]])
def test_windows_outside_the_map(window):
    with pytest.raises(ValueError, match="at most half a cell outside the 4 x 4 map"):
        average_pool(np.zeros((4, 4, 3), np.float32), np.array([window]), (2, 1), samples=2)
