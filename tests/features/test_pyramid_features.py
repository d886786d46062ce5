"""Windows on feature maps: the right map, the right cells, and the vectors of Fast R-CNN's and Mask R-CNN's pooling."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from device import DEVICE
from torchvision.ops import roi_align, roi_pool

from sppdet.features.pyramid_features import PyramidFeatures
from sppdet.networks.cell_grid import cell_grid
from sppdet.networks.trunk_output import CellGrid
from sppdet.networks.trunks import build_trunk
from sppdet.ops.coded_maps import encode_map
from sppdet.ops.pooling import pyramid_pool
from sppdet.ops.products import Products, as_tensor
from sppdet.ops.roi_align import pyramid_roi_align
from sppdet.utils.errors import SppdetError

WHOLE = (64, 64)


def maps_of(seed: int, *sizes, channels: int = 3) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.random((height, width, channels)).astype(np.float32) for height, width in sizes]


def channels_first(feature_map: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(feature_map).permute(2, 0, 1)


def test_windows_whose_edges_are_cell_edges_cover_their_cells(tiny_features):
    boxes = np.array([[0, 0, 64, 64], [8, 16, 12, 24], [60, 60, 64, 64]], np.float32)
    windows = tiny_features(3).windows(boxes, WHOLE, maps_of(0, (16, 16)))
    assert windows.cells[windows.group].tolist() == [[0, 0, 16, 16], [2, 4, 3, 6], [15, 15, 16, 16]]


def test_windows_of_the_same_cells_are_one(tiny_features):
    boxes = np.array([[0, 0, 8, 8], [0, 0, 7, 8], [16, 16, 24, 24]], np.float32)
    windows = tiny_features(3).windows(boxes, WHOLE, maps_of(0, (16, 16)))
    assert windows.cells[windows.group].tolist() == [[0, 0, 2, 2], [0, 0, 2, 2], [4, 4, 6, 6]]
    assert len(windows.cells) == 2


def test_aligned_windows_are_not_rounded(tiny_features):
    boxes = np.array([[0, 0, 8, 8], [0, 0, 7, 8]], np.float32)  # a cell is 4 pixels long
    windows = tiny_features(3, kind="align").windows(boxes, WHOLE, maps_of(0, (16, 16)))
    assert windows.cells.tolist() == [[0, 0, 2, 2], [0, 0, 1.75, 2]] and windows.group.tolist() == [0, 1]


def test_each_window_is_read_at_its_scale(tiny_features):
    features = tiny_features(3, scales=(64, 128), target=32)
    maps = maps_of(0, (16, 16), (32, 32))
    # 32 x 32 pixels are the target at the first scale, 16 x 16 are the target at the second, which is twice as large.
    boxes = np.array([[16, 16, 32, 32], [0, 0, 32, 32]], np.float32)
    windows = features.windows(boxes, WHOLE, maps)
    assert windows.scales[windows.group].tolist() == [1, 0]
    vectors = features.of_boxes(maps, boxes, WHOLE)
    np.testing.assert_array_equal(vectors[0], pyramid_pool(maps[1], np.array([[8, 8, 16, 16]]), (2, 1)).ravel())
    np.testing.assert_array_equal(vectors[1], pyramid_pool(maps[0], np.array([[0, 0, 8, 8]]), (2, 1)).ravel())


@pytest.mark.parametrize("name", ["squeezenet1_0", "vgg16", "resnet18", "alexnet", "efficientnet_lite0", "small"])
@pytest.mark.parametrize("factor", [1.0, 688 / 333])
def test_a_map_of_positions_tells_where_the_bins_are(name, factor):
    # Every cell holds the place of its centre in the image: align must give the centre of every bin, in its pixels.
    with torch.device("meta"):
        trunk = build_trunk(name)
    grid, size = cell_grid(trunk), (333, 500)
    columns, rows = (round(side * factor) // grid.stride - 3 for side in size)
    x, y = (
        (grid.centre + grid.stride * np.arange(count) + 0.5) * side / round(side * factor)
        for count, side in zip((columns, rows), size)
    )
    feature_map = np.stack(np.meshgrid(x, y), axis=2).astype(np.float32)
    features = PyramidFeatures(grid, 2, (round(333 * factor),), 5000, 224, 6.5, (2, 1), kind="align")
    box = np.array([[70.25, 90.5, 190.75, 210.125]], np.float32)
    centres = features.of_boxes([feature_map], box, size).reshape(5, 2)
    left, top, right, bottom = box[0]
    across, down = ((low + (high - low) * np.array([0.25, 0.75])) for low, high in ((left, right), (top, bottom)))
    expected = [[u, v] for v in down for u in across] + [[(left + right) / 2, (top + bottom) / 2]]
    np.testing.assert_allclose(centres, expected, atol=2e-3)


def test_one_level_without_shrinking_is_fast_rcnns_roi_pooling():
    # Its cells lie at multiples of 16 pixels, whatever the network. Windows end on the map, on which ours are cut.
    rng = np.random.default_rng(0)
    feature_map, size = rng.random((20, 30, 4)).astype(np.float32), (480, 320)
    corner = rng.integers(0, [400, 240], (80, 2))
    first, last = corner, np.minimum(corner + rng.integers(8, 240, (80, 2)), np.array(size) - 10)
    first, last = (edge + (edge % 16 == 8) for edge in (first, last))  # its round() takes halves away from 0, ours not
    features = PyramidFeatures(CellGrid(16, 0.0), 4, (320,), 1000, 224, 0.0, (7,))
    vectors = features.of_boxes([feature_map], np.concatenate([first, last + 1], axis=1).astype(np.float32), size)
    rois = torch.from_numpy(np.concatenate([first, last], axis=1).astype(np.float32))
    expected = roi_pool(channels_first(feature_map)[None], [rois], 7, spatial_scale=1 / 16)
    np.testing.assert_array_equal(vectors.reshape(80, 49, 4), expected.flatten(2).transpose(1, 2))


def test_one_level_of_align_is_roi_align():
    # torchvision's cells lie half a stride from the image's edge: their centre is pixel 7.5.
    rng = np.random.default_rng(0)
    feature_map, size = rng.random((20, 30, 4)).astype(np.float32), (480, 320)
    boxes = rng.uniform([0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1], (80, 4)) * np.tile(size, 2)
    features = PyramidFeatures(CellGrid(16, 7.5), 4, (320,), 1000, 224, 6.5, (7,), kind="align", samples=2)
    vectors = features.of_boxes([feature_map], boxes.astype(np.float32), size)
    rois = [torch.from_numpy(boxes.astype(np.float32))]
    expected = roi_align(channels_first(feature_map)[None], rois, 7, 1 / 16, 2, aligned=True)
    np.testing.assert_allclose(vectors.reshape(80, 49, 4), expected.flatten(2).transpose(1, 2), atol=1e-5)


def test_kinds_differ_in_what_bins_take(tiny_features):
    maps, boxes = maps_of(0, (16, 16)), np.array([[8, 16, 24, 40], [9, 16, 24, 40]], np.float32)
    maxima = pyramid_pool(maps[0], np.array([[2, 4, 6, 10]] * 2, np.int32), (2, 1)).reshape(2, -1)
    np.testing.assert_array_equal(tiny_features(3).of_boxes(maps, boxes, WHOLE), maxima)
    edges = np.array([[2, 4, 6, 10], [2.25, 4, 6, 10]], np.float32)  # a pixel is a quarter of a cell
    for samples in (0, 3):
        means = pyramid_roi_align(channels_first(maps[0]), edges, (2, 1), samples).flatten(1)
        features = tiny_features(3, kind="align", samples=samples)
        np.testing.assert_array_equal(features.of_boxes(maps, boxes, WHOLE), means)


@pytest.mark.parametrize("kind", ["max", "align"])
def test_training_pools_as_detection_does(tiny_features, kind):
    features, maps = tiny_features(3, kind=kind), maps_of(0, (16, 16))
    boxes = np.random.default_rng(1).uniform(0, 30, (20, 4)).astype(np.float32) + np.float32([0, 0, 32, 32])
    pooled = features.pool(channels_first(maps[0])[None], boxes, WHOLE, 1.0)
    np.testing.assert_array_equal(pooled, features.of_boxes(maps, boxes, WHOLE))


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("kind", ["max", "align"])
def test_each_layer_is_pooled_at_its_levels(tiny_features, kind, half):
    layers = {"layer_channels": (3, 2), "layer_levels": ((2, 1), (3,)), "layer_weights": (0.5, 2.0)}
    features = tiny_features(5, (7,), kind=kind, half=half, **layers)
    maps = [
        np.round(m * 128) / 128 - (0, 0, 0, 0.5, 0.5) for m in maps_of(0, (16, 16), channels=5)
    ]  # exact as bfloat16
    maps = [m.astype(np.float32) for m in maps]
    boxes = np.random.default_rng(1).uniform(0, 30, (20, 4)).astype(np.float32) + np.float32([0, 0, 32, 32])
    first, second = tiny_features(3, kind=kind), tiny_features(2, (3,), kind=kind)
    vectors = np.concatenate(
        [
            first.of_boxes([0.5 * m[..., :3] for m in maps], boxes, WHOLE),
            second.of_boxes([2 * m[..., 3:] for m in maps], boxes, WHOLE),
        ],
        axis=1,
    )
    assert features.pooled_dimension == vectors.shape[1] == 3 * 5 + 2 * 9
    np.testing.assert_array_equal(features.of_boxes(maps, boxes, WHOLE), vectors)
    np.testing.assert_array_equal(features.pool(channels_first(maps[0])[None], boxes, WHOLE, 1.0), vectors)
    assert {key: value for key, value in features.description().items() if key.startswith("layer")} == {
        "layer_levels": [[2, 1], [3]],
        "layer_weights": [0.5, 2.0],
    }


def test_layers_without_their_own_levels_have_those_of_all(tiny_features):
    features = tiny_features(5, (2, 1), layer_channels=(3, 2), layer_weights=(1.0, 3.0))
    assert features.pyramids == [(slice(0, 3), (2, 1), 1.0), (slice(3, 5), (2, 1), 3.0)]
    assert tiny_features(5, (2, 1), layer_channels=(3, 2)).pyramids == [(slice(0, 5), (2, 1), 1.0)]


def test_maps_in_bfloat16_are_pooled_as_such(tiny_features):
    exact, rounded = tiny_features(3), tiny_features(3, half=True)
    maps = [torch.from_numpy(m).bfloat16().float().numpy() for m in maps_of(0, (16, 16))]
    halved = rounded.halved(maps)
    assert [m.dtype for m in halved] == [np.int16] and exact.halved(maps) is maps
    corner = 4 * np.random.default_rng(1).integers(0, 8, (23, 2))
    boxes = np.concatenate([corner, corner + 20], axis=1).astype(np.float32)
    windows = exact.windows(boxes, WHOLE, maps)
    rows = np.arange(len(windows.cells))
    pooled = rounded.block(halved, windows, rows)
    assert pooled.dtype == np.int16
    np.testing.assert_array_equal(as_tensor(pooled).float(), exact.block(maps, windows, rows))
    np.testing.assert_array_equal(rounded.vectors(maps, windows, rows), exact.vectors(maps, windows, rows))
    weight = np.random.default_rng(3).normal(size=(4, 15)).astype(np.float32)
    products, near = (f.products(maps, windows, Products(weight, half=f.half))[0] for f in (exact, rounded))
    assert 0 < np.abs(near - products).max() < 2**-14 * np.abs(products).max()


@pytest.mark.parametrize("kind", ["max", "align"])
def test_maps_stay_as_they_are_where_bfloat16_would_pool_something_else(tiny_features, kind):
    feature_map = maps_of(0, (16, 16))[0]
    feature_map[3, 4, 1] = -0.5 if kind == "max" else 0  # as whole numbers only positive values are in order
    assert tiny_features(3, kind=kind, half=True).halved([feature_map])[0] is feature_map


@pytest.mark.parametrize("kind", ["max", "align"])
@pytest.mark.parametrize("half", [False, True])
def test_maps_of_codes_are_pooled_like_their_numbers(tiny_features, kind, half):
    features, maps = tiny_features(3, kind=kind, half=half, map_type="uint8"), maps_of(0, (16, 16))
    maps[0] -= 0.5
    coded_maps = [encode_map(m) for m in maps]
    boxes = np.random.default_rng(1).uniform(0, 30, (20, 4)).astype(np.float32) + np.float32([0, 0, 32, 32])
    expected = tiny_features(3, kind=kind).of_boxes([m.decoded() for m in coded_maps], boxes, WHOLE)
    if half and kind == "max":
        expected = torch.from_numpy(expected).bfloat16().float().numpy()
    np.testing.assert_array_equal(features.of_boxes(coded_maps, boxes, WHOLE), expected)


@pytest.mark.parametrize("kind", ["max", "align"])
def test_a_device_pools_layers_and_codes_as_the_compiled_loops(tiny_features, kind):
    rng = np.random.default_rng(0)
    layers = {"layer_channels": (3, 5), "layer_levels": ((2, 1), (3,)), "layer_weights": (1.0, 0.5)}
    features = tiny_features(8, kind=kind, **layers)
    boxes = np.array([[0, 0, 64, 64], [4, 8, 40, 60], [16, 16, 20, 20]], np.float32)
    for feature_map in (values := rng.normal(size=(16, 16, 8)).astype(np.float32), encode_map(values)):
        expected = features.of_boxes([feature_map], boxes, (64, 64))
        vectors = replace(features, device=DEVICE).of_boxes([feature_map], boxes, (64, 64))
        np.testing.assert_allclose(vectors, expected, rtol=1e-6, atol=1e-6)


def test_the_type_of_maps_is_described_where_it_is_not_that_of_older_models(tiny_features):
    assert tiny_features(3, map_type="uint8").description() == tiny_features(3).description() | {"map_type": "uint8"}


def test_features_are_rebuilt_from_their_description(tiny_features):
    features = tiny_features(3, scales=(64, 128), kind="align", samples=2)
    description = features.description()
    # Old model files and the keys of learned results hold exactly these entries.
    assert description == {
        "scales": [64, 128],
        "max_side": 1000,
        "target": 64,
        "shrink": 0.0,
        "levels": [2, 1],
        "kind": "align",
        "samples": 2,
    }
    assert json.loads(json.dumps(description)) == description
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in description.items()}
    assert PyramidFeatures(grid=features.grid, channels=3, **values) == features


def test_a_model_of_a_kind_that_is_gone_is_refused(tiny_features):
    with pytest.raises(SppdetError, match=r"model\.json: features\.kind 'average' is not supported any more") as caught:
        replace(tiny_features(3), kind="average")
    assert "\n" not in str(caught.value)
