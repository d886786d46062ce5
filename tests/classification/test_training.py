"""Training at several sizes in turn: the views, which layers learn, and resuming after an interruption."""

from __future__ import annotations

import logging

import cv2
import numpy as np
import pytest
import torch
from log_records import records_of
from PIL import Image

from sppdet import config
from sppdet.classification import training
from sppdet.classification.classifier import SPPClassifier
from sppdet.config.settings import ClassifierConfig
from sppdet.data.folders import LabelledImages
from sppdet.networks import gradient_training
from sppdet.networks.backbone import Backbone
from sppdet.networks.cell_grid import freeze
from sppdet.networks.normalisation import IMAGENET, LITE
from sppdet.utils.errors import SppdetError
from sppdet.utils.execution import Checkpoint


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


def train(images: LabelledImages, *overrides: str, prepare=lambda network: None, **options):
    """Return the trained network and its history."""
    settings = settings_of(*overrides)
    torch.manual_seed(settings.run.seed)
    backbone = Backbone.create("small", "random", "cpu", "float32", settings.run.seed)
    network = SPPClassifier(backbone.trunk, 128, 2, settings.levels, settings.dropout).requires_grad_(True)
    prepare(network)
    batches = training.folder_batches(images, settings)
    return network, training.train_classifier(network, backbone, batches, len(images) // 4, settings, **options)


@pytest.fixture
def records(caplog):
    """Return the records that a training has logged, one per epoch."""
    caplog.set_level(logging.INFO, "sppdet")
    return lambda: records_of(caplog.messages)


# Views


def test_a_view_shows_the_same_at_every_size():
    image = cv2.resize(np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8), (90, 60))
    settings = settings_of("sizes=[48,24]", "side=60")
    for seed in range(6):
        large, small = (training.random_view(image, settings, size, np.random.default_rng(seed)) for size in (48, 24))
        assert large.shape == (48, 48, 3) and small.shape == (24, 24, 3)
        halved = cv2.resize(np.ascontiguousarray(large), (24, 24), interpolation=cv2.INTER_AREA)
        assert np.abs(halved.astype(int) - small).max() <= 1


def test_views_are_parts_of_the_image_half_of_them_mirrored():
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    settings = settings_of("sizes=[48]", "side=60")
    mirrored = []
    for seed in range(20):
        view = training.random_view(image, settings, 48, np.random.default_rng(seed))
        parts = [image[y : y + 48, x : x + 48] for y in range(13) for x in range(43)]
        same = any(np.array_equal(view, part) for part in parts)
        flipped = any(np.array_equal(view[:, ::-1], part) for part in parts)
        assert same != flipped
        mirrored.append(flipped)
    assert 4 < sum(mirrored) < 16
    plain = settings_of("sizes=[48]", "side=60", "flip=false")
    views = [training.random_view(image, plain, 48, np.random.default_rng(seed)) for seed in range(8)]
    assert all(any(np.array_equal(view, part) for part in parts) for view in views)


def test_pixels_are_normalised_for_the_trunk():
    image = np.random.default_rng(0).integers(0, 256, (1, 5, 4, 3), np.uint8)
    pixels = training.to_pixels(image, IMAGENET)
    assert pixels.dtype == torch.float32 and pixels.shape == (1, 3, 5, 4)
    expected = ((image / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(pixels.numpy(), expected, atol=1e-5)


def test_batches_are_normalised_for_the_network_of_the_settings(images):
    first, second = (
        next(training.folder_batches(images, settings_of(f"backbone.name={name}"))(0, 48, 0))[0]
        for name in ("small", "efficientnet_lite0")
    )
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET.mean, IMAGENET.std))
    colours = (first * std + mean) * 255
    torch.testing.assert_close(second, (colours - LITE.mean[0]) / LITE.std[0], rtol=0, atol=1e-5)


def test_an_epoch_can_start_at_any_batch(images):
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


# Training


def test_epochs_take_the_sizes_in_turn_and_colours_are_learned(images, records):
    _, history = train(images, "epochs=9", "learning_rate=2e-3")
    assert records() == history
    assert [record["epoch"] for record in history] == list(range(1, 10))
    assert [record["size"] for record in history] == [48, 32] * 4 + [48]
    assert history[-1]["accuracy"] > 0.8 and history[-1]["loss"] < history[0]["loss"]


def test_a_record_holds_the_means_of_its_epoch(images, monkeypatch):
    values = iter([(2.0, 1), (1.0, 2), (0.5, 3), (0.3, 4)])

    def learn(network, *_) -> dict[str, float]:
        loss, correct = next(values)
        network.classifier.bias.grad = torch.zeros(2)
        return {"loss": loss, "correct": correct}

    monkeypatch.setattr(training, "_learn", learn)
    _, history = train(images)  # two batches of four images per epoch
    assert history == [
        {"epoch": 1, "size": 48, "loss": 1.5, "accuracy": 0.375},
        {"epoch": 2, "size": 32, "loss": 0.4, "accuracy": 0.875},
    ]


