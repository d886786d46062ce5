"""A split with its maps: what is computed once, mirror images, and the space on disk."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sppdet.config.settings import PoolingSettings, RegionSettings
from sppdet.data.dataset import Dataset, Sample
from sppdet.data.images import read_image
from sppdet.data.voc import read_voc
from sppdet.features import feature_split as module
from sppdet.features.cached_split import open_proposals
from sppdet.features.crop_features import CropFeatures
from sppdet.features.feature_split import (
    CropSplit,
    FeatureSplit,
    MapSplit,
    add_features,
    fill_maps,
    map_name,
    open_split,
)
from sppdet.features.pyramid_features import PyramidFeatures
from sppdet.features.warp import Crop
from sppdet.networks.backbone import Backbone
from sppdet.ops import boxes as geometry
from sppdet.proposals.search import SelectiveSearch
from sppdet.utils.errors import SppdetError

SEARCH = SelectiveSearch(max_side=100, max_windows=6)
CROPS = CropFeatures(channels=128, crop=Crop("warp", 64, 8), levels=(2, 1))


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return Backbone.create("small", "random", "cpu", "float32")


def pyramid(backbone: Backbone, scales=(100, 120), max_side: int = 2500) -> PyramidFeatures:
    regions = RegionSettings(scales=scales, target=64, max_side=max_side)
    return PyramidFeatures.create(backbone, regions, PoolingSettings(levels=(2, 1)))


@pytest.fixture
def random_image(tmp_path) -> Dataset:
    """An image of 40 x 30 pixels of noise, without objects."""
    path = tmp_path / "noise.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)).save(path)
    nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool)
    return Dataset(("c",), (Sample("noise", path, 40, 30, *nothing),))


def test_what_is_stored_under_other_settings_is_never_read(tmp_path, greys, backbone):
    def split_of(search: SelectiveSearch = SEARCH, network: Backbone = backbone, max_side: int = 100) -> FeatureSplit:
        return open_split(greys, tmp_path / "cache", search, network, pyramid(network, (30,), max_side))

    first = split_of()
    assert first.fill_proposals(SEARCH, 1) == 3 and first.fill_maps(backbone, 1) == 3
    assert split_of().fill_proposals(SEARCH, 1) == 0 and split_of().fill_maps(backbone, 1) == 0
    search = replace(SEARCH, base_k=100)
    assert split_of(search).fill_proposals(search, 1) == 3
    other = Backbone.create("small", "random", "cpu", "float32", seed=1)
    assert split_of(network=other).fill_maps(other, 1) == 3
    assert split_of(max_side=90).fill_maps(backbone, 1) == 3
    assert first.fill_maps(backbone, 1, again=True) == 3 and first.fill_proposals(SEARCH, 1, again=True) == 3


def test_the_folders_of_maps_are_those_of_earlier_versions(tmp_path, greys, backbone, monkeypatch):
    # Large caches are used again: neither names nor settings may change.
    monkeypatch.setattr(module, "Store", lambda *arguments: arguments)
    described = {"backbone": "small", "weights": "w", "precision": "float32", "format": 1}
    monkeypatch.setattr(Backbone, "settings", lambda self: described)
    root, kind, settings, suffix = module._map_store("cache", backbone, 2500)
    assert (root, kind, suffix) == ("cache", "maps", ".b2nd") and settings == described | {"max_side": 2500}
    proposals = type("Store", (), {"folder": Path("cache/proposals/0123")})
    root, kind, settings, suffix = module._crop_store("cache", backbone, proposals, CROPS)
    assert (root, kind, suffix) == ("cache", "crops", ".rows")
    assert settings == described | {
        "crop": {"kind": "warp", "size": 64, "context": 8},
        "levels": [2, 1],
        "proposals": "0123",
    }
    assert map_name(480, "a-0") == "480/a-0"


@pytest.mark.parametrize(("half", "map_type"), [(False, "uint8"), (True, "uint8"), (False, "uint6")])
def test_maps_of_codes_give_the_vectors_of_uncached_images_bit_for_bit(
    tmp_path, random_image, backbone, half, map_type
):
    pooling = PoolingSettings(levels=(2, 1), map_type=map_type)
    features = replace(
        PyramidFeatures.create(backbone, RegionSettings(scales=(100, 120), target=64), pooling), half=half
    )
    split = open_split(random_image, tmp_path / "cache", SEARCH, backbone, features)
    split.fill_proposals(SEARCH, 1)
    fill_maps([split], backbone, 1)
    boxes, image = split.proposals(0), read_image(split.dataset[0].path)
    cached = features.of_boxes(split.maps(0), boxes, split.size(0))
    uncached = features.of_boxes(features.read(backbone, image), boxes, split.size(0))
    np.testing.assert_array_equal(cached, uncached)


def test_maps_of_another_type_are_stored_elsewhere(tmp_path, greys, backbone):
    folders = []
    for map_type in ("float16", "uint8", "uint6"):
        features = replace(pyramid(backbone), map_type=map_type)
        folders.append(open_split(greys, tmp_path / "cache", SEARCH, backbone, features).map_store.folder)
    assert len(set(folders)) == 3


@pytest.mark.parametrize("mirrored", [False, True])
def test_damaged_proposals_and_maps_are_computed_anew(tmp_path, random_image, backbone, mirrored, caplog):
    caplog.set_level(logging.WARNING)
    split = open_split(random_image, tmp_path / "cache", SEARCH, backbone, pyramid(backbone)).with_mirror_images()
    assert len(split) == 2 * split.unmirrored == 2 * len(random_image)
    split.fill_proposals(SEARCH, 1)
    fill_maps([split], backbone, 1)
    i = int(mirrored)
    boxes, maps = split.proposals(i), split.maps(i)
    damaged = [split.proposal_store.path(split.names[0]), split.map_store.path(map_name(100, split.names[i]))]
    for path in damaged:
        content = path.read_bytes()
        path.write_bytes(content[:100] + bytes(200) + content[300:])
    np.testing.assert_array_equal(split.proposals(i), boxes)
    for feature_map, expected in zip(split.maps(i), maps):
        np.testing.assert_allclose(feature_map, expected, rtol=1e-3)  # other threads of torch, other last bits
    assert caplog.messages == [f"{path}: the stored file is damaged; computing it anew" for path in damaged]
    split.proposals(i), split.maps(i)
    assert len(caplog.messages) == 2


def test_features_of_another_kind_have_no_split(tmp_path, greys, backbone):
    with pytest.raises(TypeError, match="no split stores what object read windows from"):
        add_features(open_proposals(greys, tmp_path / "cache", SEARCH), tmp_path / "cache", backbone, object())


# Three drawn images and their mirror images


@pytest.fixture(params=["maps", "crops"])
def mirrored(request, tmp_path, shapes_root, backbone) -> tuple[FeatureSplit, MapSplit | CropSplit]:
    """Three images and their mirror images, filled, and the features that read their windows."""
    features = CROPS if request.param == "crops" else pyramid(backbone)
    dataset = read_voc(shapes_root, "trainval", limit=3)
    split = open_split(dataset, tmp_path / "cache", SEARCH, backbone, features).with_mirror_images()
    assert split.fill_proposals(SEARCH, 1) == 3
    split.fill_maps(backbone, 1)
    return split, features


def test_mirror_images_follow_the_images(mirrored):
    split, _ = mirrored
    assert len(split) == len(set(split.names)) == 6
    for i, sample in enumerate(split.dataset.samples[:3]):
        width, label = sample.width, sample.labels[0]
        assert split.size(i + 3) == split.size(i)
        np.testing.assert_array_equal(split.dataset[i + 3].read(), read_image(sample.path)[:, ::-1])
        np.testing.assert_allclose(split.proposals(i + 3), geometry.mirror(split.proposals(i), width))
        np.testing.assert_allclose(split.objects(i + 3, label), geometry.mirror(split.objects(i, label), width))
        overlaps = split.overlaps(i + 3, split.proposals(i + 3), [0, 1])
        np.testing.assert_allclose(overlaps, split.overlaps(i, split.proposals(i), [0, 1]), atol=1e-5)


def test_windows_of_a_mirror_image_are_read_in_the_mirrored_image(mirrored, backbone):
    split, features = mirrored
    for i in (4, 1):
        image, boxes = split.dataset[i].read(), split.proposals(i)
        expected = features.of_boxes(features.read(backbone, image, boxes), boxes, split.size(i))
        vectors = features.of_boxes(split.maps(i), boxes, split.size(i))
        np.testing.assert_allclose(vectors, expected, rtol=2e-3, atol=1e-3)  # stored in half precision
    of_mirror_image = features.of_boxes(split.maps(4), split.proposals(4), split.size(4))
    assert not np.allclose(vectors, of_mirror_image, atol=0.01)


def test_a_split_without_mirror_images_uses_the_same_entries(mirrored, backbone, tmp_path, shapes_root):
    split, features = mirrored
    alone = open_split(read_voc(shapes_root, "trainval", limit=3), tmp_path / "cache", SEARCH, backbone, features)
    assert alone.fill_proposals(SEARCH, 1) == 0 == alone.fill_maps(backbone, 1)
    assert 0 < alone.disk()[1] < split.disk()[1] and alone.disk()[0] == split.disk()[0]
    assert alone.disk()[0] == sum(path.stat().st_size for path in alone.proposal_store.folder.glob("*.npy"))


# The space on disk


class TenBytes(MapSplit):
    """A split whose every map takes 10 bytes per square pixel of scale."""

    def fill_maps(self, backbone, workers: int, again: bool = False, first: int | None = None) -> int:
        scales, names = self.features.scales, self.names[:first]
        missing = self.map_store.missing([map_name(scale, name) for scale in scales for name in names])
        for entry in missing:
            path = self.map_store.path(entry)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bytes(10 * int(entry.partition("/")[0]) ** 2))
        return len(missing)


@pytest.fixture
def hundred_images(make_split) -> TenBytes:
    """A hundred images at scales 10 and 20: 8 of them are filled first, the other 92 x 5000 bytes then."""
    split = make_split([(np.zeros((16, 16, 1)), [], [], [])] * 100, ("a",))
    for path in split.map_store.folder.rglob("*.b2nd"):
        path.unlink()
    return TenBytes(**vars(split) | {"features": replace(split.features, scales=(10, 20))})


def free_space(monkeypatch, count: int) -> None:
    """Let every disk have ``count`` bytes free."""
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=count))


def test_maps_that_fit_on_the_disk_are_written_and_their_size_is_logged(hundred_images, monkeypatch, caplog):
    free_space(monkeypatch, 92 * 5000)
    with caplog.at_level(logging.INFO):
        assert fill_maps([hundred_images], None, 1) == 200
    folder = hundred_images.map_store.folder
    assert caplog.messages == [f"maps: about 0.5 MB to be written, 0.5 MB free in {folder}"]
    assert hundred_images.disk() == (hundred_images.proposal_store.size(hundred_images.names), 100 * 5000)
    caplog.clear()
    assert fill_maps([hundred_images], None, 1) == 0 and not caplog.messages


def test_maps_that_do_not_fit_on_the_disk_are_refused_after_a_few(hundred_images, monkeypatch):
    free_space(monkeypatch, 92 * 5000 - 1)
    with pytest.raises(
        SppdetError, match=r"^run\.cache: about 0\.5 MB to be written, 0\.5 MB free in .*; give a folder"
    ):
        fill_maps([hundred_images], None, 1)
    assert hundred_images.disk()[1] == 8 * 5000 and hundred_images.disk_needed() == 92 * 5000
