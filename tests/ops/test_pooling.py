"""Spatial pyramid pooling: windows with known maxima, and comparison with plain PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pooling_windows import LEVELS, random_cells

from sppdet.ops.coded_maps import encode_map
from sppdet.ops.pooling import bins, pyramid_pool, pyramid_pool_coded, to_reference_order, unique_windows
from sppdet.ops.pooling_torch import pyramid_pool_torch


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


@pytest.mark.parametrize("levels", LEVELS[:3], ids=str)
@pytest.mark.parametrize("size", [(23, 31), (1, 1)])
@pytest.mark.parametrize("channels", [5, 64, 131])
def test_codes_are_pooled_like_their_numbers_bit_for_bit(levels, size, channels):
    rng = np.random.default_rng(0)
    coded_map = encode_map(rng.normal(size=(*size, channels)).astype(np.float32))
    cells = random_cells(rng, *size, 40)
    expected = pyramid_pool(coded_map.decoded(), cells, levels)
    pooled = pyramid_pool_coded(coded_map, cells, levels)
    assert pooled.dtype == np.float32
    np.testing.assert_array_equal(pooled, expected)
    rounded = torch.from_numpy(pyramid_pool_coded(coded_map, cells, levels, bfloat16=True)).view(torch.bfloat16)
    assert torch.equal(rounded, torch.from_numpy(expected).bfloat16())
    assert pyramid_pool_coded(coded_map, cells[:0], levels).shape == (0, bins(levels), channels)


def test_cells_outside_a_map_of_codes_are_refused():
    coded_map = encode_map(np.zeros((4, 4, 3), np.float32))
    with pytest.raises(ValueError, match="at least one cell of the 4 x 4 map"):
        pyramid_pool_coded(coded_map, np.array([[0, 0, 5, 4]]), (2, 1))


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
    with pytest.raises(ValueError, match=r"float32 array of shape \(1, 5, 3\), contiguous in each window"):
        pyramid_pool(np.zeros((4, 4, 3), np.float32), np.array([[0, 0, 1, 1]]), (2, 1), out=out)


def test_the_result_is_written_to_the_output_array():
    feature_map = np.random.default_rng(0).normal(size=(6, 6, 3)).astype(np.float32)
    cells = np.array([[0, 0, 6, 6], [1, 2, 4, 3]], np.int32)
    out = np.full((2, 5, 3), 99, np.float32)
    assert pyramid_pool(feature_map, cells, (2, 1), out=out) is out
    np.testing.assert_array_equal(out, pyramid_pool(feature_map, cells, (2, 1)))


@pytest.mark.parametrize("coded", [False, True])
def test_the_output_array_may_be_columns_of_longer_vectors(coded):
    feature_map = np.random.default_rng(0).normal(size=(9, 8, 3)).astype(np.float32)
    cells = random_cells(np.random.default_rng(1), 9, 8, 150)  # more than a thread takes at a time
    pool, given = (pyramid_pool_coded, encode_map(feature_map)) if coded else (pyramid_pool, feature_map)
    longer = np.full((len(cells), 20), 99, np.float32)
    columns = longer[:, 3:18].reshape(-1, 5, 3)
    assert columns.base is not None and pool(given, cells, (2, 1), out=columns) is columns
    np.testing.assert_array_equal(longer[:, 3:18].reshape(-1, 5, 3), pool(given, cells, (2, 1)))
    assert (longer[:, :3] == 99).all() and (longer[:, 18:] == 99).all()


def test_no_windows_have_no_vectors():
    none = np.zeros((0, 4), np.int32)
    assert pyramid_pool(np.zeros((4, 4, 3), np.float32), none, (2, 1)).shape == (0, 5, 3)
    assert pyramid_pool_torch(torch.zeros(3, 4, 4), none, (2, 1)).shape == (0, 5, 3)


def test_reference_order_by_hand():
    # Two channels, levels 2 and 1: bins a b c d and e, each (channel 0, channel 1).
    vectors = np.array([[[1, 10], [2, 20], [3, 30], [4, 40], [5, 50]]], np.float32)
    assert to_reference_order(vectors, (2, 1)).tolist() == [[1, 2, 3, 4, 10, 20, 30, 40, 5, 50]]


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
