"""A trunk in ONNX Runtime: what it knows of itself, its threads, and its errors."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from sppdet.networks.backbone import Backbone
from sppdet.networks.onnx_trunk import OnnxTrunk
from sppdet.networks.trunk_output import Cut

pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    cut = Cut(("_blocks.10", "_blocks.15"))
    return Backbone.create("efficientnet_lite0", "random", "cpu", "float32", seed=3, cut=cut)


def test_a_trunk_knows_what_the_backbone_does(backbone):
    trunk = OnnxTrunk(backbone.to_onnx())
    assert trunk.name == backbone.name and trunk.weights == backbone.settings()["weights"]
    assert (trunk.grid, trunk.layer_channels) == (backbone.grid, backbone.layer_channels)
    assert trunk.cut == backbone.cut and trunk.normalisation == backbone.normalisation


def test_threads_that_run_a_trunk_together_compute_what_one_does(backbone):
    trunk = OnnxTrunk(backbone.to_onnx())
    images = np.random.default_rng(0).normal(size=(6, 1, 3, 64, 80)).astype(np.float32)
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(trunk, images))
    for image, feature_map in zip(images, together):
        np.testing.assert_allclose(feature_map, trunk(image), atol=1e-5 * np.abs(feature_map).max())


def test_a_damaged_file_is_one_line(backbone):
    for model in (b"", b"no protocol buffer", backbone.to_onnx()[:-300]):
        with pytest.raises(ValueError, match="is no trunk in ONNX form") as caught:
            OnnxTrunk(model)
        assert "\n" not in str(caught.value)
