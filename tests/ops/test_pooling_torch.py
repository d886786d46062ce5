"""Spatial pyramid pooling in PyTorch: values, gradients, and the layer for whole maps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pooling_windows import LEVELS, random_cells

from sppdet.ops.pooling import pyramid_pool, to_reference_order
from sppdet.ops.pooling_torch import SpatialPyramidPooling, pyramid_pool_batch, pyramid_pool_nested, pyramid_pool_torch


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
def test_windows_are_pooled_by_torch_alone_as_by_the_compiled_loops(levels):
    rng = np.random.default_rng(0)
    feature_map = rng.normal(size=(61, 47, 5)).astype(np.float32)
    cells = random_cells(rng, 61, 47, 300)
    pooled = pyramid_pool_nested(torch.from_numpy(feature_map).permute(2, 0, 1), torch.from_numpy(cells), levels)
    np.testing.assert_array_equal(pooled.numpy(), pyramid_pool(feature_map, cells, levels))


def test_torch_alone_pools_no_windows():
    assert pyramid_pool_nested(torch.zeros(5, 4, 3), torch.zeros((0, 4), dtype=torch.int64), (6, 3)).shape == (0, 45, 5)


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


@pytest.mark.parametrize("pool", [pyramid_pool_batch, pyramid_pool_torch])  # the first in float64: by torch alone
def test_gradients_are_those_of_finite_differences(pool):
    rng = np.random.default_rng(0)
    # All cells differ, by more than the step of the differences.
    feature_map = torch.from_numpy(rng.permutation(2 * 6 * 7).reshape(2, 6, 7) / 10.0).requires_grad_()
    cells = np.array([[0, 0, 7, 6], [1, 2, 4, 6], [3, 3, 4, 4]])
    assert torch.autograd.gradcheck(lambda x: pool(x, cells, (6, 3, 2, 1)), feature_map, eps=1e-4)


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
