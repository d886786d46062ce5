"""R-CNN's features: the vector of a window is that of its crop, and is found again by the window's box."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from sppdet.data.images import read_image
from sppdet.data.voc import read_voc
from sppdet.features.crop_features import CropFeatures, CropVectors
from sppdet.features.feature_split import CropSplit, fill_maps, open_split
from sppdet.features.warp import Crop
from sppdet.networks.backbone import Backbone
from sppdet.networks.normalisation import IMAGENET
from sppdet.ops.pooling import pyramid_pool
from sppdet.ops.products import Products
from sppdet.utils.errors import SppdetError

FEATURES = CropFeatures(channels=128, crop=Crop("warp", 64, 4), levels=(2, 1))
SIZE = (160, 120)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return Backbone.create("small", "random", "cpu", "float32")


class FixedWindows:
    """Stands in for selective search."""

    def settings(self) -> dict:
        return {}


@pytest.fixture
def split(tmp_path, shapes_root, backbone) -> CropSplit:
    """Twelve images of three proposals; the second is the box of the image's first object, if it has objects."""
    opened = open_split(read_voc(shapes_root, "trainval"), tmp_path / "cache", FixedWindows(), backbone, FEATURES)
    for name, sample in zip(opened.names, opened.dataset):
        boxes = np.array([[0, 0, 40, 50], [8, 4, 60, 60], [30, 20, 31, 90]], np.float32)
        boxes[1:2] = sample.boxes[:1]
        opened.proposal_store.write(name, boxes)
    return opened


def test_a_vector_is_the_pooled_map_of_the_windows_crop(split, backbone):
    image = read_image(split.dataset[0].path)
    boxes = np.concatenate([split.proposals(0), split.dataset[0].boxes])
    vectors = FEATURES.compute(backbone, image, boxes, batch=2)
    assert vectors.shape == (len(boxes), FEATURES.pooled_dimension) == (len(boxes), 640)
    assert vectors.dtype == np.float16
    for box, vector in zip(boxes, vectors):
        crop = torch.from_numpy(FEATURES.crop.pixels(IMAGENET.normalise(image), box[None])).permute(0, 3, 1, 2)
        with torch.inference_mode():
            feature_map = backbone.trunk(crop)[0].permute(1, 2, 0).contiguous().numpy()
        height, width = feature_map.shape[:2]
        pooled = pyramid_pool(
            feature_map, np.array([[0, 0, width, height]]), FEATURES.levels
        )  # in the order of bins of SPP-net
        np.testing.assert_allclose(vector, pooled.ravel(), rtol=2e-3, atol=1e-4)


def test_each_layer_of_a_crop_is_pooled_at_its_levels():
    maps = torch.rand(2, 5, 6, 7, generator=torch.Generator().manual_seed(0))
    layers = {"layer_channels": (3, 2), "layer_levels": ((2, 1), (3,)), "layer_weights": (0.5, 2.0)}
    pooled = replace(FEATURES, channels=5, **layers).pool(maps, np.zeros((2, 4)), (9, 9), 1.0)
    first, second = (replace(FEATURES, channels=n, levels=levels) for n, levels in ((3, (2, 1)), (2, (3,))))
    parts = [
        f.pool(m, np.zeros((2, 4)), (9, 9), 1.0) for f, m in ((first, 0.5 * maps[:, :3]), (second, 2 * maps[:, 3:]))
    ]
    torch.testing.assert_close(pooled, torch.cat(parts, 1), rtol=0, atol=0)


def test_a_vector_computed_alone_does_not_depend_on_the_others(split, backbone):
    image, boxes = read_image(split.dataset[0].path), split.proposals(0)
    every = FEATURES.compute(backbone, image, boxes, batch=1)
    for i in range(len(boxes)):
        np.testing.assert_array_equal(FEATURES.compute(backbone, image, boxes[i : i + 1], batch=1)[0], every[i])


