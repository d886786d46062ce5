"""SPP-net as a classifier: images of any size and kind, the views it is tested on, errors, and the saved model."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from sppdet.classification import classifier as module
from sppdet.classification.classifier import (
    Classifier,
    SPPClassifier,
    load_classifier,
    measure_classifier,
    view_windows,
)
from sppdet.classification.training import to_pixels
from sppdet.config.settings import ViewSettings
from sppdet.data.folders import LabelledImages
from sppdet.data.images import read_image
from sppdet.networks.backbone import Backbone
from sppdet.networks.cell_grid import freeze
from sppdet.networks.normalisation import IMAGENET
from sppdet.networks.trunks import build_trunk
from sppdet.utils.errors import SppdetError
from sppdet.utils.files import read_json

VIEW, SCALES = 64, [64, 88]


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (90, 130, 3), np.uint8)


@pytest.fixture
def classifier() -> Classifier:
    torch.manual_seed(0)
    backbone = Backbone.create("small", "random", "cpu", "float32")
    network = SPPClassifier(backbone.trunk, 128, 3, (3, 1)).eval().requires_grad_(False)
    network.scale.fill_(50.0)  # so that no two views have the same probabilities
    return Classifier(("ant", "bee", "cat"), backbone, network, ViewSettings("crop", VIEW, 80, SCALES))


@pytest.mark.parametrize("size", [(64, 64), (97, 150), (224, 180)])
@pytest.mark.parametrize("units", [0, 16])
def test_images_of_any_size_have_one_logit_per_class(size, units):
    network = SPPClassifier(build_trunk("small"), 128, 5, (3, 1), units=units).eval()
    images = torch.rand(2, 3, *size)
    logits = network(images)
    assert logits.shape == (2, 5) and network.classifier.in_features == (units or 1280)
    network.scale.fill_(2.0)
    pooled = network.pool(network.trunk(images))
    torch.testing.assert_close(network(images), network.classifier(network.head(2 * pooled)))


def test_batch_norm_of_fixed_layers_keeps_its_statistics():
    network = SPPClassifier(build_trunk("small"), 128, 5, (1,))
    freeze(network.trunk, 8)
    before = {name: value.clone() for name, value in network.trunk.state_dict().items()}
    network.train()(torch.rand(2, 3, 64, 64))
    changed = {name for name, value in network.trunk.state_dict().items() if not torch.equal(value, before[name])}
    assert {name.split(".")[1] for name in changed if "running" in name} == {"7", "10", "13"}  # at stride 16


def test_all_parameters_learn_once_it_is_prepared_for_training():
    network = SPPClassifier(build_trunk("small").requires_grad_(False), 128, 5, (1,))
    assert network.for_training(torch.device("cpu")) is network
    assert all(parameter.requires_grad for parameter in network.parameters())


# Images


def test_an_image_may_be_a_path_a_pillow_image_or_an_array(classifier, image, tmp_path):
    path = tmp_path / "image.png"
    Image.fromarray(image).save(path)
    expected = classifier.predict(image)
    for other in (path, str(path), Image.open(path), read_image(path)):
        np.testing.assert_array_equal(classifier.predict(other), expected)
    with pytest.raises(SppdetError, match="an image cannot be a int"):
        classifier.predict(3)


def test_many_images_have_many_results(classifier, image):
    images = [image, np.ascontiguousarray(image[::-1])]
    expected = [classifier.predict(one) for one in images]
    assert not np.array_equal(*expected)
    for several in (images, tuple(images), iter(images)):
        np.testing.assert_array_equal(list(classifier.predict(several)), expected)
    assert isinstance(classifier.predict(images), list) and classifier.predict([]) == []


def test_an_iterator_is_read_when_its_results_are_asked_for(classifier, image):
    read = []
    results = classifier.predict(read.append(n) or image for n in range(3))
    assert read == []
    next(results)
    assert read == [0]


def test_views_without_numbers_are_an_error(classifier, image):
    classifier.test = ViewSettings("full")
    with pytest.raises(SppdetError, match=r"^Classifier\.test: view, side or scales is None"):
        classifier.predict(image)


# Views


def probabilities(network: SPPClassifier, image: np.ndarray) -> np.ndarray:
    return network(to_pixels(image[None], IMAGENET)).softmax(1)[0].numpy()


def test_crop_is_the_centre_at_the_given_side(classifier, image):
    scaled = module.resized(image, 80)
    assert scaled.shape == (80, 116, 3)
    expected = probabilities(classifier.network, scaled[8:72, 26:90])
    np.testing.assert_allclose(classifier.predict(image), expected, atol=1e-5)
    assert expected.sum() == pytest.approx(1) and expected.std() > 1e-3


def test_small_views_are_read_as_in_training(classifier, image):
    classifier.test = ViewSettings("full", 24, 24, [24])
    expected = probabilities(classifier.network, module.resized(image, 24))
    np.testing.assert_allclose(classifier.predict(image), expected, atol=1e-5)


def test_full_is_the_whole_image(classifier, image):
    classifier.test = replace(classifier.test, views="full")
    expected = probabilities(classifier.network, module.resized(image, 80))
    np.testing.assert_allclose(classifier.predict(image), expected, atol=1e-5)


def test_multi_is_the_mean_over_windows_of_the_maps(classifier, image):
    classifier.test = replace(classifier.test, views="multi")
    network, views = classifier.network, []
    for side, corners in (
        (64, [(0, x) for x in (0, 14, 28)]),
        (88, [(y, x) for y in (0, 12, 24) for x in (0, 31, 63)]),
    ):
        scaled = module.resized(image, side)
        for mirrored_or_not in (scaled, scaled[:, ::-1]):
            feature_map = network.trunk(to_pixels(np.ascontiguousarray(mirrored_or_not)[None], IMAGENET))
            for y, x in corners:  # cell i is centred on pixel 16 i
                rows = [i for i in range(feature_map.shape[2]) if y <= 16 * i < y + VIEW]
                columns = [i for i in range(feature_map.shape[3]) if x <= 16 * i < x + VIEW]
                view = feature_map[:, :, rows][:, :, :, columns]
                views.append(network.score(network.pool(view)).softmax(1)[0].numpy())
    assert len(views) == 6 + 18
    np.testing.assert_allclose(classifier.predict(image), np.mean(views, axis=0), atol=1e-5)
    assert np.std(views, axis=0).min() > 1e-4


def test_the_papers_scales_give_96_views():
    sizes = [(side * 4 // 3, side) for side in (224, 256, 300, 360, 448, 560)]
    assert sum(2 * len(view_windows(*size, 224)) for size in sizes) == 96


def test_views_lie_in_the_centre_the_corners_and_the_middles_of_the_sides():
    windows = view_windows(300, 256, 224)
    assert windows.dtype == np.float32
    assert windows[:, :2].tolist() == [[x, y] for y in (0, 16, 32) for x in (0, 38, 76)]
    assert (windows[:, 2:] - windows[:, :2] == 224).all()
    assert view_windows(224, 300, 224)[:, :2].tolist() == [[0, 0], [0, 38], [0, 76]]
    assert view_windows(224, 224, 224).tolist() == [[0, 0, 224, 224]]


@pytest.mark.parametrize("name", ["small", "squeezenet1_0", "resnet18"])
def test_a_view_has_as_many_cells_as_a_map_of_its_size(name, monkeypatch):
    backbone = Backbone.create(name, "random", "cpu", "float32")
    pooled = []
    network = SPPClassifier(backbone.trunk, backbone.channels, 2, (1,)).eval()
    monkeypatch.setattr(network.pool, "forward", lambda x: pooled.append(tuple(x.shape[2:])) or x.amax((2, 3)))
    classifier = Classifier(("a", "b"), backbone, network, ViewSettings("crop", 224, 224, [272]))
    image = np.zeros((272, 272, 3), np.uint8)
    classifier.predict(image[:224, :224])
    classifier.test = replace(classifier.test, views="multi")
    classifier.predict(image)
    alone, corner = pooled[:2]
    assert alone == corner and len(pooled) == 1 + 18


# Errors


class ByBrightness:
    """Ranks the classes k, k + 1, k + 2 ... of six, in this order, for an image whose first pixel is 10 k."""

    classes = tuple("abcdef")
    test = ViewSettings("crop", 8, 8, [8])

    def predict(self, image: np.ndarray) -> np.ndarray:
        return np.roll([0.5, 0.3, 0.1, 0.05, 0.03, 0.02], int(image[0, 0, 0]) // 10)


def test_errors_by_hand(tmp_path):
    shown, labels = [0, 0, 1, 1, 4], [0, 5, 1, 0, 1]
    paths = []
    for i, value in enumerate(shown):
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(np.full((8, 8, 3), 10 * value, np.uint8)).save(paths[-1])
    images = LabelledImages(tuple("abcdef"), tuple(paths), np.array(labels))
    metrics = measure_classifier(ByBrightness(), images, workers=1)
    # Ranks of the right classes from 0: 0, 5, 0, 5 (class 0 is the fifth after 1), 3 (class 1 is the third after 4).
    assert metrics["pictures"] == 5 and metrics["top1_error"] == 60 and metrics["top5_error"] == 40
    assert metrics["error"] == {"a": 50, "b": 50, "c": None, "d": None, "e": None, "f": 100}


# The saved model


@pytest.mark.parametrize("units", [0, 8])
def test_a_saved_classifier_is_the_same(tmp_path, classifier, image, units):
    classifier.network = SPPClassifier(classifier.backbone.trunk, 128, 3, (2, 1), units=units).eval()
    classifier.save(tmp_path, "key")
    again = load_classifier(tmp_path, "cpu")
    assert again.classes == classifier.classes and again.test == classifier.test
    np.testing.assert_array_equal(again.predict(image), classifier.predict(image))
    assert json.loads((tmp_path / "classifier.json").read_text())["key"] == "key"


def test_files_that_cannot_be_loaded_are_an_error(tmp_path, classifier):
    with pytest.raises(SppdetError, match=r"no classifier \(classifier\.json\) here; sppdet classify train"):
        load_classifier(tmp_path)
    classifier.save(tmp_path)
    description = read_json(tmp_path / "classifier.json")
    for changes, message in (
        ({"format": 99}, "classifier.json: format 99, this version reads 1; train again"),
        ({"levels": [4]}, "its weights do not fit this version's small; train again"),
    ):
        (tmp_path / "classifier.json").write_text(json.dumps(description | changes))
        with pytest.raises(SppdetError, match=message):
            load_classifier(tmp_path)
    (tmp_path / "classifier.json").write_text(json.dumps(description))
    (tmp_path / "classifier.safetensors").write_bytes(b"half")
    with pytest.raises(SppdetError, match=r"classifier\.safetensors: cannot be read"):
        load_classifier(tmp_path)
