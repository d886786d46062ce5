"""A split with its cache, and the mirror images behind it."""

from __future__ import annotations

import numpy as np
import pytest

from sppdet import boxes as geometry
from sppdet import corpus as corpora
from sppdet.backbone import Backbone
from sppdet.corpus import Corpus, load_split, open_corpus
from sppdet.crops import CropFeatures
from sppdet.data.voc import read_voc
from sppdet.features import PyramidFeatures
from sppdet.images import read_image
from sppdet.proposals import SelectiveSearch
from sppdet.settings import Config, Pooling, Regions
from sppdet.warp import Crop

SEARCH = SelectiveSearch(max_side=100, max_windows=6)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return Backbone.create("small", "random", "cpu", "float32")


def features_of(kind: str, backbone: Backbone):
    if kind == "crops":
        return CropFeatures(channels=backbone.channels, crop=Crop("warp", 64, 8), levels=(2, 1))
    return PyramidFeatures.create(backbone, Regions(scales=[100, 120], target=64), Pooling(levels=[2, 1]))


@pytest.fixture(params=["maps", "crops"])
def both(request, tmp_path, shapes_root, backbone) -> tuple[Corpus, object]:
    """Three pictures and their mirror images, and what reads their windows."""
    features = features_of(request.param, backbone)
    dataset = read_voc(shapes_root, "trainval", limit=3)
    corpus = open_corpus(dataset, tmp_path / "cache", SEARCH, backbone, features).with_mirror_images()
    assert corpus.fill_proposals(SEARCH, 1) == 3
    corpus.fill_maps(backbone, 1)
    return corpus, features


def test_mirror_images_stand_behind_their_pictures(both):
    corpus, _ = both
    assert len(corpus) == len(set(corpus.names)) == 6
    for i, sample in enumerate(corpus.dataset.samples[:3]):
        width, label = sample.width, sample.labels[0]
        assert corpus.size(i + 3) == corpus.size(i)
        np.testing.assert_array_equal(corpus.dataset[i + 3].read(), read_image(sample.path)[:, ::-1])
        np.testing.assert_allclose(corpus.proposals(i + 3), geometry.mirror(corpus.proposals(i), width))
        np.testing.assert_allclose(corpus.objects(i + 3, label), geometry.mirror(corpus.objects(i, label), width))
        there = corpus.overlaps(i + 3, corpus.proposals(i + 3), [0, 1])
        np.testing.assert_allclose(there, corpus.overlaps(i, corpus.proposals(i), [0, 1]), atol=1e-5)


def test_their_windows_are_read_in_the_mirrored_picture(both, backbone):
    corpus, features = both
    for i in (4, 1):
        image, boxes = corpus.dataset[i].read(), corpus.proposals(i)
        expected = features.of_boxes(features.read(backbone, image, boxes), boxes, corpus.size(i))
        found = features.of_boxes(corpus.maps(i), boxes, corpus.size(i))
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-3)  # stored in half precision
    assert not np.allclose(found, features.of_boxes(corpus.maps(4), corpus.proposals(4), corpus.size(4)), atol=0.01)


def test_the_pictures_own_entries_are_shared(both, backbone, tmp_path, shapes_root):
    corpus, features = both
    alone = open_corpus(read_voc(shapes_root, "trainval", limit=3), tmp_path / "cache", SEARCH, backbone, features)
    assert alone.fill_proposals(SEARCH, 1) == 0 == alone.fill_maps(backbone, 1)
    assert 0 < alone.disk()[1] < corpus.disk()[1] and alone.disk()[0] == corpus.disk()[0]


def test_a_folder_that_has_the_name_of_the_drawn_set_is_not_passed_over_in_silence(shapes_root, tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, "make_shapes", lambda root: shapes_root)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shapes").mkdir()
    with pytest.warns(UserWarning, match="./shapes names the folder of yours"):
        load_split(Config(), "trainval")
