"""Vectors and products of windows, block by block, with and without the fc head on top."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from device import DEVICE

from sppdet.features import window_features as module
from sppdet.features.window_features import Windows
from sppdet.networks.fc_head import Head
from sppdet.ops.pooling import pyramid_pool
from sppdet.ops.products import Products

WHOLE = (64, 64)


def maps_of(rng, *sizes, channels: int = 3) -> list[np.ndarray]:
    return [rng.random((height, width, channels)).astype(np.float32) for height, width in sizes]


@pytest.fixture
def many(tiny_features, monkeypatch):
    """23 different windows on two maps, read in blocks of 5: features, maps, windows and their vectors ``(23, 15)``."""
    monkeypatch.setattr(module, "_BLOCK", 5)
    features = tiny_features(3, scales=(64, 128), target=32)
    maps = maps_of(np.random.default_rng(0), (16, 16), (32, 32))
    rng = np.random.default_rng(1)
    corner = rng.integers(0, 8, (23, 2)) * 4
    boxes = np.concatenate([corner, corner + rng.integers(3, 8, (23, 2)) * 4], axis=1).astype(np.float32)
    windows = features.windows(boxes, WHOLE, maps)
    assert set(windows.scales.tolist()) == {0, 1}
    expected = np.stack([pyramid_pool(maps[s], c[None], (2, 1)).ravel() for s, c in zip(windows.scales, windows.cells)])
    return features, maps, windows, expected


def test_dimensions(tiny_features):
    features = tiny_features(8, (6, 3, 2, 1))
    assert features.dimension == features.pooled_dimension == 400
    headed = tiny_features(8, (2, 1), head=lambda pooled: pooled[:, :7], head_dimension=7)
    assert headed.dimension == 7 and headed.pooled_dimension == 40
    assert headed.pooled.dimension == 40 and headed.pooled.head is None


def test_every_setting_is_described_and_nothing_else(tiny_features):
    features = tiny_features(8, head=lambda pooled: pooled, head_dimension=40, half=True)

    @dataclass(frozen=True)
    class Blurred(type(features)):
        blur: tuple[int, ...] = (1, 2)

    described = Blurred(grid=None, channels=8, **features.description()).description()
    assert described == features.description() | {"blur": [1, 2]}
    assert not described.keys() & {"head", "head_dimension", "concat_pooled", "half", "grid", "channels"}


def test_blocks_are_every_window_once_and_of_one_scale(many):
    features, _, windows, expected = many
    blocks = features.blocks(windows)
    assert sorted(np.concatenate(blocks).tolist()) == list(range(len(expected)))
    assert max(map(len, blocks)) == 5 and all(len(set(windows.scales[block])) == 1 for block in blocks)
    few = features.blocks(Windows(np.array([1, 0, 1]), windows.cells[:3], np.arange(3)), np.array([2, 1]))
    assert [block.tolist() for block in few] == [[1], [2]]


def test_vectors_come_in_the_order_asked_for(many):
    features, maps, windows, expected = many
    rows = np.random.default_rng(2).permutation(len(expected))[:13]
    np.testing.assert_array_equal(features.vectors(maps, windows, rows), expected[rows])
    float16 = features.vectors(maps, windows, rows, np.float16)
    np.testing.assert_array_equal(float16, expected[rows].astype(np.float16))
    assert features.vectors(maps, windows, rows[:0]).shape == (0, 15)


def test_the_whole_image_is_one_window(many):
    features, maps, _, _ = many
    windows = features.whole(maps, WHOLE)
    # 64 x 64 pixels are closest to 32 x 32 at the first scale.
    assert windows.scales.tolist() == [0] and windows.cells.tolist() == [[0, 0, 16, 16]]


def test_products_are_of_all_vectors_or_of_some(many):
    features, maps, windows, expected = many
    weight = np.random.default_rng(3).normal(size=(4, 15)).astype(np.float32)
    products, rough = features.products(maps, windows, Products(weight))
    np.testing.assert_allclose(products, expected @ weight.T, atol=1e-5)
    assert rough.shape == (23, 0)
    few = np.array([7, 0, 3])
    of_few, _ = features.products(maps, windows, Products(weight), few)
    np.testing.assert_allclose(of_few[few], products[few], atol=1e-5)
    assert not np.delete(of_few, few, axis=0).any()


def test_exact_and_rough_products_at_once(many):
    features, maps, windows, expected = many
    rng = np.random.default_rng(3)
    exact, rough = (rng.normal(size=(n, 15)).astype(np.float32) for n in (4, 21))
    products = features.products(maps, windows, Products(exact, rough))
    np.testing.assert_array_equal(products[0], features.products(maps, windows, Products(exact))[0])
    np.testing.assert_allclose(products[1], expected @ rough.T, atol=1e-5)


@pytest.mark.parametrize("layer", ["", "fc6", "pool5+fc7"])
def test_products_and_vectors_on_a_device_are_those_of_the_compiled_loops(many, layer):
    features, maps, windows, _ = many
    if layer:
        features = features.under(Head(inputs=15, units=6, layer=layer, balance=0.5).eval())
    rng = np.random.default_rng(2)
    weights = Products(*rng.normal(size=(2, 4, features.dimension)).astype(np.float32))
    rows = np.array([3, 22, 0, 7])
    on_device = replace(features, device=DEVICE)  # the path of GPUs, here on the CPU
    tensors = [torch.from_numpy(m) for m in maps]  # as a network leaves them there
    for chosen in (None, rows):
        expected = features.products(maps, windows, weights, chosen)
        for read in (maps, tensors):
            for here, there in zip(expected, on_device.products(read, windows, weights, chosen)):
                np.testing.assert_allclose(there, here, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        on_device.vectors(tensors, windows, rows), features.vectors(maps, windows, rows), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("half", [False, True])
def test_scores_of_a_class_do_not_depend_on_the_other_classes(tiny_features, half):
    # Bit by bit, at the length of real vectors: a class mined alone must find the same hard negatives.
    features, rng = tiny_features(512, (6, 3, 2, 1), half=half), np.random.default_rng(4)
    maps = maps_of(rng, (16, 16), channels=512)
    corner = 4 * rng.integers(0, 8, (40, 2))
    windows = features.windows(np.concatenate([corner, corner + 32], axis=1).astype(np.float32), WHOLE, maps)
    weight = rng.normal(size=(5, features.dimension)).astype(np.float32)
    together, _ = features.products(maps, windows, Products(weight, weight, half))
    for k in range(5):
        alone, _ = features.products(maps, windows, Products(weight[k : k + 1], half=half))
        np.testing.assert_array_equal(alone[:, 0], together[:, k])


def test_products_are_the_same_on_any_number_of_cores(tiny_features):
    features, rng = tiny_features(64, (6, 3, 2, 1)), np.random.default_rng(4)
    maps = maps_of(rng, (16, 16), channels=64)
    corner = 4 * rng.integers(0, 8, (300, 2))
    boxes = np.concatenate([corner, corner + 4 * rng.integers(1, 8, (300, 2))], axis=1).astype(np.float32)
    windows = features.windows(boxes, WHOLE, maps)
    weight = rng.normal(size=(5, features.dimension)).astype(np.float32)
    before, products = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            products.append(features.products(maps, windows, Products(weight))[0])
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(products[1], products[0])
    np.testing.assert_array_equal(products[2], products[0])


def test_the_head_sees_pooled_vectors(many, tiny_features):
    _, maps, windows, expected = many
    headed = tiny_features(3, scales=(64, 128), target=32, head=lambda pooled: 2 * pooled[:, :4], head_dimension=4)
    rows = np.arange(len(expected))
    np.testing.assert_array_equal(headed.vectors(maps, windows, rows), 2 * expected[:, :4])
    np.testing.assert_array_equal(headed.pooled.vectors(maps, windows, rows), expected)


@pytest.mark.parametrize("layer", ["fc6", "pool5+fc7"])
def test_features_under_a_head_are_its_vectors(many, layer):
    features, maps, windows, expected = many
    head = Head(15, 4, layer).eval()
    fc = head.vectors(torch.from_numpy(expected)).numpy()
    vectors = features.under(head).vectors(maps, windows, np.arange(len(expected)))
    concatenated = np.concatenate([expected, fc], axis=1) if layer == "pool5+fc7" else fc
    np.testing.assert_allclose(vectors, concatenated, atol=1e-6)
    assert features.under(head).dimension == concatenated.shape[1]


def test_a_head_beside_the_pooled_vectors_stands_behind_them(many, tiny_features):
    _, maps, windows, expected = many
    head = {"head": lambda pooled: 2 * pooled[:, :4], "head_dimension": 4}
    both = tiny_features(3, scales=(64, 128), target=32, concat_pooled=True, **head)
    assert both.dimension == 19 and both.pooled.dimension == 15
    rows = np.random.default_rng(2).permutation(len(expected))
    whole = np.concatenate([expected, 2 * expected[:, :4]], axis=1)
    np.testing.assert_array_equal(both.vectors(maps, windows, rows), whole[rows])
    weight = np.random.default_rng(3).normal(size=(4, 19)).astype(np.float32)
    np.testing.assert_allclose(both.products(maps, windows, Products(weight))[0], whole @ weight.T, atol=1e-5)
