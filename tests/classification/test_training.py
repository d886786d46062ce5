"""Training at several sizes in turn: what is shown, what learns, and going on after an interruption."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from sppdet import config
from sppdet.classification import training
from sppdet.classification.classifier import SPPClassifier
from sppdet.config.settings import ClassifierConfig
from sppdet.data.folders import LabelledImages
from sppdet.networks.backbone import Backbone
from sppdet.networks.cell_grid import freeze
from sppdet.networks.normalisation import MEAN, STD
from sppdet.utils.errors import SppdetError


@pytest.fixture
def images(tmp_path) -> LabelledImages:
    """Ten images of noise of some 40 x 60 pixels, class 0 reddish, class 1 bluish."""
    rng = np.random.default_rng(0)
    paths = []
    for i in range(10):
        image = rng.integers(0, 120, (40 + i, 60, 3), np.uint8)
        image[:, :, 2 * (i % 2)] += 120
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(image).save(paths[-1])
    return LabelledImages(("red", "blue"), tuple(paths), np.arange(10) % 2)


def settings_of(*overrides: str) -> ClassifierConfig:
    quick = ["sizes=[48,32]", "batch_size=4", "epochs=2", "levels=[2,1]", "workers=1", "run.seed=3"]
    return config.override(ClassifierConfig(), [*quick, *overrides])


def train(images: LabelledImages, *overrides: str, log=lambda text: None, prepare=lambda network: None, **more):
    """The trained network and its history."""
    settings = settings_of(*overrides)
    torch.manual_seed(settings.run.seed)
    backbone = Backbone.create("small", "random", "cpu", "float32", settings.run.seed)
    network = SPPClassifier(backbone.trunk, 128, 2, settings.levels, settings.dropout).requires_grad_(True)
    prepare(network)
    batches = training.folder_batches(images, settings)
    return network, training.train_network(network, backbone, batches, len(images) // 4, settings, log, **more)


# What is shown


def test_a_view_shows_the_same_at_every_size():
    image = cv2.resize(np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8), (90, 60))
    settings = settings_of("sizes=[48,24]", "side=60")
    for seed in range(6):
        large, small = (training.random_view(image, settings, size, np.random.default_rng(seed)) for size in (48, 24))
        assert large.shape == (48, 48, 3) and small.shape == (24, 24, 3)
        halved = cv2.resize(np.ascontiguousarray(large), (24, 24), interpolation=cv2.INTER_AREA)
        assert np.abs(halved.astype(int) - small).max() <= 1


def test_views_are_parts_of_the_image_mirrored_every_other_time():
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    settings = settings_of("sizes=[48]", "side=60")
    mirrored = []
    for seed in range(20):
        view = training.random_view(image, settings, 48, np.random.default_rng(seed))
        parts = [image[y : y + 48, x : x + 48] for y in range(13) for x in range(43)]
        same = any(np.array_equal(view, part) for part in parts)
        turned = any(np.array_equal(view[:, ::-1], part) for part in parts)
        assert same != turned
        mirrored.append(turned)
    assert 4 < sum(mirrored) < 16
    plain = settings_of("sizes=[48]", "side=60", "flip=false")
    views = [training.random_view(image, plain, 48, np.random.default_rng(seed)) for seed in range(8)]
    assert all(any(np.array_equal(view, part) for part in parts) for view in views)


def test_pixels_are_normalised_as_the_trunk_wants_them():
    image = np.random.default_rng(0).integers(0, 256, (1, 5, 4, 3), np.uint8)
    found = training.to_pixels(image)
    assert found.dtype == torch.float32 and found.shape == (1, 3, 5, 4)
    expected = ((image / 255 - MEAN) / STD).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


def test_an_epoch_can_be_begun_anywhere(images):
    batches = training.folder_batches(images, settings_of("batch_size=3"))
    whole, rest = list(batches(1, 48, 0)), list(batches(1, 48, 2))
    assert len(whole) == 3 and len(rest) == 1
    assert torch.equal(whole[2][0], rest[0][0]) and torch.equal(whole[2][1], rest[0][1])
    assert whole[0][0].shape == (3, 3, 48, 48)
    other = list(batches(2, 48, 0))
    assert not torch.equal(whole[0][0], other[0][0])


def test_the_scale_brings_vectors_to_a_mean_square_of_one(images):
    backbone = Backbone.create("small", "random", "cpu", "float32")
    network = SPPClassifier(backbone.trunk, 128, 2, (2, 1))
    x, _ = next(training.folder_batches(images, settings_of())(0, 48, 0))
    training.set_scale(network, backbone, x)
    pooled = network.train().pool(network.trunk(x)) * network.scale
    assert pooled.square().mean().item() == pytest.approx(1, abs=1e-4)


# What learns


def test_epochs_take_the_sizes_in_turn_and_colours_are_learned(images):
    lines = []
    _, history = train(images, "epochs=9", "learning_rate=2e-3", log=lines.append)
    assert [json.loads(line) for line in lines] == history
    assert [record["size"] for record in history] == [48, 32] * 4 + [48]
    assert history[-1]["accuracy"] > 0.8 and history[-1]["loss"] < history[0]["loss"]


def test_what_is_measured_stands_in_the_record(images):
    _, history = train(images, "epochs=1", measured=lambda: {"top1_error": 12.5})
    assert history[0]["top1_error"] == 12.5


def test_fixed_layers_and_the_trunks_own_rate(images):
    before = Backbone.create("small", "random", "cpu", "float32", 3).trunk.state_dict()

    def changed(network) -> set[str]:
        after = network.trunk.state_dict()
        return {name.split(".")[1] for name in after if "weight" in name and not torch.equal(after[name], before[name])}

    network, _ = train(images, prepare=lambda network: freeze(network.trunk, 8))
    assert changed(network) == {"6", "7", "9", "10", "12", "13"}
    # A rate of 0 leaves the trunk's weights; what is above learns.
    network, _ = train(images, trunk_rate=0.0)
    assert changed(network) == set()
    torch.manual_seed(3)
    fresh = SPPClassifier(torch.nn.Identity(), 128, 2, (2, 1))
    assert not torch.equal(network.classifier.weight, fresh.classifier.weight)


def test_a_runaway_learning_rate_is_told(images):
    with pytest.raises(SppdetError, match=r"the loss is not finite; lower learning_rate"):
        train(images, "learning_rate=1e30", "epochs=4")


# Going on


def test_an_interrupted_training_goes_on_to_the_same_weights(images, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "_SAVE", 0)
    whole, history = train(images, "epochs=4")
    checkpoint = training.Checkpoint(tmp_path / "c.safetensors", "key")

    def interrupt(text):
        if json.loads(text)["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(images, "epochs=4", log=interrupt, checkpoint=checkpoint)
    lines = []
    resumed, again = train(images, "epochs=4", log=lines.append, checkpoint=checkpoint)
    assert [json.loads(line)["epoch"] for line in lines] == [2, 3, 4]  # the second was not closed
    assert again == history
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_the_checkpoint_of_another_training_is_not_gone_on_from(images, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "_SAVE", 0)
    path = tmp_path / "c.safetensors"
    _, history = train(images, checkpoint=training.Checkpoint(path, "one"))
    lines = []
    train(images, log=lines.append, checkpoint=training.Checkpoint(path, "other"))
    assert [json.loads(line) for line in lines] == history
