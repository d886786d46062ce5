"""How many views of an image are learned from: fewer where there are many objects, more where there are few."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sppdet.config import PRESETS, Config, load_preset, override
from sppdet.data.dataset import Dataset, Sample
from sppdet.training.views import Views, choose_views

SEVERAL = override(Config(), ["regions.scales=[480,864]", "svm.flip=true", "bbox.flip=true"])
ONE = override(Config(), ["regions.scales=[688]", "svm.flip=false", "bbox.flip=false"])


def images_with(objects: int, classes: int = 2) -> Dataset:
    """Return images with so many objects of each class."""
    labels = np.repeat(np.arange(classes), objects)
    boxes = np.tile(np.float32([0, 0, 50, 50]), (len(labels), 1))
    sample = Sample("p", Path("p.jpg"), 640, 480, boxes, labels, np.zeros(len(labels), bool))
    return Dataset(tuple("abcdefgh"[:classes]), (sample,))


def mirrored(config: Config, dataset: Dataset, *fixed: str) -> Config:
    return override(config, [choice.override for choice in choose_views(config, dataset, fixed).mirrors])


@pytest.mark.parametrize(("objects", "scales", "flip"), [(9, 3, True), (10, 2, True), (999, 2, True), (1000, 1, False)])
def test_the_number_of_objects_per_class_decides(objects, scales, flip):
    dataset = images_with(objects)
    config = mirrored(SEVERAL, dataset)
    assert (config.svm.flip, config.bbox.flip) == (flip, flip)
    assert choose_views(SEVERAL, dataset).scales == scales


def test_all_objects_count_though_one_class_has_most_of_them():
    dataset = images_with(700, classes=1)
    of_two = Dataset(("a", "b"), dataset.samples)  # 350 objects per class
    assert choose_views(SEVERAL, of_two) == Views(2, "", [])
    assert choose_views(SEVERAL, Dataset(("a", "b"), dataset.samples * 3)).scales == 1


def test_no_stage_of_a_preset_learns_mirror_images_where_there_are_enough_objects():
    for preset in PRESETS:
        config = mirrored(load_preset(preset), images_with(2000))
        assert not any((config.finetune.flip, config.svm.flip, config.bbox.flip)), preset


def test_what_the_user_has_set_stays():
    config = mirrored(SEVERAL, images_with(2000), "svm.flip")
    assert config.svm.flip and not config.bbox.flip
    assert choose_views(SEVERAL, images_with(2000), ["regions.scales"]).scales == 2


@pytest.mark.parametrize("objects", [0, 5, 2000])
def test_a_config_that_reads_each_image_once_stays_as_it_is(objects):
    assert choose_views(ONE, images_with(objects)) == Views(1, "", [])
