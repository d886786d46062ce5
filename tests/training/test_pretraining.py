"""Pretraining: crops of objects and of background, and the trunk that learns to classify them."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from log_records import records_of
from PIL import Image

from sppdet.config.settings import PretrainSettings
from sppdet.data.dataset import Dataset, Sample
from sppdet.networks import gradient_training
from sppdet.networks.normalisation import IMAGENET
from sppdet.networks.trunks import build_trunk
from sppdet.ops import boxes as geometry
from sppdet.training import pretraining
from sppdet.utils.errors import SppdetError
from sppdet.utils.execution import Checkpoint, Execution

COLOURS = ([220, 30, 30], [30, 30, 220])


@pytest.fixture
def dataset(tmp_path) -> Dataset:
    """Ten grey images of 100 x 80 with a red (class 0) or a blue (class 1) square, and one without objects."""
    samples = []
    for i in range(11):
        image = np.full((80, 100, 3), 120, np.uint8)
        boxes, labels = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
        if i < 10:
            x, y = 5 + 4 * i, 3 * i
            image[y : y + 40, x : x + 40] = COLOURS[i % 2]
            boxes, labels = np.array([[x, y, x + 40, y + 40]], np.float32), np.array([i % 2])
        path = tmp_path / f"p{i}.png"
        Image.fromarray(image).save(path)
        samples.append(Sample(f"p{i}", path, 100, 80, boxes, labels, np.zeros(len(labels), bool)))
    return Dataset(("red", "blue"), tuple(samples))


def test_crops_show_every_object_and_as_much_background(dataset):
    crops = pretraining.object_crops(dataset, 32, seed=3, workers=2)
    assert crops.images.shape[1:] == (32, 32, 3) and crops.images.dtype == np.uint8
    assert len(crops.images) == len(crops.labels)
    assert (crops.labels < 2).sum() == 10 and 0 < (crops.labels == 2).sum() <= 10
    for image, label in zip(crops.images, crops.labels):
        if label < 2:
            assert image[16, 16].tolist() == COLOURS[label] and image[0, 0].tolist() == [120, 120, 120]
    again = pretraining.object_crops(dataset, 32, seed=3, workers=1)
    np.testing.assert_array_equal(crops.images, again.images)


def test_background_overlaps_no_object_by_much():
    boxes = np.array([[0, 0, 30, 30], [60, 50, 100, 80]], np.float32)
    sample = Sample("p", None, 100, 80, boxes, np.array([0, 1]), np.zeros(2, bool))
    for seed in range(20):
        background = pretraining._background(sample, np.random.default_rng(seed))
        assert len(background) <= 2
        assert (background >= 0).all() and (background[:, 2:] <= [100.01, 80.01]).all()
        assert (geometry.iou(background, boxes) < 0.3).all()
        sizes = (background[:, 2:] - background[:, :2]).round(3).tolist()
        assert all(size in ([30, 30], [40, 30]) for size in sizes)  # those of the objects


def test_an_object_as_large_as_its_image_has_no_background():
    boxes = np.array([[0, 0, 100, 80]], np.float32)
    sample = Sample("p", None, 100, 80, boxes, np.array([0]), np.zeros(1, bool))
    assert pretraining._background(sample, np.random.default_rng(0)).shape == (0, 4)


def test_a_crop_shows_a_fifth_around_its_object_and_stays_in_the_image():
    image = np.zeros((80, 100, 3), np.uint8)
    image[20:60, 30:70] = 200
    crop = pretraining._crop(image, np.array([30, 20, 70, 60], np.float32), 56)  # pixels 22..78 and 12..68: 56 a side
    np.testing.assert_array_equal(crop, image[12:68, 22:78])
    assert pretraining._crop(image, np.array([0, 0, 100, 80], np.float32), 20).shape == (20, 20, 3)
    assert pretraining._crop(image, np.array([99.2, 10, 99.6, 10.4], np.float32), 8).shape == (8, 8, 3)


@pytest.fixture
def pretrain(tmp_path):
    """Pretrain the smallest trunk from the beginning, or from what an interrupted training left."""

    def call(dataset: Dataset, **changes):
        settings = PretrainSettings(**{"sizes": [64, 48], "epochs": 2, "batch_size": 8} | changes)
        execution = Execution(seed=3, workers=1, checkpoint=Checkpoint(tmp_path / "trunk.checkpoint", "key"))
        return pretraining.pretrain(dataset, "small", "float32", settings, (2, 1), "cpu", execution)

    return call


@pytest.fixture
def records(caplog):
    """Return the records that a training has logged, one per epoch."""
    caplog.set_level(logging.INFO, "sppdet")
    return lambda: records_of(caplog.messages)


def test_epochs_take_the_sizes_in_turn(dataset, pretrain, records):
    trunk, accuracy = pretrain(dataset, epochs=3)
    assert [record["size"] for record in records()] == [64, 48, 64]
    assert records()[-1]["accuracy"] == accuracy
    assert not trunk.training and set(trunk.state_dict()) == set(build_trunk("small").state_dict())


def test_colours_are_learned(dataset, pretrain):
    _, accuracy = pretrain(dataset, epochs=10, learning_rate=3e-3, sizes=[48])
    assert accuracy > 0.8  # one class of three would be a third


def test_equal_seeds_give_equal_trunks(dataset, pretrain):
    (a, _), (b, _) = pretrain(dataset, epochs=1), pretrain(dataset, epochs=1)
    assert all(torch.equal(value, b.state_dict()[key]) for key, value in a.state_dict().items())


@pytest.mark.parametrize("stop_at", [1, 2, 5])
def test_a_resumed_training_ends_with_the_same_trunk(dataset, pretrain, monkeypatch, stop_at):
    whole, accuracy = pretrain(dataset, epochs=4, batch_size=7)  # two batches per epoch
    monkeypatch.setattr(gradient_training, "_CHECKPOINT_SECONDS", -1)  # after every step
    batches, steps = pretraining._batches, []

    def interrupted(*arguments):
        for batch in batches(*arguments):
            if len(steps) == stop_at:
                raise KeyboardInterrupt
            steps.append(batch)
            yield batch

    monkeypatch.setattr(pretraining, "_batches", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pretrain(dataset, epochs=4, batch_size=7)
    monkeypatch.setattr(pretraining, "_batches", batches)
    resumed, again = pretrain(dataset, epochs=4, batch_size=7)
    assert again == accuracy
    assert all(torch.equal(value, resumed.state_dict()[key]) for key, value in whole.state_dict().items())


def test_every_epoch_shows_each_crop_at_most_once_in_another_order():
    crops = pretraining.Crops(np.zeros((10, 56, 56, 3), np.uint8), np.arange(10))
    epochs = [
        torch.cat([labels for _, labels in pretraining._batches(crops, IMAGENET, 32, 3, 0, epoch, 0)]).tolist()
        for epoch in (0, 1)
    ]
    assert all(len(labels) == len(set(labels)) == 9 for labels in epochs) and epochs[0] != epochs[1]


def test_a_single_step_makes_one_record(dataset, pretrain, records):
    pretrain(dataset, epochs=1, batch_size=16, sizes=[48])
    assert [(record["epoch"], record["size"]) for record in records()] == [(1, 48)]


def test_too_few_crops_are_an_error(dataset, pretrain):
    with pytest.raises(SppdetError, match=r"fewer than pretrain\.batch_size=100; give more images"):
        pretrain(dataset, batch_size=100)


def test_jitter_never_cuts_the_object():
    crop = np.zeros((140, 140, 3), np.uint8)
    crop[20:120, 20:120] = 255  # the object of a crop with a fifth of its side around it
    rng = np.random.default_rng(0)
    for _ in range(50):
        cut = pretraining._jitter(crop, 140, rng)
        assert cut.shape == (140, 140, 3)
        assert (cut > 127).sum() >= (crop > 127).sum()  # the whole object is in the cut, enlarged
