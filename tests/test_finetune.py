"""Fine-tuning of the head: which windows it sees, that it learns, and that it can be stored."""

from __future__ import annotations

import json

import numpy as np
import pytest

from sppdet import boxes as geometry
from sppdet import finetune
from sppdet.backbone import weights_digest
from sppdet.config import Finetune
from sppdet.errors import SppdetError
from sppdet.head import Head

QUICK = {"units": 32, "steps": 12, "batch_size": 32, "windows_per_image": 16, "learning_rate": 3e-3}


def train(corpus, features, log=lambda text: None, start=None, **changes):
    settings = Finetune(**QUICK | changes)
    return finetune.train(corpus, features, settings, 1.0, seed=3, workers=1, log=log, start=start)


def test_sampled_windows_have_the_overlaps_their_labels_say(random_corpus):
    corpus = random_corpus(pictures=8, windows=300)
    for i in range(len(corpus)):
        boxes, labels, nearest = finetune.sample_windows(corpus, i, 16, 0.25, np.random.default_rng(i))
        sample = corpus.dataset[i]
        overlap = geometry.iou(boxes, sample.boxes)
        best = overlap.max(axis=1)
        front = labels < 3
        assert 1 <= front.sum() <= 4 and len(boxes) <= 16
        assert (best[front] >= 0.5).all()
        assert (labels[front] == sample.labels[overlap[front].argmax(axis=1)]).all()
        assert (nearest == sample.boxes[overlap[front].argmax(axis=1)]).all() and front[: len(nearest)].all()
        assert ((best[~front] >= 0.1) & (best[~front] < 0.5)).all() and (labels[~front] == 3).all()


def test_background_may_begin_at_no_overlap(random_corpus):
    corpus = random_corpus(pictures=1, windows=300)
    boxes, labels, _ = finetune.sample_windows(corpus, 0, 200, 0.25, np.random.default_rng(0), lowest=0.0)
    best = geometry.iou(boxes, corpus.dataset[0].boxes).max(axis=1)[labels == 3]
    assert (best == 0).any() and (best < 0.5).all()


def test_a_picture_without_objects_gives_no_windows(make_corpus):
    corpus = make_corpus([(np.ones((16, 16, 1)), [[0, 0, 8, 8]], [], [])], ("a",))
    boxes, labels, nearest = finetune.sample_windows(corpus, 0, 64, 0.25, np.random.default_rng(0))
    assert boxes.shape == nearest.shape == (0, 4) and labels.shape == (0,)


def test_a_picture_without_proposals_gives_its_objects(make_corpus):
    corpus = make_corpus([(np.ones((16, 16, 1)), [], [[0, 0, 8, 8], [8, 8, 16, 16]], [1, 0])], ("a", "b"))
    boxes, labels, _ = finetune.sample_windows(corpus, 0, 64, 0.25, np.random.default_rng(0))
    found = {tuple(box): label for box, label in zip(boxes.tolist(), labels.tolist())}
    assert found == {(0, 0, 8, 8): 1, (8, 8, 16, 16): 0}


def test_the_loss_falls(random_corpus, tiny_features):
    corpus, features = random_corpus(pictures=10), tiny_features(8)
    lines = []
    _, loss = train(corpus, features, steps=200, dropout=0.0, log=lines.append)
    records = [json.loads(line) for line in lines]
    assert [record["step"] for record in records] == [100, 200]
    assert loss < 0.75 * records[0]["loss"] < 0.75 * np.log(4)  # better than knowing nothing of four classes


def test_the_same_seed_is_the_same_head(random_corpus, tiny_features):
    corpus, features = random_corpus(pictures=6), tiny_features(8)
    (a, first), (b, second) = train(corpus, features), train(corpus, features)
    assert first == second
    pooled = np.random.default_rng(0).random((2, 40)).astype(np.float32)
    np.testing.assert_array_equal(a.vectors(pooled), b.vectors(pooled))


@pytest.mark.parametrize("steps", [1, 20])
def test_any_number_of_steps(random_corpus, tiny_features, steps):
    _, loss = train(random_corpus(pictures=6), tiny_features(8), steps=steps)
    assert np.isfinite(loss)


def test_it_goes_on_from_given_layers(random_corpus, tiny_features):
    corpus, features = random_corpus(pictures=6), tiny_features(8)
    start = Head(features.pooled_dimension, 32, "fc7", scale=0.7)
    before = weights_digest(start)
    head, loss = train(corpus, features, start=start, steps=0)
    assert head is start and loss is None and not head.training and weights_digest(head) == before
    head, loss = train(corpus, features, start=start, steps=2)
    assert head is start and np.isfinite(loss) and weights_digest(head) != before


def test_the_step_schedule_is_the_papers():
    # 250k mini-batches at the full rate, then 50k at a tenth of it.
    rates = [finetune.step_decay(step, 300_000) for step in (0, 249_999, 250_000, 299_999)]
    assert rates == [1, 1, 0.1, 0.1]


def test_schedules_differ(random_corpus, tiny_features):
    corpus, features = random_corpus(pictures=6), tiny_features(8)
    (a, _), (b, _) = (train(corpus, features, schedule=schedule) for schedule in ("cosine", "step"))
    assert weights_digest(a) != weights_digest(b)


def test_sgd(random_corpus, tiny_features):
    _, loss = train(random_corpus(pictures=6), tiny_features(8), optimizer="sgd", weight_decay=5e-4)
    assert np.isfinite(loss)


def test_a_runaway_learning_rate_is_told(random_corpus, tiny_features):
    with pytest.raises(SppdetError, match=r"loss is not finite; lower finetune\.learning_rate"):
        train(random_corpus(pictures=6), tiny_features(8), optimizer="sgd", learning_rate=1e30, steps=50)


def test_too_few_windows_are_told(make_corpus, tiny_features):
    corpus = make_corpus([(np.ones((16, 16, 8)), [[40, 40, 48, 48]], [], [])] * 2, ("a",))
    with pytest.raises(SppdetError, match=r"only 0 windows .* lower finetune\.batch_size"):
        train(corpus, tiny_features(8))
