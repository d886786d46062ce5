"""What end-to-end training reads of an image: pixels, windows and targets, mirrored together."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from end_to_end_images import QUICK, Workplace

from sppdet.config.settings import EndToEndSettings
from sppdet.data.images import read_image
from sppdet.ops import boxes as geometry
from sppdet.training.training_images import TrainingImage, read_steps, read_training_image


@pytest.fixture
def workplace(tmp_path, shapes_root) -> Workplace:
    return Workplace(shapes_root, tmp_path)


def read(workplace: Workplace, i: int, seed: int, **changes) -> TrainingImage:
    """Read image ``i`` with draws of this seed."""
    settings, rng = EndToEndSettings(**QUICK | changes), np.random.default_rng(seed)
    return read_training_image(workplace.split, i, settings, workplace.backbone, workplace.features, rng)


def test_targets_lead_from_the_windows_to_objects_of_the_image_or_its_mirror_image(workplace):
    for i in range(6):
        image = read(workplace, i, seed=i)
        assert min(image.pixels.shape[2:]) == 96 and len(image.windows) == len(image.labels) <= 16
        foreground = image.labels < len(workplace.split.dataset.classes)
        assert foreground.sum() == len(image.targets) and foreground[: len(image.targets)].all()
        sample, objects = workplace.split.dataset[i], geometry.decode(image.windows[foreground], image.targets)
        distances = [
            np.abs(objects[:, None] - boxes[None]).max(axis=2).min(axis=1).max()
            for boxes in (sample.boxes, geometry.mirror(sample.boxes, sample.width))
        ]
        assert min(distances) < 1e-2


def test_pixels_are_mirrored_with_their_windows(workplace):
    sample = workplace.split.dataset[0]
    pixels = read_image(sample.path)
    plain = workplace.backbone.pixels(pixels, 96 / min(pixels.shape[:2]))
    mirrored = []
    for seed in range(8):
        image = read(workplace, 0, seed)
        mirrored.append(not torch.allclose(image.pixels, plain, atol=1e-5))
        expected = plain.flip(3) if mirrored[-1] else plain
        assert torch.allclose(image.pixels, expected, atol=0.1)
        objects = geometry.mirror(sample.boxes, sample.width) if mirrored[-1] else sample.boxes
        assert (geometry.iou(image.windows[: len(image.targets)], objects).max(axis=1) >= 0.5).all()
    assert set(mirrored) == {True, False}
    assert torch.equal(read(workplace, 0, seed=0, flip=False).pixels, plain)


def test_hard_windows_are_chosen_among_more_of_any_overlap(workplace):
    images = [read(workplace, i, seed=i, hard_of=60, flip=False) for i in range(4)]
    assert max(len(image.windows) for image in images) > 16
    lowest = [
        geometry.iou(image.windows, workplace.split.dataset[i].boxes).max(axis=1).min()
        for i, image in enumerate(images)
    ]
    assert min(lowest) < 0.1  # the threshold of background does not hold


def test_each_image_comes_once_per_epoch_and_steps_can_start_anywhere(workplace):
    settings = EndToEndSettings(**QUICK | {"images_per_step": 5})
    arguments = (workplace.split, settings, workplace.backbone, workplace.features, 3)
    steps = list(read_steps(*arguments, 0, 5))
    sums = [image.pixels.abs().sum().item() for images in steps for image in images]  # the same if mirrored
    known = [read(workplace, i, seed=0).pixels.abs().sum().item() for i in range(12)]
    numbers = [int(np.argmin(np.abs(np.array(known) - value))) for value in sums]
    assert sorted(numbers[:12]) == sorted(numbers[12:24]) == list(range(12))
    assert numbers[:12] != numbers[12:24]
    late = list(read_steps(*arguments, 3, 5))
    for images, expected in zip(late, steps[3:], strict=True):
        for image, other in zip(images, expected, strict=True):
            assert torch.equal(image.pixels, other.pixels) and np.array_equal(image.windows, other.windows)


def test_only_some_of_the_windows():
    windows = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [30, 30, 40, 40], [50, 50, 60, 60]], np.float32)
    targets = np.arange(8, dtype=np.float32).reshape(2, 4)
    image = TrainingImage(torch.zeros(1, 3, 64, 64), 1.0, (64, 64), windows, np.array([0, 1, 2, 2]), targets)
    chosen = image.only(np.array([1, 3]))
    assert chosen.windows.tolist() == windows[[1, 3]].tolist() and chosen.labels.tolist() == [1, 2]
    assert chosen.targets.tolist() == [[4, 5, 6, 7]]
