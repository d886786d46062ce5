"""From maps to window vectors: the right map, shared windows, blocks, and the head on top."""

from __future__ import annotations

import numpy as np
import pytest

from sppdet import features as module
from sppdet.pooling import pyramid_pool

WHOLE = (64, 64)


def maps_of(rng, *sizes, channels: int = 3) -> list[np.ndarray]:
    return [rng.random((height, width, channels)).astype(np.float32) for height, width in sizes]


def test_aligned_windows_cover_their_cells(tiny_features):
    features = tiny_features(3)
    boxes = np.array([[0, 0, 64, 64], [8, 16, 12, 24], [60, 60, 64, 64]], np.float32)
    windows = features.windows(boxes, WHOLE, maps_of(np.random.default_rng(0), (16, 16)))
    assert windows.cells[windows.group].tolist() == [[0, 0, 16, 16], [2, 4, 3, 6], [15, 15, 16, 16]]


def test_windows_of_the_same_cells_are_one(tiny_features):
    boxes = np.array([[0, 0, 8, 8], [0, 0, 7, 8], [16, 16, 24, 24]], np.float32)
    windows = tiny_features(3).windows(boxes, WHOLE, maps_of(np.random.default_rng(0), (16, 16)))
    assert len(windows.cells) == 2 and windows.group[0] == windows.group[1] != windows.group[2]


def test_each_window_is_read_at_its_scale(tiny_features):
    features = tiny_features(3, scales=(64, 128), target=32)
    maps = maps_of(np.random.default_rng(0), (16, 16), (32, 32))
    # 32 x 32 pixels are the target as they are, 16 x 16 are it at twice the size.
    boxes = np.array([[16, 16, 32, 32], [0, 0, 32, 32]], np.float32)
    windows = features.windows(boxes, WHOLE, maps)
    assert windows.scales[windows.group].tolist() == [1, 0]
    vectors = features.vectors(maps, windows, np.arange(2))[windows.group]
    for box, vector, scale in zip(boxes, vectors, (1, 0)):
        cells = windows.cells[windows.group][[1 - scale]]
        assert vector.tolist() == pyramid_pool(maps[scale], cells, (2, 1)).ravel().tolist()
        assert vector[-3:].max() <= maps[scale].max() and len(box) == 4


def test_dimensions(tiny_features):
    features = tiny_features(8, (6, 3, 2, 1))
    assert features.dimension == features.pooled_dimension == 400
    headed = tiny_features(8, (2, 1), head=lambda pooled: pooled[:, :7], head_dimension=7)
    assert headed.dimension == 7 and headed.pooled_dimension == 40
    assert headed.pooled.dimension == 40 and headed.pooled.head is None


@pytest.fixture
def many(tiny_features, monkeypatch):
    """23 different windows on two maps, read in blocks of 5."""
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


def test_vectors_come_in_the_order_asked_for(many):
    features, maps, windows, expected = many
    rows = np.random.default_rng(2).permutation(len(expected))[:13]
    np.testing.assert_array_equal(features.vectors(maps, windows, rows), expected[rows])
    half = features.vectors(maps, windows, rows, np.float16)
    np.testing.assert_array_equal(half, expected[rows].astype(np.float16))
    assert features.vectors(maps, windows, rows[:0]).shape == (0, 15)


def test_blocks_are_every_window_once(many):
    features, maps, windows, expected = many
    seen = np.concatenate([rows for rows, _ in features.blocks(maps, windows)])
    assert sorted(seen.tolist()) == list(range(len(expected)))
    assert max(len(rows) for rows, _ in features.blocks(maps, windows)) == 5


def test_linear_is_the_product_of_all_vectors(many):
    features, maps, windows, expected = many
    rng = np.random.default_rng(3)
    weight, bias = rng.normal(size=(4, 15)).astype(np.float32), rng.normal(size=4).astype(np.float32)
    np.testing.assert_allclose(features.linear(maps, windows, weight, bias), expected @ weight.T + bias, atol=1e-5)


def test_scores_of_a_class_do_not_depend_on_the_others(tiny_features):
    # Bit by bit, at the length of real vectors: a class mined alone must find the same hard negatives.
    features, rng = tiny_features(512, (6, 3, 2, 1)), np.random.default_rng(4)
    maps = maps_of(rng, (16, 16), channels=512)
    corner = 4 * rng.integers(0, 8, (40, 2))
    windows = features.windows(np.concatenate([corner, corner + 32], axis=1).astype(np.float32), WHOLE, maps)
    weight, bias = rng.normal(size=(5, features.dimension)).astype(np.float32), np.zeros(5, np.float32)
    together = features.linear(maps, windows, weight, bias)
    for k in range(5):
        alone = features.linear(maps, windows, weight[k : k + 1], bias[k : k + 1])
        np.testing.assert_array_equal(alone[:, 0], together[:, k])


def test_the_head_sees_pooled_vectors(many, tiny_features):
    _, maps, windows, expected = many
    headed = tiny_features(3, scales=(64, 128), target=32, head=lambda pooled: 2 * pooled[:, :4], head_dimension=4)
    rows = np.arange(len(expected))
    np.testing.assert_array_equal(headed.vectors(maps, windows, rows), 2 * expected[:, :4])
    np.testing.assert_array_equal(headed.pooled.vectors(maps, windows, rows), expected)
