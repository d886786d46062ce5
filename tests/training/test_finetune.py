"""Fine-tuning of the head: which windows it sees, that it learns, and that it can be stored."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from sppdet.config.settings import FinetuneSettings
from sppdet.networks.fc_head import Head
from sppdet.networks.weights import weights_digest
from sppdet.ops import boxes as geometry
from sppdet.training import finetune
from sppdet.utils.errors import SppdetError

QUICK = {"units": 32, "steps": 12, "batch_size": 32, "windows_per_image": 16, "learning_rate": 3e-3}


@pytest.fixture
def train(tmp_path):
    """Fine-tune from fresh, or from what an interrupted training of the same ``key`` left."""

    def call(split, features, log=lambda text: None, start=None, half=False, key="key", **changes):
        settings, path = FinetuneSettings(**QUICK | changes), tmp_path / "checkpoint"
        return finetune.train(split, features, settings, 1.0, half, path, key, seed=3, workers=1, log=log, start=start)

    return call


def test_sampled_windows_have_the_overlaps_their_labels_say(random_split):
    split = random_split(images=8, windows=300)
    for i in range(len(split)):
        boxes, labels, nearest = finetune.sample_windows(split, i, 16, 0.25, np.random.default_rng(i))
        sample = split.dataset[i]
        overlap = geometry.iou(boxes, sample.boxes)
        best = overlap.max(axis=1)
        front = labels < 3
        assert 1 <= front.sum() <= 4 and len(boxes) <= 16
        assert (best[front] >= 0.5).all()
        assert (labels[front] == sample.labels[overlap[front].argmax(axis=1)]).all()
        assert (nearest == sample.boxes[overlap[front].argmax(axis=1)]).all() and front[: len(nearest)].all()
        assert ((best[~front] >= 0.1) & (best[~front] < 0.5)).all() and (labels[~front] == 3).all()


def test_background_may_begin_at_no_overlap(random_split):
    split = random_split(images=1, windows=300)
    boxes, labels, _ = finetune.sample_windows(split, 0, 200, 0.25, np.random.default_rng(0), lowest=0.0)
    best = geometry.iou(boxes, split.dataset[0].boxes).max(axis=1)[labels == 3]
    assert (best == 0).any() and (best < 0.5).all()


def test_an_image_without_objects_gives_no_windows(make_split):
    split = make_split([(np.ones((16, 16, 1)), [[0, 0, 8, 8]], [], [])], ("a",))
    boxes, labels, nearest = finetune.sample_windows(split, 0, 64, 0.25, np.random.default_rng(0))
    assert boxes.shape == nearest.shape == (0, 4) and labels.shape == (0,)


def test_an_image_without_proposals_gives_its_objects(make_split):
    split = make_split([(np.ones((16, 16, 1)), [], [[0, 0, 8, 8], [8, 8, 16, 16]], [1, 0])], ("a", "b"))
    boxes, labels, _ = finetune.sample_windows(split, 0, 64, 0.25, np.random.default_rng(0))
    found = {tuple(box): label for box, label in zip(boxes.tolist(), labels.tolist())}
    assert found == {(0, 0, 8, 8): 1, (8, 8, 16, 16): 0}


def test_the_loss_falls(train, random_split, tiny_features):
    split, features = random_split(images=10), tiny_features(8)
    lines = []
    _, loss = train(split, features, steps=200, dropout=0.0, log=lines.append)
    records = [json.loads(line) for line in lines]
    assert [record["step"] for record in records] == [100, 200]
    assert loss < 0.75 * records[0]["loss"] < 0.75 * np.log(4)  # better than knowing nothing of four classes


def test_the_same_seed_is_the_same_head(train, random_split, tiny_features):
    split, features = random_split(images=6), tiny_features(8)
    (a, first), (b, second) = train(split, features), train(split, features)
    assert first == second
    pooled = torch.rand(2, 40)
    assert torch.equal(a.vectors(pooled), b.vectors(pooled))


def test_products_of_bfloat16_learn_nearly_the_same(train, random_split, tiny_features):
    split, features = random_split(images=6), tiny_features(8)
    (a, exact), (b, rounded) = (train(split, features, half=half) for half in (False, True))
    assert rounded == pytest.approx(exact, rel=0.02) and rounded != exact
    assert a.fc6.weight.dtype == b.fc6.weight.dtype == torch.float32


def test_an_interrupted_training_ends_with_the_same_head(train, random_split, tiny_features, monkeypatch, tmp_path):
    split, features = random_split(images=6), tiny_features(8)
    whole, loss = train(split, features, steps=30)
    monkeypatch.setattr(finetune, "_SAVE", -1)  # after every draw of images

    def interrupt(text: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(finetune, "_REPORT", 20)
    with pytest.raises(KeyboardInterrupt):
        train(split, features, steps=30, log=interrupt)
    assert (tmp_path / "checkpoint").exists()
    monkeypatch.setattr(finetune, "_REPORT", 1)
    lines = []
    again, same_loss = train(split, features, steps=30, log=lines.append)
    assert same_loss == loss and weights_digest(again) == weights_digest(whole)
    assert 1 < json.loads(lines[0])["step"] <= 20  # not from the beginning


def test_the_checkpoint_of_another_training_is_not_gone_on_from(train, random_split, tiny_features, monkeypatch):
    split, features = random_split(images=6), tiny_features(8)
    _, loss = train(split, features)
    monkeypatch.setattr(finetune, "_SAVE", -1)
    train(split, features, key="other", learning_rate=1e-4)
    assert train(split, features)[1] == loss


@pytest.mark.parametrize("steps", [1, 20])
def test_any_number_of_steps(train, random_split, tiny_features, steps):
    _, loss = train(random_split(images=6), tiny_features(8), steps=steps)
    assert np.isfinite(loss)


def test_it_goes_on_from_given_layers(train, random_split, tiny_features):
    split, features = random_split(images=6), tiny_features(8)
    start = Head(features.pooled_dimension, 32, "fc7", scale=0.7)
    before = weights_digest(start)
    head, loss = train(split, features, start=start, steps=0)
    assert head is start and loss is None and not head.training and weights_digest(head) == before
    head, loss = train(split, features, start=start, steps=2)
    assert head is start and np.isfinite(loss) and weights_digest(head) != before


def test_the_step_schedule_is_the_papers():
    # 250k mini-batches at the full rate, then 50k at a tenth of it.
    rates = [finetune.step_decay(step, 300_000) for step in (0, 249_999, 250_000, 299_999)]
    assert rates == [1, 1, 0.1, 0.1]


def test_schedules_differ(train, random_split, tiny_features):
    split, features = random_split(images=6), tiny_features(8)
    (a, _), (b, _) = (train(split, features, schedule=schedule) for schedule in ("cosine", "step"))
    assert weights_digest(a) != weights_digest(b)


def test_sgd(train, random_split, tiny_features):
    _, loss = train(random_split(images=6), tiny_features(8), optimizer="sgd", weight_decay=5e-4)
    assert np.isfinite(loss)


def test_a_runaway_learning_rate_is_told(train, random_split, tiny_features):
    with pytest.raises(SppdetError, match=r"loss is not finite; lower finetune\.learning_rate"):
        train(random_split(images=6), tiny_features(8), optimizer="sgd", learning_rate=1e30, steps=50)


def test_too_few_windows_are_told(train, make_split, tiny_features):
    split = make_split([(np.ones((16, 16, 8)), [[40, 40, 48, 48]], [], [])] * 2, ("a",))
    with pytest.raises(SppdetError, match=r"only 0 windows .* lower finetune\.batch_size"):
        train(split, tiny_features(8))
