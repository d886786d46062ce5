"""The detector: files that give the same detections again."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from sppdet.config.settings import DetectionSettings
from sppdet.detection import detector as module
from sppdet.detection.detector import Detector
from sppdet.detection.linear_layers import BoxRegressors, LinearSVMs
from sppdet.features.pyramid_features import PyramidFeatures
from sppdet.networks.backbone import Backbone
from sppdet.networks.fc_head import Head
from sppdet.proposals.search import SelectiveSearch
from sppdet.utils.errors import SppdetError


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    image = np.random.default_rng(0).integers(0, 60, (120, 160, 3), np.uint8)
    image[20:80, 30:90] = [200, 60, 20]
    image[50:100, 100:150] = [20, 160, 220]
    return image


def random_detector(layer: str | None = None, with_regressors: bool = True, **pooling) -> Detector:
    rng = np.random.default_rng(0)
    backbone = Backbone.create("small", "random", "cpu", "float32", seed=3)
    features = PyramidFeatures(backbone.grid, backbone.channels, (120, 160), 1000, 64, 6.5, (2, 1), **pooling)
    pooled, head = features.dimension, None
    if layer:
        torch.manual_seed(0)
        head = Head(pooled, 16, layer, 0.5, balance=0.7).eval()
        features = features.under(head)
    weight = rng.normal(size=(3, features.dimension)).astype(np.float32)
    regressors = None
    if with_regressors:
        moves, inputs = (
            rng.normal(0, 0.1, (3, 4)).astype(np.float32),
            features.dimension if features.concat_pooled else pooled,
        )
        moving = rng.normal(0, 0.002, (3, 4, inputs)).astype(np.float32)
        regressors = BoxRegressors(moving, moves, of_head=features.concat_pooled)
    svms = LinearSVMs(weight, np.zeros(3, np.float32))
    detection = DetectionSettings(nms=0.4, min_margin=-0.2, max_per_class=9, context=0.01)
    images = LinearSVMs(rng.normal(size=weight.shape).astype(np.float32), np.full(3, -2, np.float32))
    search, classes = SelectiveSearch(), ("a", "b c", "ü")
    return Detector(classes, backbone, features, search, svms, regressors, detection, head, images)


@pytest.mark.parametrize(("layer", "regressors"), [(None, True), ("fc6", True), ("pool5+fc7", True), (None, False)])
def test_a_saved_detector_finds_exactly_the_same(tmp_path, image, layer, regressors):
    detector = random_detector(layer, regressors)
    expected = detector.predict(image)
    assert len(expected) > 3
    detector.save(tmp_path / "model")
    loaded = module.load_detector(tmp_path / "model", device="cpu")
    found = loaded.predict(image)
    for name in ("boxes", "labels", "scores"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert found.classes == expected.classes == ("a", "b c", "ü")
    assert loaded.detection == detector.detection and loaded.search == detector.search
    assert (loaded.regressors is None) != regressors and (loaded.head is None) == (layer is None)


@pytest.mark.parametrize("layer", [None, "pool5+fc7"])
def test_where_maps_are_of_bfloat16_shifts_are_rounded_and_scores_are_not(layer):
    exact, rng = random_detector(layer), np.random.default_rng(1)
    exact = replace(exact, detection=replace(exact.detection, vote=0.4))
    coarse = replace(exact, features=replace(exact.features, half=True))
    maps = [rng.random((side, side, exact.features.channels), np.float32) for side in (30, 40)]
    maps = [torch.from_numpy(m).bfloat16().float().numpy() for m in maps]
    corner = rng.integers(0, 80, (50, 2))
    boxes = np.concatenate([corner, corner + rng.integers(20, 40, (50, 2))], axis=1).astype(np.float32)
    views = [module.WindowScores(detector, maps, boxes, (120, 120)) for detector in (exact, coarse)]
    np.testing.assert_allclose(views[0].margins, views[1].margins, atol=2**-14 * np.abs(views[0].margins).max())
    rows, labels = np.arange(50), rng.integers(0, 3, 50)
    shifts, rounded = (view.deltas(rows, labels) for view in views)
    assert 0 < np.abs(rounded - shifts).max() < 0.01 < np.abs(shifts).max()


def test_the_kind_of_pooling_is_saved(tmp_path, image):
    detector = random_detector(kind="align", samples=3)
    detector.save(tmp_path)
    loaded = module.load_detector(tmp_path, device="cpu")
    assert loaded.features == detector.features
    expected, found = detector.predict(image), loaded.predict(image)
    assert len(found) > 3
    np.testing.assert_array_equal(found.scores, expected.scores)
    np.testing.assert_array_equal(found.boxes, expected.boxes)


def test_models_from_before_there_were_kinds_or_context_take_the_maximum_alone(tmp_path):
    replace(random_detector(), context=None, detection=DetectionSettings()).save(tmp_path)
    description = json.loads((tmp_path / "model.json").read_text())
    for key in ("kind", "samples"):
        del description["features"][key]
    del description["detection"]["context"]
    (tmp_path / "model.json").write_text(json.dumps(description))
    model = module.load_detector(tmp_path, device="cpu")
    assert model.features.kind == "max" and model.context is None and model.detection.context == 0


def test_saving_what_was_loaded_gives_the_same_bytes(tmp_path):
    random_detector("fc6").save(tmp_path / "a")
    module.load_detector(tmp_path / "a", device="cpu").save(tmp_path / "b")
    for name in ("model.json", "model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_black_image_has_no_detections_or_ordinary_ones():
    found = random_detector().predict(np.zeros((40, 50, 3), np.uint8))
    assert (found.boxes >= 0).all() and (found.boxes <= [50, 40, 50, 40]).all()


def test_no_model_here(tmp_path):
    with pytest.raises(SppdetError, match=r"no finished model .*sppdet\.train"):
        module.load_detector(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "missing"])
def test_damaged_weights_are_named(tmp_path, damage):
    random_detector().save(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000]) if damage == "cut" else path.unlink()
    with pytest.raises(SppdetError, match=r"model\.safetensors: cannot be read"):
        module.load_detector(tmp_path)


def test_a_model_of_another_version(tmp_path):
    random_detector().save(tmp_path)
    description = json.loads((tmp_path / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps(description | {"format": 99}))
    with pytest.raises(SppdetError, match=r"model\.json: format 99, this version reads"):
        module.load_detector(tmp_path)
