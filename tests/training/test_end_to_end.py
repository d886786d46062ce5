"""End-to-end training: the draw of a step, what learns and what stays, and going on after an interruption."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from sppdet.config.settings import EndToEndSettings
from sppdet.data.images import read_image
from sppdet.data.voc import read_voc
from sppdet.features.cached_split import CachedSplit, open_proposals
from sppdet.features.crop_features import CropFeatures
from sppdet.features.pyramid_features import PyramidFeatures
from sppdet.features.warp import Crop
from sppdet.networks.backbone import Backbone
from sppdet.networks.cell_grid import freeze
from sppdet.networks.fc_head import Head
from sppdet.ops import boxes as geometry
from sppdet.training import end_to_end
from sppdet.utils.errors import SppdetError

QUICK = {"epochs": 1.0, "scales": [96], "units": 16, "windows_per_image": 16, "frozen_stride": 4, "dropout": 0.0}


class Workplace:
    """A few drawn images with proposals near their objects, and a narrow backbone of random weights."""

    def __init__(self, root, folder):
        self.backbone = Backbone.create("small", "random", "cpu", "float32")
        self.features = PyramidFeatures(
            grid=self.backbone.grid, channels=128, scales=(96,), max_side=400, target=64, shrink=0.0, levels=(2, 1)
        )
        self.split = open_proposals(read_voc(root, "trainval"), folder / "cache", FixedWindows())
        rng = np.random.default_rng(0)
        for name, sample in zip(self.split.names, self.split.dataset):
            near = np.repeat(sample.boxes, 12, axis=0)
            near = geometry.clip(near + rng.normal(size=near.shape) * 12, sample.width, sample.height)
            near = near[(near[:, 2:] - near[:, :2] > 4).all(axis=1)]
            self.split.proposal_store.write(name, near.astype(np.float32))
        self.checkpoint = folder / "checkpoint"

    def train(self, log=lambda text: None, key="key", start=None, **changes):
        fresh = Backbone.create("small", "random", "cpu", "float32")
        settings = EndToEndSettings(**QUICK | changes)
        return end_to_end.train(self.split, fresh, self.features, settings, self.checkpoint, key, 3, log, start)


class FixedWindows:
    def settings(self) -> dict:
        return {}


@pytest.fixture
def place(tmp_path, shapes_root) -> Workplace:
    return Workplace(shapes_root, tmp_path)


def test_an_image_comes_with_windows_that_fit_it(place):
    for i in range(6):
        rng = np.random.default_rng(i)
        training_image = end_to_end.read_image(
            place.split, i, EndToEndSettings(**QUICK), place.backbone, place.features, rng
        )
        assert (
            min(training_image.pixels.shape[2:]) == 96
            and len(training_image.windows) == len(training_image.labels) <= 16
        )
        front = training_image.labels < len(place.split.dataset.classes)
        assert front.sum() == len(training_image.targets) and front[: len(training_image.targets)].all()
        # What the windows should become are objects, of the image or of its mirror image.
        sample, found = place.split.dataset[i], geometry.decode(training_image.windows[front], training_image.targets)
        mirrored = geometry.mirror(sample.boxes, sample.width)
        distance = [
            np.abs(found[:, None] - objects[None]).max(axis=2).min(axis=1) for objects in (sample.boxes, mirrored)
        ]
        assert min(d.max() for d in distance) < 1e-2


def test_pixels_are_mirrored_with_their_windows(place):
    settings = EndToEndSettings(**QUICK)
    image = read_image(place.split.dataset[0].path)
    plain = place.backbone.pixels(image, 96 / min(image.shape[:2]))
    seen = set()
    for seed in range(8):
        training_image = end_to_end.read_image(
            place.split, 0, settings, place.backbone, place.features, np.random.default_rng(seed)
        )
        same = torch.allclose(training_image.pixels, plain, atol=1e-5)
        turned = torch.allclose(training_image.pixels, plain.flip(3), atol=0.1)
        assert same or turned
        seen.add(same)
    assert seen == {True, False}
    whole = EndToEndSettings(**QUICK | {"flip": False})
    training_image = end_to_end.read_image(
        place.split, 0, whole, place.backbone, place.features, np.random.default_rng(0)
    )
    assert torch.equal(training_image.pixels, plain)


@pytest.mark.parametrize("frozen", [4, 16])
def test_a_steps_gradients_are_those_of_one_graph(place, frozen):
    settings = EndToEndSettings(**QUICK | {"frozen_stride": frozen, "box_weight": 0.7})
    rng = np.random.default_rng(5)
    images = [end_to_end.read_image(place.split, i, settings, place.backbone, place.features, rng) for i in range(3)]
    head = Head(place.features.pooled_dimension, 16, "fc7", 0.25, dropout=0.0)
    network = end_to_end.Network(place.backbone.trunk, head, len(place.split.dataset.classes)).train()
    freeze(network.trunk, frozen)
    found = end_to_end.learn(network, place.backbone, place.features, images, settings)
    gradients = {name: value.grad for name, value in network.named_parameters()}

    # The plain form: all images in one graph, the scale applied to the vectors.
    network.zero_grad()
    pooled = torch.cat(
        [place.features.pool(network.trunk(p.pixels), p.windows, p.size, p.factor) * 0.25 for p in images]
    )
    losses = end_to_end._window_losses(network, pooled, images, 0.0)
    count = sum(len(training_image.labels) for training_image in images)
    classification, moved = (one.sum() / count for one in losses)
    (classification + 0.7 * moved).backward()
    assert found == pytest.approx([classification.item(), moved.item()], rel=1e-5)
    for name, value in network.named_parameters():
        if value.grad is None:
            assert gradients[name] is None, name
        else:
            torch.testing.assert_close(gradients[name], value.grad, rtol=1e-3, atol=1e-5 * value.grad.abs().max())
    assert (gradients["trunk.features.12.weight"] is None) == (frozen == 16)


def test_the_losses_fall_and_the_frozen_layers_stay(place, monkeypatch):
    monkeypatch.setattr(end_to_end, "_REPORT", 10)
    lines = []
    network, loss = place.train(lines.append, epochs=20.0, learning_rate=3e-3)
    records = [json.loads(line) for line in lines]
    assert loss < 0.7 * records[0]["class_loss"]
    assert records[-1]["box_loss"] < records[0]["box_loss"]
    before = place.backbone.trunk.state_dict()
    changed = {name for name, value in network.trunk.state_dict().items() if not torch.equal(value, before[name])}
    layers = sorted({int(name.split(".")[1]) for name in changed})
    assert layers == [3, 4, 6, 7, 9, 10, 12, 13]  # conv and batch norm above stride 4; its statistics stay
    assert not any("running" in name for name in changed)


def test_aligned_pooling_learns(place, monkeypatch):
    monkeypatch.setattr(end_to_end, "_REPORT", 10)
    place.features, lines = replace(place.features, kind="align"), []
    network, loss = place.train(lines.append, epochs=20.0, learning_rate=3e-3)
    assert loss < 0.7 * json.loads(lines[0])["class_loss"]
    before = place.backbone.trunk.state_dict()
    assert not torch.equal(network.trunk.state_dict()["features.12.weight"], before["features.12.weight"])


def test_a_network_learns_from_crops(place, monkeypatch):
    # R-CNN's fine-tuning: no box loss, and whatever overlaps no object by half is background.
    monkeypatch.setattr(end_to_end, "_REPORT", 10)
    place.features = CropFeatures(channels=128, crop=Crop("warp", 64, 4), levels=(2, 1))
    rng = np.random.default_rng(0)
    training_image = end_to_end.read_image(
        place.split, 0, EndToEndSettings(**QUICK), place.backbone, place.features, rng
    )
    assert training_image.pixels.shape == (len(training_image.windows), 3, 64, 64)
    lines = []
    network, loss = place.train(lines.append, epochs=20.0, learning_rate=3e-3, box_weight=0.0, background=0.0)
    assert loss < 0.7 * json.loads(lines[0])["class_loss"]
    before, after = place.backbone.trunk.state_dict(), network.trunk.state_dict()
    assert not torch.equal(after["features.12.weight"], before["features.12.weight"])


def test_an_interrupted_training_goes_on_to_the_same_weights(place, monkeypatch):
    monkeypatch.setattr(end_to_end, "_SAVE", 0)
    monkeypatch.setattr(end_to_end, "_REPORT", 4)
    whole, loss = place.train(dropout=0.5)
    place.checkpoint.unlink()

    def interrupt(text):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        place.train(interrupt, dropout=0.5)
    assert place.checkpoint.exists()
    resumed, again = place.train(dropout=0.5)
    assert again == loss
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_the_checkpoint_of_other_settings_is_not_gone_on_from(place, monkeypatch):
    monkeypatch.setattr(end_to_end, "_SAVE", 0)
    _, loss = place.train(key="one")
    stored = place.checkpoint.read_bytes()
    _, again = place.train(key="other")
    assert again == loss and place.checkpoint.read_bytes() != stored


def test_images_without_objects(place):
    nothing = CachedSplit(
        type(place.split.dataset)(place.split.dataset.classes, tuple(
            type(s)(s.id, s.path, s.width, s.height, s.boxes[:0], s.labels[:0], s.difficult[:0])
            for s in place.split.dataset
        )),
        place.split.names, place.split.proposal_store,
    )  # fmt: skip
    place.split = nothing
    with pytest.raises(SppdetError, match="no object in the training images"):
        place.train()


def test_a_runaway_learning_rate_is_told(place):
    with pytest.raises(SppdetError, match=r"loss is not finite; lower end_to_end\.learning_rate"):
        place.train(optimizer="sgd", learning_rate=1e20, epochs=4.0)


def image_of(windows: list, labels: list[int], foreground: int) -> end_to_end.TrainingImage:
    windows = np.array(windows, np.float32)
    targets = np.zeros((foreground, 4), np.float32)
    return end_to_end.TrainingImage(torch.zeros(1, 3, 64, 64), 1.0, (64, 64), windows, np.array(labels), targets)


def test_losses_of_single_windows_by_hand():
    # Two classes and background; probabilities 1/2, 1/4, 1/4.
    logits = torch.log(torch.tensor([[2.0, 1.0, 1.0], [1.0, 1.0, 2.0]]))
    shifts = torch.zeros(2, 2, 4)
    shifts[0, 0] = torch.tensor([0.5, 2.0, 0.0, 0.0])  # smooth L1: 0.5^2 / 2 and 2 - 1/2
    network = end_to_end.Network(nn.Identity(), Head(4, 4, "fc7"), classes=2)
    network.forward = lambda pooled: (logits, shifts)
    training_image = image_of([[0, 0, 9, 9], [20, 20, 30, 30]], [0, 2], 1)
    losses = end_to_end._window_losses(network, None, [training_image], 0.0)
    assert losses[0].tolist() == pytest.approx([np.log(2), np.log(2)])
    assert losses[1].tolist() == pytest.approx([0.125 + 1.5, 0])
    focal, _ = end_to_end._window_losses(network, None, [training_image], 2.0)
    assert focal.tolist() == pytest.approx([np.log(2) / 4, np.log(2) / 4])
    # The window's own class says how its target is whitened: here to (0.5, 0, 0, 0).
    network.mean[0, 0], network.deviation[0, 0] = -1.0, 2.0
    _, moved = end_to_end._window_losses(network, None, [training_image], 0.0)
    assert moved.tolist() == pytest.approx([1.5, 0])


def test_shifts_are_the_same_whitened_or_not():
    network = end_to_end.Network(nn.Identity(), Head(4, 4, "fc7", dropout=0.0), classes=2)
    network.mean.copy_(torch.randn(2, 4))
    network.deviation.copy_(torch.rand(2, 4) + 0.5)
    nn.init.normal_(network.move.weight)
    pooled = torch.randn(3, 4)
    _, whitened = network(pooled)
    expected = whitened * network.deviation + network.mean
    network.unwhiten()
    torch.testing.assert_close(network(pooled)[1], expected)
    targets = np.ones((1, 4))
    assert network.whitened(targets, torch.tensor([1])).tolist() == targets.tolist()


@pytest.mark.parametrize("flip", [True, False])
def test_targets_are_measured_class_by_class(place, flip):
    mean, deviation = end_to_end.target_statistics(place.split, flip)
    dataset = place.split.dataset
    rows = []
    for i, sample in enumerate(dataset):
        windows, objects = np.concatenate([sample.boxes, place.split.proposals(i)]), sample.boxes
        views = [(windows, objects)]
        views += [tuple(geometry.mirror(boxes, sample.width) for boxes in (windows, objects))] if flip else []
        for seen, there in views:
            for window in seen:
                overlap = geometry.iou(window[None], there)[0]
                if overlap.max() >= 0.5:
                    best = overlap.argmax()
                    rows.append((sample.labels[best], geometry.encode(window[None], there[best][None])[0]))
    for k in range(len(dataset.classes)):
        own = np.array([target for label, target in rows if label == k])
        assert len(own) >= 10
        np.testing.assert_allclose(mean[k], own.mean(axis=0), atol=1e-6)
        np.testing.assert_allclose(deviation[k], own.std(axis=0), atol=1e-5)
    assert (mean[:, 0] == pytest.approx(0)) == flip


def test_targets_of_a_rare_class_are_those_of_all(place, monkeypatch):
    whole = end_to_end.target_statistics(place.split, True)
    monkeypatch.setattr(end_to_end, "_FEW", 10**6)
    mean, deviation = end_to_end.target_statistics(place.split, True)
    assert (mean == mean[0]).all() and (deviation == deviation[0]).all()
    assert not (whole[1] == whole[1][0]).all()


def test_given_fc_layers_are_begun_with_at_the_trunks_rate(place):
    start = Head(place.features.pooled_dimension, 16, "fc7", dropout=0.0)
    given = start.fc6.weight.detach().clone()
    network, _ = place.train(start=start, learning_rate=1e-30)
    torch.testing.assert_close(network.head.fc6.weight, given)
    settings = EndToEndSettings(**QUICK)
    old, fresh = end_to_end._groups(network, settings, ("trunk.", "head."))
    assert old["lr"] == settings.learning_rate * settings.trunk_rate and "lr" not in fresh
    assert len(fresh["params"]) == 4  # weights and biases of the two layers on fc7


def test_the_hardest_windows_are_chosen_and_near_ones_once():
    windows = [[0, 0, 10, 10], [0, 0, 10, 9], [30, 30, 40, 40], [50, 50, 60, 60]]
    training_image = image_of(windows, [0, 0, 2, 2], 2)
    losses = torch.tensor([0.5, 0.9, 0.1, 0.3])  # the first is left out beside the second
    assert end_to_end._hardest(training_image, losses, 2).tolist() == [1, 3]
    assert end_to_end._hardest(training_image, losses, 9).tolist() == [1, 2, 3]
    chosen = training_image.only(np.array([1, 3]))
    assert chosen.windows.tolist() == [windows[1], windows[3]] and chosen.labels.tolist() == [0, 2]
    assert len(chosen.targets) == 1


def test_hard_windows_come_from_all_of_the_image(place):
    settings = EndToEndSettings(**QUICK | {"hard_of": 40})
    drawn = [
        end_to_end.read_image(place.split, i, settings, place.backbone, place.features, np.random.default_rng(i))
        for i in range(4)
    ]
    assert max(len(training_image.windows) for training_image in drawn) > 16
    _, loss = place.train(hard_of=40, focal=1.0, epochs=2.0)
    assert np.isfinite(loss)
