"""Fine-tuning of the fc layers: one step by hand, that it learns, and that it can be resumed."""

from __future__ import annotations

import logging
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from device import DEVICE
from log_records import records_of
from torch import nn

from sppdet.config.settings import FinetuneSettings
from sppdet.networks import gradient_training
from sppdet.networks.fc_head import Head
from sppdet.networks.weights import weights_digest
from sppdet.training import finetune
from sppdet.utils.errors import SppdetError
from sppdet.utils.execution import Checkpoint, Execution

QUICK = {"units": 32, "steps": 12, "batch_size": 32, "windows_per_image": 16, "learning_rate": 3e-3}


@pytest.fixture
def train(tmp_path):
    """Fine-tune from the beginning, or from what an interrupted training of an equal ``key`` left."""

    def call(split, features, start=None, bfloat16=False, key="key", **changes) -> tuple[Head, float | None]:
        execution = Execution(seed=3, workers=1, checkpoint=Checkpoint(tmp_path / "head.checkpoint", key))
        return finetune.train(split, features, FinetuneSettings(**QUICK | changes), 1.0, bfloat16, execution, start)

    return call


@pytest.fixture
def records(caplog):
    """Return the records that a training has logged."""
    caplog.set_level(logging.INFO, "sppdet")
    return lambda: records_of(caplog.messages)


def test_on_a_device_the_same_layers_are_learned(train, random_split, tiny_features):
    """The path of GPUs, here on the CPU."""
    split, features = random_split(images=6), tiny_features(8)
    head, there = (
        train(split, each, key=each.device, dropout=0.0)[0] for each in (features, replace(features, device=DEVICE))
    )
    for name, weight in head.state_dict().items():
        torch.testing.assert_close(there.state_dict()[name], weight, rtol=1e-4, atol=1e-5)


def test_one_step_of_sgd_by_hand(train, random_split, tiny_features):
    split, features = random_split(images=6), tiny_features(8)
    settings = {"optimizer": "sgd", "weight_decay": 0.1, "learning_rate": 0.5, "dropout": 0.0, "steps": 1}
    head, loss = train(split, features, **settings)

    torch.manual_seed(3)
    network = nn.Sequential(Head(40, 32, "fc7", math.sqrt(40), dropout=0.0), nn.Linear(32, 4))
    nn.init.normal_(network[1].weight, std=0.01)
    nn.init.zeros_(network[1].bias)
    draw = finetune._Draw(split, FinetuneSettings(**QUICK), seed=3, number=0)
    vectors, labels = next(draw.batches(features, 1))
    expected = nn.functional.cross_entropy(network(vectors), labels)
    expected.backward()
    assert loss == pytest.approx(expected.item())
    for name, weight in network[0].named_parameters():
        moved = weight - 0.5 * (weight.grad + 0.1 * weight)
        torch.testing.assert_close(head.state_dict()[name], moved.detach())


def test_batches_hold_the_pooled_vectors_of_their_windows(random_split, tiny_features):
    split, features = random_split(images=3), tiny_features(8)
    draw = finetune._Draw(split, FinetuneSettings(**QUICK), seed=3, number=1)
    expected = {}  # of each vector its label
    for i in range(len(draw._images)):
        boxes, labels = draw.windows(i)
        image = int(draw._images[i])
        vectors = features.of_boxes(split.maps(image), boxes, split.size(image), np.float16)
        expected |= {vector.tobytes(): label for vector, label in zip(vectors, labels)}
    batches = list(draw.batches(features, 2))
    assert len(batches) == finetune._Draw(split, FinetuneSettings(**QUICK), seed=3, number=1).count_batches(1) > 1
    for vectors, labels in batches:
        assert vectors.shape == (32, 40) and vectors.dtype == torch.float32
        for vector, label in zip(vectors.numpy().astype(np.float16), labels.tolist()):
            assert expected[vector.tobytes()] == label


def test_the_loss_falls(train, random_split, tiny_features, records):
    _, loss = train(random_split(images=10), tiny_features(8), steps=200, dropout=0.0)
    assert [record["step"] for record in records()] == [100, 200]
    assert loss < 0.75 * records()[0]["loss"] < 0.75 * np.log(4)  # log 4: knowing nothing of four classes


