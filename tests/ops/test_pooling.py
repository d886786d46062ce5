"""Spatial pyramid pooling: windows with known maxima, comparison with plain PyTorch, and the layer for whole maps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sppdet.ops.pooling import bins, pyramid_pool, to_reference_order, unique_windows
from sppdet.ops.pooling_layers import SpatialPyramidPooling, pyramid_pool_batch, pyramid_pool_torch

LEVELS = [(6, 3, 2, 1), (4, 3, 2, 1), (4, 2, 1), (1,), (5, 2), (1, 2, 3, 6), (2, 4), (12, 6, 4, 3), (5, 3, 2)]


def test_the_number_of_bins():
    assert [bins(levels) for levels in LEVELS[:5]] == [50, 30, 21, 1, 29]


def test_a_window_with_known_maxima():
    # 4 x 4 cells of 0..15; the window leaves out the first column and the last row:
    #    1  2  3        columns of the two bins: [0, 2) and [1, 3); rows too
    #    5  6  7        rows 0-1, columns 0-1: max 6;  columns 1-2: 7
    #    9 10 11        rows 1-2, columns 0-1: max 10; columns 1-2: 11;  all: 11
    feature_map = np.arange(16, dtype=np.float32).reshape(4, 4, 1)
    vector = pyramid_pool(feature_map, np.array([[1, 0, 4, 3]], np.int32), (2, 1))
    assert vector.shape == (1, 5, 1) and vector.dtype == np.float32
    assert vector.ravel().tolist() == [6, 7, 10, 11, 11]


def test_a_window_smaller_than_the_level_repeats_cells():
    # One cell for 2 x 2 bins; two cells for 3 bins a side: [0, 1), [0, 2), [1, 2).
    feature_map = np.array([[[3.0], [8.0]]], np.float32)
    assert pyramid_pool(feature_map, np.array([[0, 0, 1, 1]], np.int32), (2,)).ravel().tolist() == [3, 3, 3, 3]
    assert pyramid_pool(feature_map, np.array([[0, 0, 2, 1]], np.int32), (3,)).ravel().tolist() == [3, 8, 8] * 3


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
@pytest.mark.parametrize("channels", [5, 64, 131])  # fewer than one block of 64, one block, and two blocks and a rest
def test_windows_are_pooled_as_by_plain_torch_bit_for_bit(levels, size, channels):
    rng = np.random.default_rng(0)
    feature_map = rng.normal(size=(*size, channels)).astype(np.float32)  # of both signs: no maximum may start at 0
    cells = random_cells(rng, *size, 40)
    expected = pyramid_pool_torch(torch.from_numpy(feature_map).permute(2, 0, 1), cells, levels)
    np.testing.assert_array_equal(pyramid_pool(feature_map, cells, levels), expected.numpy())


@pytest.mark.parametrize("levels", LEVELS, ids=str)
@pytest.mark.parametrize("channels", [5, 64, 131])
def test_bits_of_bfloat16_are_pooled_like_their_numbers(levels, channels):
    rng = np.random.default_rng(0)
    numbers = torch.from_numpy(rng.normal(size=(23, 31, channels)).astype(np.float32)).relu().bfloat16()
    cells = random_cells(rng, 23, 31, 40)
    pooled = pyramid_pool(numbers.view(torch.int16).numpy(), cells, levels)
    assert pooled.dtype == np.int16
    expected = pyramid_pool(numbers.float().numpy(), cells, levels)
    np.testing.assert_array_equal(torch.from_numpy(pooled).view(torch.bfloat16).float(), expected)


@pytest.mark.parametrize("levels", LEVELS, ids=str)
def test_windows_are_pooled_for_training_as_by_plain_torch(levels):
    rng = np.random.default_rng(0)
    feature_map = torch.from_numpy(rng.normal(size=(4, 13, 17)).astype(np.float32))
    corner, other = rng.integers(0, [17, 13], (2, 60, 2))
    cells = np.concatenate([np.minimum(corner, other), np.maximum(corner, other) + 1], axis=1)
    for windows in (cells, cells[:0]):
        expected = pyramid_pool_torch(feature_map, windows, levels)
        assert torch.equal(pyramid_pool_batch(feature_map, windows, levels), expected)


@pytest.mark.parametrize("levels", LEVELS, ids=str)
@pytest.mark.parametrize("channels", [3, 257])  # fewer than a thread takes at a time, and more
def test_gradients_for_training_are_those_of_plain_torch(levels, channels):
    rng = np.random.default_rng(0)
    # Whole numbers, so that sums are exact in any order; few of them, so that bins hold their maximum several times.
    feature_map = torch.from_numpy(rng.integers(0, 4, (channels, 9, 11)).astype(np.float32))
    cells = random_cells(rng, 9, 11, 30)
    gradients = []
    for pool in (pyramid_pool_batch, pyramid_pool_torch):
        leaf = feature_map.clone().requires_grad_()
        pooled = pool(leaf, cells, levels)
        weights = torch.arange(pooled.numel(), dtype=torch.float32).reshape(pooled.shape) % 7
        (pooled * weights).sum().backward()
        gradients.append(leaf.grad)
    assert torch.equal(*gradients)


@pytest.mark.parametrize("pool", [pyramid_pool_batch, pyramid_pool_torch])
def test_gradients_are_those_of_finite_differences(pool):
    rng = np.random.default_rng(0)
    # All cells differ, by more than the step of the differences.
    feature_map = torch.from_numpy(rng.permutation(2 * 6 * 7).reshape(2, 6, 7) / 10.0).requires_grad_()
    cells = np.array([[0, 0, 7, 6], [1, 2, 4, 6], [3, 3, 4, 4]])
    assert torch.autograd.gradcheck(lambda x: pool(x, cells, (6, 3, 2, 1)), feature_map, eps=1e-4)


def test_the_number_of_threads_changes_nothing():
    rng = np.random.default_rng(0)
    feature_map, cells = rng.normal(size=(30, 40, 70)).astype(np.float32), random_cells(rng, 30, 40, 1000)
    with_one = pyramid_pool(feature_map, cells, (6, 3, 2, 1))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        np.testing.assert_array_equal(pyramid_pool(feature_map, cells, (6, 3, 2, 1)), with_one)
    finally:
        torch.set_num_threads(before)


def test_maps_of_another_layout_and_cells_of_another_type_are_converted():
    rng = np.random.default_rng(0)
    feature_map, cells = rng.normal(size=(8, 9, 66)).astype(np.float32), random_cells(rng, 8, 9, 20)
    channels_first = np.ascontiguousarray(feature_map.transpose(2, 0, 1)).transpose(1, 2, 0)
    pooled = pyramid_pool(channels_first, cells.astype(np.int64), (4, 2))
    np.testing.assert_array_equal(pooled, pyramid_pool(feature_map, cells, (4, 2)))


@pytest.mark.parametrize(
    "cells", [[0, 0, 5, 4], [0, 0, 4, 5], [-1, 0, 2, 2], [0, -1, 2, 2], [2, 0, 2, 1], [0, 3, 1, 2]]
)
def test_cells_outside_the_map_are_refused(cells):
    with pytest.raises(ValueError, match="at least one cell of the 4 x 4 map"):
        pyramid_pool(np.zeros((4, 4, 3), np.float32), np.array([cells]), (2, 1))


@pytest.mark.parametrize("shape, kind", [((2, 5, 3), np.float32), ((1, 5, 3), np.float64), ((1, 3, 5), np.float32)])
def test_an_output_array_that_does_not_fit_is_refused(shape, kind):
    out = np.zeros(shape, kind).transpose(0, 2, 1) if shape == (1, 3, 5) else np.zeros(shape, kind)
    with pytest.raises(ValueError, match=r"contiguous float32 array of shape \(1, 5, 3\)"):
        pyramid_pool(np.zeros((4, 4, 3), np.float32), np.array([[0, 0, 1, 1]]), (2, 1), out=out)


def test_the_result_is_written_to_the_output_array():
    feature_map = np.random.default_rng(0).normal(size=(6, 6, 3)).astype(np.float32)
    cells = np.array([[0, 0, 6, 6], [1, 2, 4, 3]], np.int32)
    out = np.full((2, 5, 3), 99, np.float32)
    assert pyramid_pool(feature_map, cells, (2, 1), out=out) is out
    np.testing.assert_array_equal(out, pyramid_pool(feature_map, cells, (2, 1)))


def test_no_windows_have_no_vectors():
    none = np.zeros((0, 4), np.int32)
    assert pyramid_pool(np.zeros((4, 4, 3), np.float32), none, (2, 1)).shape == (0, 5, 3)
    assert pyramid_pool_torch(torch.zeros(3, 4, 4), none, (2, 1)).shape == (0, 5, 3)


def test_reference_order_by_hand():
    # Two channels, levels 2 and 1: bins a b c d and e, each (channel 0, channel 1).
    vectors = np.array([[[1, 10], [2, 20], [3, 30], [4, 40], [5, 50]]], np.float32)
    assert to_reference_order(vectors, (2, 1)).tolist() == [[1, 2, 3, 4, 10, 20, 30, 40, 5, 50]]


@pytest.mark.parametrize("levels", LEVELS[:3], ids=str)
def test_reference_order_is_that_of_the_layer(levels):
    feature_map = torch.rand(7, 9, 11)
    whole = pyramid_pool(feature_map.permute(1, 2, 0).contiguous().numpy(), np.array([[0, 0, 11, 9]], np.int32), levels)
    expected = SpatialPyramidPooling(levels)(feature_map[None])
    np.testing.assert_array_equal(to_reference_order(whole, levels), expected.numpy())


@pytest.mark.parametrize("size", [(13, 13), (10, 10), (7, 16), (1, 1), (2, 5)])
@pytest.mark.parametrize("mode", ["max", "average"])
def test_a_map_of_any_size_becomes_a_vector_of_fixed_length(size, mode):
    pool = SpatialPyramidPooling(levels=3, mode=mode)
    maps = torch.rand(2, 32, *size)
    vectors = pool(maps)
    assert pool.levels == (1, 2, 3) and pool.output_dim(32) == 448  # 32 x (1 + 4 + 9)
    assert vectors.shape == (2, 448)
    whole = maps.amax((2, 3)) if mode == "max" else maps.mean((2, 3))
    torch.testing.assert_close(vectors[:, :32], whole)  # the level of one bin


def test_the_layer_shows_its_settings():
    assert repr(SpatialPyramidPooling((2, 1))) == "SpatialPyramidPooling(levels=(2, 1), mode='max')"


def test_values_of_the_layer_by_hand():
    x = torch.arange(4.0).reshape(1, 1, 2, 2)
    assert SpatialPyramidPooling((1, 2))(x).tolist() == [[3, 0, 1, 2, 3]]
    assert SpatialPyramidPooling((1, 2), mode="average")(x).tolist() == [[1.5, 0, 1, 2, 3]]


def test_gradients_of_the_layer_reach_the_maximum_alone():
    x = torch.tensor([[[[1.0, 5.0], [2.0, 3.0]]]], requires_grad=True)
    SpatialPyramidPooling((1,))(x).sum().backward()
    assert x.grad.tolist() == [[[[0, 1], [0, 0]]]]


@pytest.mark.parametrize("levels", [(), (0,), (3, -1), 0])
def test_levels_that_are_not_positive_are_refused(levels):
    with pytest.raises(ValueError, match="levels must be positive"):
        SpatialPyramidPooling(levels)


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="'max' or 'average'"):
        SpatialPyramidPooling(2, mode="median")


def test_unique_windows_by_hand():
    cells = np.array([[0, 0, 2, 2], [1, 0, 2, 2], [0, 0, 2, 2], [0, 0, 2, 2]], np.int32)
    first, group = unique_windows(cells, np.array([0, 0, 0, 1]))
    # The second covers other cells, the last is read at another scale.
    assert group.tolist() == [0, 1, 0, 2] and first.tolist() == [0, 1, 3]


def test_unique_windows_stand_for_all():
    rng = np.random.default_rng(0)
    cells, scales = rng.integers(0, 3, (500, 4)).astype(np.int32), rng.integers(0, 3, 500)
    first, group = unique_windows(cells, scales)
    np.testing.assert_array_equal(cells[first][group], cells)
    np.testing.assert_array_equal(scales[first][group], scales)
    assert len(first) == len({(*cell, scale) for cell, scale in zip(cells.tolist(), scales.tolist())})
    assert [len(part) for part in unique_windows(cells[:0], scales[:0])] == [0, 0]
