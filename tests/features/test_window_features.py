"""From maps to window vectors: the right map, shared windows, blocks, and the head on top."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torchvision.ops import roi_align, roi_pool

from sppdet.features import window_features as module
from sppdet.features.pyramid_features import PyramidFeatures
from sppdet.networks.cell_grid import CellGrid, cell_grid
from sppdet.networks.trunks import build_trunk
from sppdet.ops.pooling import pyramid_pool
from sppdet.ops.products import Products
from sppdet.ops.roi_align import pyramid_roi_align

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


@pytest.mark.parametrize("name", ["squeezenet1_0", "vgg16", "resnet18", "alexnet", "small"])
@pytest.mark.parametrize("factor", [1.0, 688 / 333])
def test_a_map_of_positions_tells_where_the_bins_are(name, factor):
    # Every cell holds the place of its centre in the image: align must give the centre of every bin, in its pixels.
    grid, size = cell_grid(build_trunk(name)), (333, 500)
    columns, rows = (round(side * factor) // grid.stride - 3 for side in size)
    x, y = (
        (grid.centre + grid.stride * np.arange(count) + 0.5) * side / round(side * factor)
        for count, side in zip((columns, rows), size)
    )
    conv_map = np.stack(np.meshgrid(x, y), axis=2).astype(np.float32)
    features = PyramidFeatures(grid, 2, (round(333 * factor),), 5000, 224, 6.5, (2, 1), kind="align")
    box = np.array([[70.25, 90.5, 190.75, 210.125]], np.float32)
    found = features.of_boxes([conv_map], box, size).reshape(5, 2)
    left, top, right, bottom = box[0]
    across, down = ((low + (high - low) * np.array([0.25, 0.75])) for low, high in ((left, right), (top, bottom)))
    expected = [[u, v] for v in down for u in across] + [[(left + right) / 2, (top + bottom) / 2]]
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_one_level_without_shrinking_is_fast_rcnns_roi_pooling():
    # Its cells lie at multiples of 16 pixels, whatever the network. Windows end on the map, on which ours are cut.
    rng = np.random.default_rng(0)
    conv_map, size = rng.random((20, 30, 4)).astype(np.float32), (480, 320)
    corner = rng.integers(0, [400, 240], (80, 2))
    first, last = corner, np.minimum(corner + rng.integers(8, 240, (80, 2)), np.array(size) - 10)
    first, last = (edge + (edge % 16 == 8) for edge in (first, last))  # its round() takes halves away from 0, ours not
    features = PyramidFeatures(CellGrid(16, 0.0), 4, (320,), 1000, 224, 0.0, (7,))
    found = features.of_boxes([conv_map], np.concatenate([first, last + 1], axis=1).astype(np.float32), size)
    rois = torch.from_numpy(np.concatenate([first, last], axis=1).astype(np.float32))
    expected = roi_pool(torch.from_numpy(conv_map).permute(2, 0, 1)[None], [rois], 7, spatial_scale=1 / 16)
    np.testing.assert_array_equal(found.reshape(80, 49, 4), expected.flatten(2).transpose(1, 2))


def test_one_level_of_align_is_roi_align():
    # torchvision's cells lie half a stride from the image's edge: their centre is pixel 7.5.
    rng = np.random.default_rng(0)
    conv_map, size = rng.random((20, 30, 4)).astype(np.float32), (480, 320)
    boxes = rng.uniform([0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1], (80, 4)) * np.tile(size, 2)
    features = PyramidFeatures(CellGrid(16, 7.5), 4, (320,), 1000, 224, 6.5, (7,), kind="align", samples=2)
    found = features.of_boxes([conv_map], boxes.astype(np.float32), size)
    rois = [torch.from_numpy(boxes.astype(np.float32))]
    expected = roi_align(torch.from_numpy(conv_map).permute(2, 0, 1)[None], rois, 7, 1 / 16, 2, aligned=True)
    np.testing.assert_allclose(found.reshape(80, 49, 4), expected.flatten(2).transpose(1, 2), atol=1e-5)


def test_kinds_differ_in_what_bins_take(tiny_features):
    maps, boxes = maps_of(np.random.default_rng(0), (16, 16)), np.array([[8, 16, 24, 40], [9, 16, 24, 40]], np.float32)
    cells = np.array([[2, 4, 6, 10]], np.int32)

    def vectors(kind: str) -> np.ndarray:
        return tiny_features(3, kind=kind).of_boxes(maps, boxes, WHOLE)

    whole = pyramid_pool(maps[0], cells, (2, 1)).reshape(1, -1)
    np.testing.assert_array_equal(vectors("max"), np.repeat(whole, 2, axis=0))
    edges = np.array([[2, 4, 6, 10], [2.25, 4, 6, 10]], np.float32)  # a pixel is a quarter of a cell
    aligned = pyramid_roi_align(torch.from_numpy(maps[0]).permute(2, 0, 1), edges, (2, 1)).flatten(1)
    np.testing.assert_array_equal(vectors("align"), aligned)


@pytest.mark.parametrize("kind", ["max", "align"])
def test_training_pools_as_the_stored_maps_are_pooled(tiny_features, kind):
    features, maps = tiny_features(3, kind=kind), maps_of(np.random.default_rng(0), (16, 16))
    boxes = np.random.default_rng(1).uniform(0, 30, (20, 4)).astype(np.float32) + np.float32([0, 0, 32, 32])
    found = features.pool(torch.from_numpy(maps[0]).permute(2, 0, 1)[None], boxes, WHOLE, 1.0)
    np.testing.assert_array_equal(found, features.of_boxes(maps, boxes, WHOLE))


def test_vectors_come_in_the_order_asked_for(many):
    features, maps, windows, expected = many
    rows = np.random.default_rng(2).permutation(len(expected))[:13]
    np.testing.assert_array_equal(features.vectors(maps, windows, rows), expected[rows])
    half = features.vectors(maps, windows, rows, np.float16)
    np.testing.assert_array_equal(half, expected[rows].astype(np.float16))
    assert features.vectors(maps, windows, rows[:0]).shape == (0, 15)


def test_blocks_are_every_window_once(many):
    features, _, windows, expected = many
    blocks = features.blocks(windows)
    assert sorted(np.concatenate(blocks).tolist()) == list(range(len(expected)))
    assert max(map(len, blocks)) == 5 and all(len(set(windows.scales[block])) == 1 for block in blocks)


def test_products_are_of_all_vectors(many):
    features, maps, windows, expected = many
    rng = np.random.default_rng(3)
    weight, bias = rng.normal(size=(4, 15)).astype(np.float32), rng.normal(size=4).astype(np.float32)
    products = features.products(maps, windows, Products(weight))[0] + bias
    np.testing.assert_allclose(products, expected @ weight.T + bias, atol=1e-5)
    few = np.array([7, 0, 3])
    np.testing.assert_allclose(
        (features.products(maps, windows, Products(weight), few)[0] + bias)[few], products[few], atol=1e-5
    )


def test_exact_and_rough_products_at_once(many):
    features, maps, windows, expected = many
    rng = np.random.default_rng(3)
    exact, rough = (rng.normal(size=(n, 15)).astype(np.float32) for n in (4, 21))
    found = features.products(maps, windows, Products(exact, rough))
    np.testing.assert_array_equal(found[0], features.products(maps, windows, Products(exact))[0])
    np.testing.assert_allclose(found[1], expected @ rough.T, atol=1e-5)


def test_maps_of_bfloat16_are_pooled_as_such(many):
    features, maps, windows, _ = many
    half, maps = replace(features, half=True), [torch.from_numpy(m).bfloat16().float().numpy() for m in maps]
    halved = half.halved(maps)
    assert [m.dtype for m in halved] == [np.int16] * 2
    for rows in features.blocks(windows):
        found = half.block(halved, windows, rows)
        assert found.dtype == torch.bfloat16 and torch.equal(found.float(), features.block(maps, windows, rows))
    rows = np.arange(len(windows.cells))
    np.testing.assert_array_equal(half.vectors(maps, windows, rows), features.vectors(maps, windows, rows))
    weight = np.random.default_rng(3).normal(size=(4, 15)).astype(np.float32)
    exact, halves = (which.products(maps, windows, Products(weight, half=which.half))[0] for which in (features, half))
    assert 0 < np.abs(halves - exact).max() < 2**-14 * np.abs(exact).max()


@pytest.mark.parametrize("kind", ["max", "align"])
def test_maps_are_left_as_they_are_where_bfloat16_would_say_something_else(tiny_features, kind):
    conv_map = maps_of(np.random.default_rng(0), (16, 16))[0]
    conv_map[3, 4, 1] = -0.5 if kind == "max" else 0  # whole numbers are in order for what is positive alone
    assert tiny_features(3, kind=kind, half=True).halved([conv_map])[0] is conv_map


@pytest.mark.parametrize("half", [False, True])
def test_scores_of_a_class_do_not_depend_on_the_others(tiny_features, half):
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
    weight, bias = rng.normal(size=(5, features.dimension)).astype(np.float32), np.zeros(5, np.float32)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(features.products(maps, windows, Products(weight))[0] + bias)
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(found[1], found[0])
    np.testing.assert_array_equal(found[2], found[0])


def test_the_head_sees_pooled_vectors(many, tiny_features):
    _, maps, windows, expected = many
    headed = tiny_features(3, scales=(64, 128), target=32, head=lambda pooled: 2 * pooled[:, :4], head_dimension=4)
    rows = np.arange(len(expected))
    np.testing.assert_array_equal(headed.vectors(maps, windows, rows), 2 * expected[:, :4])
    np.testing.assert_array_equal(headed.pooled.vectors(maps, windows, rows), expected)


def test_a_head_beside_the_pooled_vectors_stands_behind_them(many, tiny_features):
    _, maps, windows, expected = many
    head = {"head": lambda pooled: 2 * pooled[:, :4], "head_dimension": 4}
    both = tiny_features(3, scales=(64, 128), target=32, concat_pooled=True, **head)
    assert both.dimension == 19 and both.pooled.dimension == 15
    rows = np.random.default_rng(2).permutation(len(expected))
    whole = np.concatenate([expected, 2 * expected[:, :4]], axis=1)
    np.testing.assert_array_equal(both.vectors(maps, windows, rows), whole[rows])
    rng = np.random.default_rng(3)
    weight, bias = rng.normal(size=(4, 19)).astype(np.float32), rng.normal(size=4).astype(np.float32)
    np.testing.assert_allclose(
        both.products(maps, windows, Products(weight))[0] + bias, whole @ weight.T + bias, atol=1e-5
    )
