"""End-to-end training: gradients and losses of a step, which layers learn, and resuming after an interruption."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from end_to_end_images import QUICK, Workplace
from log_records import records_of
from torch import nn

from sppdet.config.settings import EndToEndSettings
from sppdet.features.crop_features import CropFeatures
from sppdet.features.warp import Crop
from sppdet.networks import gradient_training
from sppdet.networks.cell_grid import freeze
from sppdet.networks.fc_head import Head
from sppdet.ops import boxes as geometry
from sppdet.training import end_to_end
from sppdet.training.end_to_end_network import EndToEndNetwork
from sppdet.training.training_images import TrainingImage, read_training_image
from sppdet.utils.errors import SppdetError


@pytest.fixture
def workplace(tmp_path, shapes_root) -> Workplace:
    return Workplace(shapes_root, tmp_path)


@pytest.fixture
def records(caplog, monkeypatch):
    """Return the records that a training has logged, one every ten steps."""
    monkeypatch.setattr(end_to_end, "_REPORT_EVERY", 10)
    caplog.set_level(logging.INFO, "sppdet")
    return lambda: records_of(caplog.messages)


def network_and_images(
    workplace: Workplace, settings: EndToEndSettings, count: int = 3
) -> tuple[EndToEndNetwork, list[TrainingImage]]:
    """Return a new network and some images for one step of it."""
    rng = np.random.default_rng(5)
    images = [
        read_training_image(workplace.split, i, settings, workplace.backbone, workplace.features, rng)
        for i in range(count)
    ]
    head = Head(workplace.features.pooled_dimension, 16, "fc7", 0.25, dropout=0.0)
    network = EndToEndNetwork(workplace.backbone.trunk, head, len(workplace.split.dataset.classes)).train()
    freeze(network.trunk, settings.frozen_stride)
    return network, images


def window_losses(workplace: Workplace, network: EndToEndNetwork, images: list[TrainingImage], focal: float = 0.0):
    """Compute both losses of every window in the plain way: the scale is applied to the pooled vectors."""
    pooled = [
        workplace.features.pool(network.trunk(image.pixels), image.windows, image.size, image.factor)
        for image in images
    ]
    return end_to_end._window_losses(network, torch.cat(pooled) * network.head.scale, images, focal)


# One step


@pytest.mark.parametrize("frozen", [4, 16])
def test_the_gradients_of_a_step_are_those_of_one_graph(workplace, frozen):
    settings = EndToEndSettings(**QUICK | {"frozen_stride": frozen, "box_weight": 0.7})
    network, images = network_and_images(workplace, settings)
    losses = end_to_end.learn(network, workplace.backbone, workplace.features, images, settings)
    gradients = {name: value.grad for name, value in network.named_parameters()}

    network.zero_grad()
    count = sum(len(image.labels) for image in images)
    classification, regression = (terms.sum() / count for terms in window_losses(workplace, network, images))
    (classification + 0.7 * regression).backward()
    assert losses == pytest.approx({"class_loss": classification.item(), "box_loss": regression.item()}, rel=1e-5)
    for name, value in network.named_parameters():
        if value.grad is None:
            assert gradients[name] is None, name
        else:
            torch.testing.assert_close(gradients[name], value.grad, rtol=1e-3, atol=1e-5 * value.grad.abs().max())
    assert (gradients["trunk.features.12.weight"] is None) == (frozen == 16)


def test_only_the_hardest_windows_of_each_image_learn(workplace):
    settings = EndToEndSettings(**QUICK | {"hard_of": 60, "focal": 1.0, "box_weight": 0.5})
    network, images = network_and_images(workplace, settings)
    losses = end_to_end.learn(network, workplace.backbone, workplace.features, images, settings)

    with torch.no_grad():
        classification, regression = (terms.numpy() for terms in window_losses(workplace, network, images, 1.0))
    chosen, start = [], 0
    for image in images:
        hardness = (classification + 0.5 * regression)[start : start + len(image.labels)]
        overlap, kept = geometry.iou(image.windows, image.windows), []
        for row in np.argsort(-hardness):  # greedily, hardest first
            if len(kept) < 16 and all(overlap[row, other] <= 0.7 for other in kept):
                kept.append(row)
        chosen += [start + row for row in kept]
        start += len(image.labels)
    assert len(chosen) < start  # there was something to choose
    assert losses["class_loss"] == pytest.approx(classification[chosen].mean(), rel=1e-5)
    assert losses["box_loss"] == pytest.approx(regression[chosen].sum() / len(chosen), rel=1e-5)


def training_image(windows: list, labels: list[int], foreground: int) -> TrainingImage:
    """Return an image without pixels; the targets of its foreground windows are 0."""
    targets = np.zeros((foreground, 4), np.float32)
    pixels = torch.zeros(1, 3, 64, 64)
    return TrainingImage(pixels, 1.0, (64, 64), np.array(windows, np.float32), np.array(labels), targets)


def test_losses_of_single_windows_by_hand():
    # Two classes and background; probabilities 1/2, 1/4, 1/4.
    logits = torch.log(torch.tensor([[2.0, 1.0, 1.0], [1.0, 1.0, 2.0]]))
    shifts = torch.zeros(2, 2, 4)
    shifts[0, 0] = torch.tensor([0.5, 2.0, 0.0, 0.0])  # smooth L1: 0.5^2 / 2 and 2 - 1/2
    network = EndToEndNetwork(nn.Identity(), Head(4, 4, "fc7"), classes=2)
    network.forward = lambda pooled: (logits, shifts)
    image = training_image([[0, 0, 9, 9], [20, 20, 30, 30]], [0, 2], 1)
    classification, regression = end_to_end._window_losses(network, None, [image], 0.0)
    assert classification.tolist() == pytest.approx([np.log(2), np.log(2)])
    assert regression.tolist() == pytest.approx([0.125 + 1.5, 0])
    focal, _ = end_to_end._window_losses(network, None, [image], 2.0)
    assert focal.tolist() == pytest.approx([np.log(2) / 4, np.log(2) / 4])
    # The target is whitened with the statistics of the window's class: here to (0.5, 0, 0, 0).
    network.mean[0, 0], network.deviation[0, 0] = -1.0, 2.0
    _, regression = end_to_end._window_losses(network, None, [image], 0.0)
    assert regression.tolist() == pytest.approx([1.5, 0])


def test_the_hardest_windows_are_chosen_and_near_duplicates_left_out():
    windows = [[0, 0, 10, 10], [0, 0, 10, 9], [30, 30, 40, 40], [50, 50, 60, 60]]
    image = training_image(windows, [0, 0, 2, 2], 2)
    losses = torch.tensor([0.5, 0.9, 0.1, 0.3])  # the first window overlaps the second, which is harder
    assert end_to_end._hardest(image, losses, 2).tolist() == [1, 3]
    assert end_to_end._hardest(image, losses, 9).tolist() == [1, 2, 3]


# Whole trainings


def test_the_losses_fall_and_the_frozen_layers_stay(workplace, records):
    network, loss = workplace.train(epochs=20.0, learning_rate=3e-3)
    first, *_, last = records()
    assert loss < 0.7 * first["class_loss"] and last["box_loss"] < first["box_loss"]
    before = workplace.backbone.trunk.state_dict()
    changed = {name for name, value in network.trunk.state_dict().items() if not torch.equal(value, before[name])}
    layers = sorted({int(name.split(".")[1]) for name in changed})
    assert layers == [3, 4, 6, 7, 9, 10, 12, 13]  # conv layers and batch norm above stride 4
    assert not any("running" in name for name in changed)  # statistics of batch norm stay


def test_a_network_learns_through_roi_align(workplace, records):
    workplace.features = replace(workplace.features, kind="align")
    network, loss = workplace.train(epochs=20.0, learning_rate=3e-3)
    assert loss < 0.7 * records()[0]["class_loss"]
    before = workplace.backbone.trunk.state_dict()
    assert not torch.equal(network.trunk.state_dict()["features.12.weight"], before["features.12.weight"])


def test_a_network_learns_from_crops(workplace, records):
    # R-CNN's fine-tuning: no box loss, and windows that overlap no object at all are background.
    workplace.features = CropFeatures(channels=128, crop=Crop("warp", 64, 4), levels=(2, 1))
    network, loss = workplace.train(epochs=20.0, learning_rate=3e-3, box_weight=0.0, background=0.0)
    assert loss < 0.7 * records()[0]["class_loss"]
    before, after = workplace.backbone.trunk.state_dict(), network.trunk.state_dict()
    assert not torch.equal(after["features.12.weight"], before["features.12.weight"])


def test_the_number_of_steps_and_their_rates(workplace, monkeypatch):
    rates = []

    def learn(network, *_) -> dict[str, float]:
        for parameter in network.parameters():
            parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
        rates.append(network.classify.weight[0, 0].item())
        return {"class_loss": float(len(rates)), "box_loss": 0.0}

    monkeypatch.setattr(end_to_end, "learn", learn)
    _, loss = workplace.train(epochs=2.5, optimizer="sgd", learning_rate=0.1, weight_decay=0.0)
    # 12 images with objects, two per step; the loss is that of the last step, as a tenth of 15 steps is one.
    assert len(rates) == 15 and loss == 15
    # With gradients of 1 the velocity of SGD after n steps is 1 + 0.9 + ... + 0.9^n.
    moves = [0.1 * gradient_training.warm_cosine(n, 15) * (1 - 0.9 ** (n + 1)) / 0.1 for n in range(14)]
    assert np.diff(rates) == pytest.approx([-move for move in moves], rel=1e-4)


def test_a_resumed_training_ends_with_the_same_weights(workplace, monkeypatch):
    whole, loss = workplace.train(dropout=0.5)
    monkeypatch.setattr(gradient_training, "_CHECKPOINT_SECONDS", -1)  # after every step
    learn, calls = end_to_end.learn, []

    def interrupted(*arguments) -> dict[str, float]:
        if len(calls) == 4:
            raise KeyboardInterrupt
        calls.append(arguments)
        return learn(*arguments)

    monkeypatch.setattr(end_to_end, "learn", interrupted)
    with pytest.raises(KeyboardInterrupt):
        workplace.train(dropout=0.5)
    assert workplace.checkpoint.exists()
    calls = []
    monkeypatch.setattr(end_to_end, "learn", lambda *arguments: calls.append(arguments) or learn(*arguments))
    resumed, again = workplace.train(dropout=0.5)
    assert again == loss and len(calls) == 2  # six steps in all
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_a_checkpoint_of_other_settings_is_not_resumed_from(workplace, monkeypatch):
    monkeypatch.setattr(gradient_training, "_CHECKPOINT_SECONDS", -1)  # after every step
    _, loss = workplace.train(key="one")
    stored = workplace.checkpoint.read_bytes()
    _, again = workplace.train(key="other")
    assert again == loss and workplace.checkpoint.read_bytes() != stored


def test_given_fc_layers_learn_at_the_rate_of_the_trunk(workplace):
    start = Head(workplace.features.pooled_dimension, 16, "fc7", dropout=0.0)
    given = start.fc6.weight.detach().clone()
    network, _ = workplace.train(start=start, learning_rate=1e-30)
    torch.testing.assert_close(network.head.fc6.weight, given)
    settings = EndToEndSettings(**QUICK)
    slow, fast = end_to_end._parameter_groups(network, settings, ("trunk.", "head."))
    assert slow["lr"] == settings.learning_rate * settings.trunk_rate and "lr" not in fast
    assert len(fast["params"]) == 4  # weights and biases of the two layers on fc7


def test_new_fc_layers_see_features_of_unit_mean_square(workplace):
    network, _ = workplace.train(learning_rate=1e-30, epochs=0.1)
    settings = EndToEndSettings(**QUICK)
    squares = []
    for i in range(12):
        for seed in range(8):
            image = read_training_image(
                workplace.split, i, settings, workplace.backbone, workplace.features, np.random.default_rng(seed)
            )
            maps = workplace.backbone.trunk(image.pixels)
            pooled = workplace.features.pool(maps, image.windows, image.size, image.factor)
            squares.append((pooled * network.head.scale).square().mean().item())
    assert np.mean(squares) == pytest.approx(1, rel=0.05)


def test_images_without_objects_are_an_error(workplace):
    dataset = workplace.split.dataset
    samples = [
        replace(sample, boxes=sample.boxes[:0], labels=sample.labels[:0], difficult=sample.difficult[:0])
        for sample in dataset
    ]
    workplace.split = replace(workplace.split, dataset=replace(dataset, samples=tuple(samples)))
    with pytest.raises(SppdetError, match=r"^end_to_end: there is no object in the training images; check data\.root"):
        workplace.train()


def test_a_runaway_learning_rate_is_an_error(workplace):
    with pytest.raises(SppdetError, match=r"loss is not finite; lower end_to_end\.learning_rate"):
        workplace.train(optimizer="sgd", learning_rate=1e20, epochs=4.0)
