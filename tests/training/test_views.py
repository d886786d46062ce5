"""How many views of an image are learned from: fewer where there are many objects, more where there are few."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sppdet.config import PRESETS, Config, load_preset, override
from sppdet.data.dataset import Dataset, Sample
from sppdet.training.views import choose_views

SEVERAL = override(Config(), ["regions.scales=[480,864]", "svm.flip=true", "bbox.flip=true"])
ONE = override(Config(), ["regions.scales=[688]", "svm.flip=false", "bbox.flip=false"])


def images_with(objects: int, classes: int = 2) -> Dataset:
    """Return images with so many objects of each class."""
    labels = np.repeat(np.arange(classes), objects)
    boxes = np.tile(np.float32([0, 0, 50, 50]), (len(labels), 1))
    sample = Sample("p", Path("p.jpg"), 640, 480, boxes, labels, np.zeros(len(labels), bool))
    return Dataset(tuple("abcdefgh"[:classes]), (sample,))


def chosen(config: Config, dataset: Dataset, *fixed: str) -> Config:
    return override(config, [choice.override for choice in choose_views(config, dataset, fixed)])


@pytest.mark.parametrize(
    ("objects", "scales", "mirrored"), [(9, 3, True), (10, 2, True), (999, 2, True), (1000, 1, False)]
)
def test_the_number_of_objects_per_class_decides(objects, scales, mirrored):
    config = chosen(SEVERAL, images_with(objects))
    assert (len(config.regions.scales), config.svm.flip, config.bbox.flip) == (scales, mirrored, mirrored)


def test_all_objects_count_though_one_class_has_most_of_them():
    dataset = images_with(700, classes=1)
    of_two = Dataset(("a", "b"), dataset.samples)  # 350 objects per class
    assert choose_views(SEVERAL, of_two) == []
    assert choose_views(SEVERAL, Dataset(("a", "b"), dataset.samples * 3))


def test_no_stage_of_a_preset_learns_mirror_images_where_there_are_enough_objects():
    for preset in PRESETS:
        config = chosen(load_preset(preset), images_with(2000))
        assert not any((config.finetune.flip, config.svm.flip, config.bbox.flip)), preset


def test_what_the_user_has_set_stays():
    config = chosen(SEVERAL, images_with(2000), "regions.scales", "svm.flip")
    assert config.regions.scales == (480, 864) and config.svm.flip and not config.bbox.flip


@pytest.mark.parametrize("objects", [0, 5, 2000])
def test_a_config_that_reads_each_image_once_stays_as_it_is(objects):
    assert choose_views(ONE, images_with(objects)) == []
