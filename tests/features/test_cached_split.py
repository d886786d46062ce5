"""A split with its cache, and the mirror images behind it."""

from __future__ import annotations

import numpy as np
import pytest

from sppdet.config.settings import PoolingSettings, RegionSettings
from sppdet.data.images import read_image
from sppdet.data.voc import read_voc
from sppdet.features.cached_split import CachedSplit, open_split
from sppdet.features.crop_features import CropFeatures
from sppdet.features.pyramid_features import PyramidFeatures
from sppdet.features.warp import Crop
from sppdet.networks.backbone import Backbone
from sppdet.ops import boxes as geometry
from sppdet.proposals.search import SelectiveSearch

SEARCH = SelectiveSearch(max_side=100, max_windows=6)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return Backbone.create("small", "random", "cpu", "float32")


def features_of(kind: str, backbone: Backbone):
    if kind == "crops":
        return CropFeatures(channels=backbone.channels, crop=Crop("warp", 64, 8), levels=(2, 1))
    return PyramidFeatures.create(
        backbone, RegionSettings(scales=[100, 120], target=64), PoolingSettings(levels=[2, 1])
    )


@pytest.fixture(params=["maps", "crops"])
def both(request, tmp_path, shapes_root, backbone) -> tuple[CachedSplit, object]:
    """Three images and their mirror images, and what reads their windows."""
    features = features_of(request.param, backbone)
    dataset = read_voc(shapes_root, "trainval", limit=3)
    split = open_split(dataset, tmp_path / "cache", SEARCH, backbone, features).with_mirror_images()
    assert split.fill_proposals(SEARCH, 1) == 3
    split.fill_maps(backbone, 1)
    return split, features


def test_mirror_images_stand_behind_their_images(both):
    split, _ = both
    assert len(split) == len(set(split.names)) == 6
    for i, sample in enumerate(split.dataset.samples[:3]):
        width, label = sample.width, sample.labels[0]
        assert split.size(i + 3) == split.size(i)
        np.testing.assert_array_equal(split.dataset[i + 3].read(), read_image(sample.path)[:, ::-1])
        np.testing.assert_allclose(split.proposals(i + 3), geometry.mirror(split.proposals(i), width))
        np.testing.assert_allclose(split.objects(i + 3, label), geometry.mirror(split.objects(i, label), width))
        there = split.overlaps(i + 3, split.proposals(i + 3), [0, 1])
        np.testing.assert_allclose(there, split.overlaps(i, split.proposals(i), [0, 1]), atol=1e-5)


def test_their_windows_are_read_in_the_mirrored_image(both, backbone):
    split, features = both
    for i in (4, 1):
        image, boxes = split.dataset[i].read(), split.proposals(i)
        expected = features.of_boxes(features.read(backbone, image, boxes), boxes, split.size(i))
        found = features.of_boxes(split.maps(i), boxes, split.size(i))
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-3)  # stored in half precision
    assert not np.allclose(found, features.of_boxes(split.maps(4), split.proposals(4), split.size(4)), atol=0.01)


def test_the_images_own_entries_are_shared(both, backbone, tmp_path, shapes_root):
    split, features = both
    alone = open_split(read_voc(shapes_root, "trainval", limit=3), tmp_path / "cache", SEARCH, backbone, features)
    assert alone.fill_proposals(SEARCH, 1) == 0 == alone.fill_maps(backbone, 1)
    assert 0 < alone.disk()[1] < split.disk()[1] and alone.disk()[0] == split.disk()[0]