def test_a_batch_tells_its_loss_and_how_many_are_right(images):
    backbone = Backbone.create("small", "random", "cpu", "float32")
    network = SPPClassifier(backbone.trunk, 128, 2, (2, 1), dropout=0.0)
    pixels, labels = next(training.folder_batches(images, settings_of())(0, 48, 0))
    values = training._learn(network, backbone, pixels, labels)
    probabilities = network(pixels).softmax(1).detach()
    assert values["loss"] == pytest.approx(-probabilities[range(4), labels].log().mean().item(), rel=1e-5)
    assert values["correct"] == sum(int(p[label] > 0.5) for p, label in zip(probabilities, labels))


def test_the_measurement_after_an_epoch_is_part_of_its_record(images):
    modes = []

    def prepare(network: SPPClassifier) -> None:
        modes.append(lambda: network.training)

    _, history = train(images, prepare=prepare, measure=lambda: {"top1_error": 12.5, "training": modes[0]()})
    assert [record["top1_error"] for record in history] == [12.5, 12.5]
    assert [record["training"] for record in history] == [False, False]  # dropout is off


def test_rates_follow_one_cycle(images, monkeypatch):
    rates = []

    class Recorded(torch.optim.AdamW):
        def step(self, *arguments):
            rates.append([group["lr"] for group in self.param_groups])
            return super().step(*arguments)

    monkeypatch.setattr(torch.optim, "AdamW", Recorded)
    train(images, "epochs=10", "learning_rate=1e-2", trunk_rate=0.1)
    layers, trunk = np.array(rates).T
    np.testing.assert_allclose(trunk, 0.1 * layers)
    # A cosine from 1/25 of the rate up to it in the first 30% of 20 steps, and down to 1/250,000 of it in the rest.
    up, down = np.arange(6) / 5, np.arange(15) / 14
    rise = 4e-4 + (1e-2 - 4e-4) * (1 - np.cos(np.pi * up)) / 2
    fall = 4e-8 + (1e-2 - 4e-8) * (1 + np.cos(np.pi * down)) / 2
    np.testing.assert_allclose(layers, [*rise[:-1], *fall], rtol=1e-6)


def test_fixed_layers_stay_and_the_trunk_has_its_rate(images):
    before = Backbone.create("small", "random", "cpu", "float32", 3).trunk.state_dict()

    def changed(network) -> set[str]:
        after = network.trunk.state_dict()
        return {name.split(".")[1] for name in after if "weight" in name and not torch.equal(after[name], before[name])}

    network, _ = train(images, prepare=lambda network: freeze(network.trunk, 8))
    assert changed(network) == {"6", "7", "9", "10", "12", "13"}
    # A rate of 0 leaves the trunk's weights; the layer above it learns.
    network, _ = train(images, trunk_rate=0.0)
    assert changed(network) == set()
    torch.manual_seed(3)
    fresh = SPPClassifier(torch.nn.Identity(), 128, 2, (2, 1))
    assert not torch.equal(network.classifier.weight, fresh.classifier.weight)


def test_a_runaway_learning_rate_is_an_error(images):
    with pytest.raises(SppdetError, match=r"^the loss is not finite; lower learning_rate$"):
        train(images, "learning_rate=1e30", "epochs=4")


# Resuming


@pytest.mark.parametrize("stop_at", [1, 2, 5])  # in an epoch, between two epochs, later
def test_a_resumed_training_ends_with_the_same_weights(images, tmp_path, monkeypatch, stop_at):
    whole, history = train(images, "epochs=4", measure=lambda: {"top1_error": 1.0})
    monkeypatch.setattr(gradient_training, "_CHECKPOINT_SECONDS", -1)  # after every step
    checkpoint, learn, calls = Checkpoint(tmp_path / "c.safetensors", "key"), training._learn, []

    def interrupted(*arguments) -> dict[str, float]:
        if len(calls) == stop_at:
            raise KeyboardInterrupt
        calls.append(arguments)
        return learn(*arguments)

    monkeypatch.setattr(training, "_learn", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(images, "epochs=4", checkpoint=checkpoint, measure=lambda: {"top1_error": 1.0})
    monkeypatch.setattr(training, "_learn", learn)
    measured = []
    resumed, again = train(
        images, "epochs=4", checkpoint=checkpoint, measure=lambda: measured.append(1) or {"top1_error": 1.0}
    )
    assert again == history and len(measured) == 4 - stop_at // 2  # finished epochs are not measured again
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