def test_equal_seeds_give_equal_heads(train, random_split, tiny_features):
    split, features = random_split(images=6), tiny_features(8)
    (first, loss), (second, again) = train(split, features), train(split, features)
    assert loss == again and weights_digest(first) == weights_digest(second)


def test_products_of_bfloat16_learn_nearly_the_same(train, random_split, tiny_features):
    split, features = random_split(images=6), tiny_features(8)
    (a, exact), (b, rounded) = (train(split, features, bfloat16=bfloat16) for bfloat16 in (False, True))
    assert rounded == pytest.approx(exact, rel=0.02) and rounded != exact
    assert a.fc6.weight.dtype == b.fc6.weight.dtype == torch.float32


@pytest.mark.parametrize("stop_at", [3, 11, 20])  # in the first draw of images and in later ones
def test_a_resumed_training_ends_with_the_same_head(train, random_split, tiny_features, monkeypatch, stop_at):
    split, features = random_split(images=6), tiny_features(8)
    monkeypatch.setattr(finetune, "_IMAGES_PER_DRAW", 24)
    whole, loss = train(split, features, steps=30)
    draw = finetune._Draw(split, FinetuneSettings(**QUICK), seed=3, number=0)
    assert 3 < draw.count_batches(1) < 11
    monkeypatch.setattr(gradient_training, "_CHECKPOINT_SECONDS", -1)  # after every step
    batches, steps = finetune._Draw.batches, []

    def interrupted(self, *arguments):
        for batch in batches(self, *arguments):
            if len(steps) == stop_at:
                raise KeyboardInterrupt
            steps.append(batch)
            yield batch

    monkeypatch.setattr(finetune._Draw, "batches", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(split, features, steps=30)
    monkeypatch.setattr(finetune._Draw, "batches", batches)
    resumed, again = train(split, features, steps=30)
    assert again == loss and weights_digest(resumed) == weights_digest(whole)


def test_a_checkpoint_of_another_training_is_not_resumed_from(train, random_split, tiny_features, monkeypatch):
    split, features = random_split(images=6), tiny_features(8)
    _, loss = train(split, features)
    monkeypatch.setattr(gradient_training, "_CHECKPOINT_SECONDS", -1)  # after every step
    train(split, features, key="other", learning_rate=1e-4)
    assert train(split, features)[1] == loss


def test_without_steps_the_given_layers_stay(train, random_split, tiny_features):
    start = Head(40, 32, "fc7", scale=0.7)
    before = weights_digest(start)
    head, loss = train(random_split(images=6), tiny_features(8), start=start, steps=0)
    assert head is start and loss is None and not head.training and weights_digest(head) == before


def test_training_starts_from_the_given_layers(train, random_split, tiny_features):
    split, features = random_split(images=6), tiny_features(8)
    start = Head(40, 32, "fc7", scale=0.7)
    before = start.fc6.weight.detach().clone()
    settings = {"optimizer": "sgd", "learning_rate": 1e-30, "weight_decay": 0.0}
    head, _ = train(split, features, start=start, steps=2, **settings)
    assert head is start and head.scale == 0.7 and torch.equal(head.fc6.weight, before)
    head, _ = train(split, features, start=start, steps=2)
    assert not torch.equal(head.fc6.weight, before)


def test_the_schedule_is_that_of_the_settings(train, random_split, tiny_features, monkeypatch):
    split, features = random_split(images=6), tiny_features(8)
    shares = []
    monkeypatch.setattr(finetune, "step_decay", lambda step, steps: shares.append((step, steps)) or 0.0)
    start = Head(40, 32, "fc7")
    before = weights_digest(start)
    head, _ = train(split, features, start=start, schedule="step", steps=3)
    assert shares == [(0, 3), (1, 3), (2, 3), (3, 3)] and weights_digest(head) == before  # rates of 0


def test_a_runaway_learning_rate_is_an_error(train, random_split, tiny_features):
    with pytest.raises(SppdetError, match=r"loss is not finite; lower finetune\.learning_rate"):
        train(random_split(images=6), tiny_features(8), optimizer="sgd", learning_rate=1e30, steps=50)


def test_too_few_windows_are_an_error(train, make_split, tiny_features):
    split = make_split([(np.ones((16, 16, 8)), [[40, 40, 48, 48]], [], [])] * 2, ("a",))
    with pytest.raises(SppdetError, match=r"only 0 windows .* lower finetune\.batch_size"):
        train(split, tiny_features(8))
