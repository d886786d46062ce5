"""Maps of codes: rounding by hand, its largest error, and channels of one value."""

from __future__ import annotations

import numpy as np
import pytest

from sppdet.ops.coded_maps import encode_map, round_map


def test_codes_by_hand():
    # Steps of 2 / 255 and of 1: the codes span each channel of its own.
    feature_map = np.array([[[-1, 0], [0.25, 100.4], [1, 255]]], np.float32)
    coded_map = encode_map(feature_map)
    assert coded_map.codes.dtype == np.uint8 and coded_map.shape == (1, 3, 2)
    assert coded_map.codes[0].tolist() == [[0, 0], [159, 100], [255, 255]]
    np.testing.assert_array_equal(coded_map.scale, np.float32([2 / 255, 1]))
    assert coded_map.offset.tolist() == [-1, 0]
    np.testing.assert_allclose(coded_map.decoded()[0], [[-1, 0], [63 / 255, 100], [1, 255]], atol=1e-6)


@pytest.mark.parametrize("codes", [256, 64])
def test_the_error_is_half_a_step_at_most(codes):
    feature_map = np.random.default_rng(0).normal(size=(20, 30, 7)).astype(np.float32) ** 3
    coded_map = encode_map(feature_map, codes)
    assert np.ptp(coded_map.codes, axis=(0, 1)).tolist() == [codes - 1] * 7
    steps = np.abs(coded_map.decoded() - feature_map) / coded_map.scale
    assert 0.49 < steps.max() < 0.5001
    assert coded_map.decoded().dtype == np.float32


def test_a_channel_of_one_value_keeps_it():
    feature_map = np.broadcast_to(np.float32([0, -3.7, 1e-42]), (4, 5, 3))
    np.testing.assert_array_equal(encode_map(feature_map).decoded(), feature_map)


def test_zeros_of_a_map_without_negative_numbers_stay_zeros():
    feature_map = np.maximum(np.random.default_rng(0).normal(size=(9, 9, 4)), 0).astype(np.float32)
    assert (encode_map(feature_map).decoded()[feature_map == 0] == 0).all()


@pytest.mark.parametrize(("map_type", "highest"), [("uint8", 255), ("uint6", 63)])
def test_the_type_of_maps_says_how_many_codes_there_are(map_type, highest):
    feature_map = np.float32([[[0.0], [0.5], [2.0]]])
    assert round_map(feature_map, map_type).codes.ravel().tolist() == [0, round(highest / 4), highest]
    assert round_map(feature_map, "float16") is feature_map


def test_part_holds_the_numbers_of_its_channels_times_the_weight():
    rng = np.random.default_rng(0)
    coded = encode_map(rng.normal(size=(5, 4, 6)).astype(np.float32))
    part = coded.part(slice(2, 5), 0.5)
    np.testing.assert_allclose(part.decoded(), coded.decoded()[..., 2:5] / 2, rtol=1e-6)
    assert part.codes.flags.c_contiguous