@pytest.fixture
def stored() -> CropVectors:
    """300 windows; the box of the last is that of the first, with another vector."""
    rng = np.random.default_rng(0)
    corner = rng.permutation(400)[:299]
    boxes = np.stack([corner, corner // 2, corner + 10, corner + 20], axis=1).astype(np.float32)
    return CropVectors(np.concatenate([boxes, boxes[:1]]), rng.normal(size=(300, 640)).astype(np.float16))


def test_windows_are_found_by_their_boxes(stored):
    chosen = np.array([7, 250, 7, 0, 299])
    windows = FEATURES.windows(stored.boxes[chosen], SIZE, stored)
    assert len(windows.cells) == 3  # 7 comes twice, and 299 is 0 again
    vectors = FEATURES.of_boxes(stored, stored.boxes[chosen], SIZE)
    np.testing.assert_array_equal(vectors, stored.vectors[[7, 250, 7, 0, 0]].astype(np.float32))
    assert FEATURES.of_boxes(stored, stored.boxes[:0], SIZE).shape == (0, 640)


def test_a_window_that_is_not_stored_is_refused(stored):
    with pytest.raises(KeyError):
        FEATURES.windows(stored.boxes[:1] + 0.5, SIZE, stored)


def test_products_and_heads(stored):
    rng = np.random.default_rng(1)
    windows = FEATURES.windows(stored.boxes, SIZE, stored)
    vectors = stored.vectors[:299].astype(np.float32)
    weight = rng.normal(size=(3, 640)).astype(np.float32)
    products, _ = FEATURES.products(stored, windows, Products(weight))
    np.testing.assert_allclose(products, vectors @ weight.T, atol=1e-3)
    headed = replace(FEATURES, head=lambda pooled: 2 * pooled[:, :5], head_dimension=5)
    assert headed.dimension == 5 and headed.pooled.dimension == 640
    rows = np.array([260, 3])  # of different blocks
    np.testing.assert_array_equal(headed.vectors(stored, windows, rows), 2 * vectors[rows, :5])


def test_the_cache_holds_proposals_and_objects(split, backbone):
    assert fill_maps([split], backbone, 1) > 0 == fill_maps([split], backbone, 1)
    for i in (0, 5, 11):
        maps, sample = split.maps(i), split.dataset[i]
        assert maps.boxes.tolist() == [*split.proposals(i).tolist(), *sample.boxes.tolist()]
        expected = FEATURES.compute(backbone, read_image(sample.path), maps.boxes)
        np.testing.assert_allclose(maps.vectors, expected, rtol=2e-3, atol=1e-4)
        # Of a proposal and an object of one box the proposal is found.
        assert maps.rows(sample.boxes[:1]).tolist() == [1]


def test_changed_annotations_leave_the_vectors_of_the_proposals(split, backbone):
    fill_maps([split], backbone, 1)
    before = {path: path.stat().st_mtime_ns for path in split.map_store.folder.rglob("*.rows")}
    samples = list(split.dataset.samples)
    samples[3] = replace(samples[3], boxes=samples[3].boxes + np.float32(1))
    changed = replace(split, dataset=replace(split.dataset, samples=tuple(samples)))
    assert fill_maps([changed], backbone, 1) == 1
    after = {path: path.stat().st_mtime_ns for path in split.map_store.folder.rglob("*.rows")}
    assert {path: after[path] for path in before} == before
    (new,) = set(after) - set(before)
    assert new.parent.name == "objects" and new.name.startswith(split.names[3])


def test_other_crops_and_networks_are_stored_elsewhere(split, backbone, tmp_path):
    def folder(features, backbone=backbone):
        return open_split(split.dataset, tmp_path / "cache", FixedWindows(), backbone, features).map_store.folder

    other = Backbone.create("small", "random", "cpu", "float32", seed=1)
    crops = [Crop("square", 64, 4), Crop("warp", 96, 4), Crop("warp", 64, 5)]
    folders = [folder(FEATURES), folder(replace(FEATURES, levels=(3,))), folder(FEATURES, other)]
    folders += [folder(replace(FEATURES, crop=crop)) for crop in crops]
    assert len({*folders}) == 6 and split.map_store.folder == folders[0]


def test_vectors_of_other_proposals_are_refused(split, backbone):
    fill_maps([split], backbone, 1)
    split.proposal_store.write(split.names[2], split.proposals(2)[:2])
    with pytest.raises(SppdetError, match=r"\.rows: holds other windows than the proposals; delete it"):
        split.maps(2)


def test_damaged_vectors_are_computed_anew(split, backbone, caplog):
    fill_maps([split], backbone, 1)
    expected = split.maps(2).vectors
    for name in split.map_entries():
        path = split.map_store.path(name)
        path.write_bytes(path.read_bytes()[:-100] + bytes(100))
    np.testing.assert_allclose(split.maps(2).vectors, expected, rtol=1e-2, atol=1e-3)
    assert [message.rpartition(": ")[2] for message in caplog.messages] == [
        "the stored file is damaged; computing it anew"
    ] * (1 + bool(len(split.dataset[2].boxes)))


def test_images_without_proposals_or_objects(split, backbone):
    samples = list(split.dataset.samples)
    samples[0] = replace(samples[0], boxes=samples[0].boxes[:0], labels=samples[0].labels[:0])
    split = replace(split, dataset=replace(split.dataset, samples=tuple(samples)))
    split.proposal_store.write(split.names[0], np.zeros((0, 4), np.float32))
    fill_maps([split], backbone, 1)
    assert split.maps(0).boxes.shape == (0, 4) and split.maps(0).vectors.shape == (0, 640)


def test_crops_that_the_trunk_learns_from_are_pooled_differentiably(backbone):
    image = np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8)
    boxes = np.array([[0, 0, 40, 50], [8, 4, 60, 60]], np.float32)
    pixels, factor = FEATURES.trunk_input(backbone, image, boxes, 480)
    assert pixels.shape == (2, 3, 64, 64) and factor == 1
    maps = backbone.trunk(pixels).requires_grad_()
    pooled = FEATURES.pool(maps, boxes, SIZE, factor)
    np.testing.assert_allclose(pooled.detach(), FEATURES.compute(backbone, image, boxes), rtol=2e-3, atol=1e-4)
    pooled.sum().backward()
    assert (maps.grad.sum(dim=(2, 3)) == 5).all()  # the gradient of each bin goes to one cell


def test_the_windows_must_be_known(backbone):
    with pytest.raises(ValueError, match="the boxes must be given"):
        FEATURES.read(backbone, np.zeros((90, 90, 3), np.uint8))


def test_the_description_holds_every_setting():
    # Model files and the keys of caches hold exactly these entries.
    assert FEATURES.description() == {"crop": {"kind": "warp", "size": 64, "context": 4}, "levels": [2, 1]}
