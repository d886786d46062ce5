"""Spatial pyramid pooling: known windows, the plain PyTorch oracle, and the whole-map module."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sppdet.ops.pooling import (
    SpatialPyramidPooling,
    bins,
    pyramid_pool,
    pyramid_pool_batch,
    pyramid_pool_torch,
    to_reference_order,
    unique_windows,
)

LEVELS = [(6, 3, 2, 1), (4, 3, 2, 1), (4, 2, 1), (1,), (5, 2), (1, 2, 3, 6), (2, 4), (12, 6, 4, 3), (5, 3, 2)]


def test_bins():
    assert [bins(levels) for levels in LEVELS[:5]] == [50, 30, 21, 1, 29]


def test_a_window_of_known_numbers():
    # 4 x 4 cells of 0..15; the window leaves out the first column and the last row:
    #    1  2  3        columns of two bins: [0, 2) and [1, 3); rows alike
    #    5  6  7        rows 0-1, columns 0-1: max 6;  columns 1-2: 7
    #    9 10 11        rows 1-2, columns 0-1: max 10; columns 1-2: 11;  all: 11
    conv_map = np.arange(16, dtype=np.float32).reshape(4, 4, 1)
    vector = pyramid_pool(conv_map, np.array([[1, 0, 4, 3]], np.int32), (2, 1))
    assert vector.shape == (1, 5, 1) and vector.dtype == np.float32
    assert vector.ravel().tolist() == [6, 7, 10, 11, 11]


def test_a_window_smaller_than_the_level_repeats_cells():
    # One cell for 2 x 2 bins; two cells for 3 bins a side: [0, 1), [0, 2), [1, 2).
    conv_map = np.array([[[3.0], [8.0]]], np.float32)
    assert pyramid_pool(conv_map, np.array([[0, 0, 1, 1]], np.int32), (2,)).ravel().tolist() == [3, 3, 3, 3]
    assert pyramid_pool(conv_map, np.array([[0, 0, 2, 1]], np.int32), (3,)).ravel().tolist() == [3, 8, 8] * 3


def random_cells(rng: np.random.Generator, height: int, width: int, count: int) -> np.ndarray:
    """Windows of every size, from one cell to the whole map."""
    x1, y1 = rng.integers(0, width, count), rng.integers(0, height, count)
    x2, y2 = x1 + 1 + rng.integers(0, width - x1), y1 + 1 + rng.integers(0, height - y1)
    whole = [
        [0, 0, width, height],
        [0, 0, 1, 1],
        [width - 1, height - 1, width, height],
        [0, height - 1, width, height],
    ]
    return np.concatenate([np.stack([x1, y1, x2, y2], axis=1), whole]).astype(np.int32)


@pytest.mark.parametrize("levels", LEVELS, ids=str)
@pytest.mark.parametrize("size", [(23, 31), (3, 2), (1, 1)])
@pytest.mark.parametrize("channels", [5, 64, 131])  # fewer than a block of channels, one, and two with a rest
def test_windows_are_pooled_exactly_as_by_torch(levels, size, channels):
    rng = np.random.default_rng(0)
    conv_map = rng.normal(size=(*size, channels)).astype(np.float32)  # negative too: no maximum may start at 0
    cells = random_cells(rng, *size, 40)
    expected = pyramid_pool_torch(torch.from_numpy(conv_map).permute(2, 0, 1), cells, levels)
    np.testing.assert_array_equal(pyramid_pool(conv_map, cells, levels), expected.numpy())


@pytest.mark.parametrize("levels", LEVELS, ids=str)
@pytest.mark.parametrize("channels", [5, 64, 131])
def test_bits_of_bfloat16_are_pooled_as_the_numbers_that_they_are(levels, channels):
    rng = np.random.default_rng(0)
    numbers = torch.from_numpy(rng.normal(size=(23, 31, channels)).astype(np.float32)).relu().bfloat16()
    cells = random_cells(rng, 23, 31, 40)
    found = pyramid_pool(numbers.view(torch.int16).numpy(), cells, levels)
    assert found.dtype == np.int16
    expected = pyramid_pool(numbers.float().numpy(), cells, levels)
    np.testing.assert_array_equal(torch.from_numpy(found).view(torch.bfloat16).float(), expected)


@pytest.mark.parametrize("levels", LEVELS, ids=str)
def test_windows_are_pooled_for_training_as_by_the_plain_form(levels):
    rng = np.random.default_rng(0)
    conv_map = torch.from_numpy(rng.normal(size=(4, 13, 17)).astype(np.float32))
    corner, other = rng.integers(0, [17, 13], (2, 60, 2))
    cells = np.concatenate([np.minimum(corner, other), np.maximum(corner, other) + 1], axis=1)
    for some in (cells, cells[:0]):
        assert torch.equal(pyramid_pool_batch(conv_map, some, levels), pyramid_pool_torch(conv_map, some, levels))


@pytest.mark.parametrize("levels", LEVELS, ids=str)
@pytest.mark.parametrize("channels", [3, 257])  # less than a thread takes at a time, and more
def test_gradients_for_training_are_those_of_the_plain_form(levels, channels):
    rng = np.random.default_rng(0)
    # Whole numbers, so that sums are exact in any order; few of them, so that bins hold their maximum several times.
    conv_map = torch.from_numpy(rng.integers(0, 4, (channels, 9, 11)).astype(np.float32))
    cells = random_cells(rng, 9, 11, 30)
    found = []
    for pool in (pyramid_pool_batch, pyramid_pool_torch):
        leaf = conv_map.clone().requires_grad_()
        pooled = pool(leaf, cells, levels)
        weights = torch.arange(pooled.numel(), dtype=torch.float32).reshape(pooled.shape) % 7
        (pooled * weights).sum().backward()
        found.append(leaf.grad)
    assert torch.equal(*found)


@pytest.mark.parametrize("pool", [pyramid_pool_batch, pyramid_pool_torch])
def test_gradients_through_the_pyramid_are_those_of_finite_differences(pool):
    rng = np.random.default_rng(0)
    # No two cells alike, and all further apart than the step of the differences.
    conv_map = torch.from_numpy(rng.permutation(2 * 6 * 7).reshape(2, 6, 7) / 10.0).requires_grad_()
    cells = np.array([[0, 0, 7, 6], [1, 2, 4, 6], [3, 3, 4, 4]])
    assert torch.autograd.gradcheck(lambda x: pool(x, cells, (6, 3, 2, 1)), conv_map, eps=1e-4)


def test_threads_change_nothing():
    rng = np.random.default_rng(0)
    conv_map, cells = rng.normal(size=(30, 40, 70)).astype(np.float32), random_cells(rng, 30, 40, 1000)
    alone = pyramid_pool(conv_map, cells, (6, 3, 2, 1))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        np.testing.assert_array_equal(pyramid_pool(conv_map, cells, (6, 3, 2, 1)), alone)
    finally:
        torch.set_num_threads(before)


def test_maps_of_other_layout_and_cells_of_other_type():
    rng = np.random.default_rng(0)
    conv_map, cells = rng.normal(size=(8, 9, 66)).astype(np.float32), random_cells(rng, 8, 9, 20)
    channels_first = np.ascontiguousarray(conv_map.transpose(2, 0, 1)).transpose(1, 2, 0)
    found = pyramid_pool(channels_first, cells.astype(np.int64), (4, 2))
    np.testing.assert_array_equal(found, pyramid_pool(conv_map, cells, (4, 2)))


@pytest.mark.parametrize(
    "cells", [[0, 0, 5, 4], [0, 0, 4, 5], [-1, 0, 2, 2], [0, -1, 2, 2], [2, 0, 2, 1], [0, 3, 1, 2]]
)
def test_cells_outside_the_map(cells):
    with pytest.raises(ValueError, match="at least one cell of the 4 x 4 map"):
        pyramid_pool(np.zeros((4, 4, 3), np.float32), np.array([cells]), (2, 1))


@pytest.mark.parametrize("shape, kind", [((2, 5, 3), np.float32), ((1, 5, 3), np.float64), ((1, 3, 5), np.float32)])
def test_an_array_that_does_not_fit(shape, kind):
    out = np.zeros(shape, kind).transpose(0, 2, 1) if shape == (1, 3, 5) else np.zeros(shape, kind)
    with pytest.raises(ValueError, match=r"contiguous float32 array of shape \(1, 5, 3\)"):
        pyramid_pool(np.zeros((4, 4, 3), np.float32), np.array([[0, 0, 1, 1]]), (2, 1), out=out)


def test_a_given_array_is_written_to():
    conv_map = np.random.default_rng(0).normal(size=(6, 6, 3)).astype(np.float32)
    cells = np.array([[0, 0, 6, 6], [1, 2, 4, 3]], np.int32)
    out = np.full((2, 5, 3), 99, np.float32)
    assert pyramid_pool(conv_map, cells, (2, 1), out=out) is out
    np.testing.assert_array_equal(out, pyramid_pool(conv_map, cells, (2, 1)))


def test_no_windows():
    none = np.zeros((0, 4), np.int32)
    assert pyramid_pool(np.zeros((4, 4, 3), np.float32), none, (2, 1)).shape == (0, 5, 3)
    assert pyramid_pool_torch(torch.zeros(3, 4, 4), none, (2, 1)).shape == (0, 5, 3)


def test_reference_order_by_hand():
    # Two channels, levels 2 and 1: bins a b c d and e, each (channel 0, channel 1).
    vectors = np.array([[[1, 10], [2, 20], [3, 30], [4, 40], [5, 50]]], np.float32)
    assert to_reference_order(vectors, (2, 1)).tolist() == [[1, 2, 3, 4, 10, 20, 30, 40, 5, 50]]


@pytest.mark.parametrize("levels", LEVELS[:3], ids=str)
def test_reference_order_is_the_modules(levels):
    conv_map = torch.rand(7, 9, 11)
    whole = pyramid_pool(conv_map.permute(1, 2, 0).contiguous().numpy(), np.array([[0, 0, 11, 9]], np.int32), levels)
    expected = SpatialPyramidPooling(levels)(conv_map[None])
    np.testing.assert_array_equal(to_reference_order(whole, levels), expected.numpy())


@pytest.mark.parametrize("size", [(13, 13), (10, 10), (7, 16), (1, 1), (2, 5)])
@pytest.mark.parametrize("mode", ["max", "average"])
def test_any_map_becomes_a_vector_of_fixed_length(size, mode):
    pool = SpatialPyramidPooling(levels=3, mode=mode)
    assert pool.levels == (1, 2, 3)
    assert pool(torch.rand(8, 32, *size)).shape == (8, 448)  # 32 x (1 + 4 + 9)
    assert pool.output_dim(32) == 448


def test_module_values_by_hand():
    x = torch.arange(4.0).reshape(1, 1, 2, 2)
    assert SpatialPyramidPooling((1, 2))(x).tolist() == [[3, 0, 1, 2, 3]]
    assert SpatialPyramidPooling((1, 2), mode="average")(x).tolist() == [[1.5, 0, 1, 2, 3]]


def test_gradients_reach_the_maximum_alone():
    x = torch.tensor([[[[1.0, 5.0], [2.0, 3.0]]]], requires_grad=True)
    SpatialPyramidPooling((1,))(x).sum().backward()
    assert x.grad.tolist() == [[[[0, 1], [0, 0]]]]


@pytest.mark.parametrize("levels", [(), (0,), (3, -1), 0])
def test_wrong_levels(levels):
    with pytest.raises(ValueError, match="levels must be positive"):
        SpatialPyramidPooling(levels)


def test_wrong_mode():
    with pytest.raises(ValueError, match="'max' or 'average'"):
        SpatialPyramidPooling(2, mode="median")


def test_unique_windows_by_hand():
    cells = np.array([[0, 0, 2, 2], [1, 0, 2, 2], [0, 0, 2, 2], [0, 0, 2, 2]], np.int32)
    first, group = unique_windows(cells, np.array([0, 0, 0, 1]))
    assert len(first) == 3  # the last one lies on another map
    assert group[0] == group[2] and len(set(group.tolist())) == 3
    assert first[group[0]] == 0


def test_unique_windows_rebuild_all():
    rng = np.random.default_rng(0)
    cells, scales = rng.integers(0, 3, (500, 4)).astype(np.int32), rng.integers(0, 3, 500)
    first, group = unique_windows(cells, scales)
    np.testing.assert_array_equal(cells[first][group], cells)
    np.testing.assert_array_equal(scales[first][group], scales)
    assert len(first) == len({(*cell, scale) for cell, scale in zip(cells.tolist(), scales.tolist())})
    assert [len(part) for part in unique_windows(cells[:0], scales[:0])] == [0, 0]
