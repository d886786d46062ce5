"""Settings that follow the data: sizes of objects decide scales, and recall decides how proposals are searched."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sppdet.config import Config, override
from sppdet.data.dataset import Dataset, Sample
from sppdet.training import data_settings
from sppdet.training.data_settings import Choice, choices_of_run, choose_settings


def image_of(name, *boxes, size=(1000, 800), labels=None):
    """Return a sample with square objects ``(x, y, side)``; its file need not exist."""
    xyxy = np.array([(x, y, x + side, y + side) for x, y, side in boxes], np.float32).reshape(-1, 4)
    numbers = np.array(labels if labels is not None else [0] * len(boxes), np.int64)
    return Sample(name, Path(f"{name}.jpg"), *size, xyxy, numbers, np.zeros(len(boxes), bool))


def dataset_of(*samples, classes=("a", "b")):
    return Dataset(classes, samples)


@pytest.fixture
def search_that_finds(monkeypatch):
    """``search_that_finds(side)``: windows on all objects that have ``side`` pixels in the working image or more.

    The windows of the searches that were tried are replaced; the list of these searches is returned.
    """

    def replace_search(smallest: float, factor: float = 1.0) -> list[tuple[int, str]]:
        tried: list[tuple[int, str]] = []

        def search_one(image, search, min_sizes, most):
            if tried[-1:] != [(search.max_side, search.mode)]:
                tried.append((search.max_side, search.mode))
            shrunk = min(1, search.max_side / max(image.width, image.height))
            sides = data_settings._sides(image)
            hits = [(sides * shrunk >= smallest) & (sides * factor >= size) for size in min_sizes]
            return np.array(hits, np.float32), [100 - int(size) for size in min_sizes], 0.1

        monkeypatch.setattr(data_settings, "_search_one", search_one)
        return tried

    return replace_search


def values(choices: list[Choice]) -> dict[str, object]:
    return {choice.key: choice.value for choice in choices}


SETTINGS = override(Config(), ["workers=1", "proposals.mode=balanced"])


def test_large_objects_leave_the_search_as_it_is(search_that_finds):
    tried = search_that_finds(20)
    chosen = values(choose_settings(SETTINGS, dataset_of(image_of("p", (10, 10, 200)))))
    assert tried == [(500, "balanced")]
    assert (chosen["proposals.max_side"], chosen["proposals.mode"]) == (500, "balanced")
    assert chosen["proposals.min_size"] == 20


def test_small_objects_get_a_larger_working_image(search_that_finds):
    tried = search_that_finds(20)
    # 38 pixels in images of 1300: 14.6 at 500, 20.5 at 700.
    images = [image_of(f"p{i}", (10, 10, 38), size=(1300, 800)) for i in range(12)]
    (first, *_) = choose_settings(SETTINGS, dataset_of(*images))
    assert tried == [(500, "balanced"), (700, "balanced")]
    assert first.override == "proposals.max_side=700"
    assert "100% of 12 objects in 12 training images" in first.reason and "0% with 500 pixels" in first.reason


def test_the_mode_is_tried_before_the_larger_image_and_quality_last(search_that_finds):
    tried = search_that_finds(30)  # never found
    fast = override(SETTINGS, ["proposals.mode=fast"])
    (first, *_) = choose_settings(fast, dataset_of(image_of("p", (10, 10, 24), size=(1000, 800))))
    # A larger image that finds no more ends the attempts; the cheapest of equals is chosen.
    assert tried == [(500, "fast"), (500, "balanced"), (700, "balanced")]
    assert first.value == 500 and "nothing that was tried finds 95%" in first.reason


def test_working_images_in_which_objects_are_smaller_than_a_segment_are_passed_over(search_that_finds):
    tried = search_that_finds(1000)
    choose_settings(SETTINGS, dataset_of(image_of("p", (0, 0, 18), size=(2000, 1000))))
    assert tried == [(500, "balanced"), (1400, "balanced")]  # 18 pixels are 9 at 1000 and 12.6 at 1400


def test_windows_smaller_than_min_size_are_kept_if_objects_need_them(search_that_finds):
    search_that_finds(1)
    chosen = values(choose_settings(SETTINGS, dataset_of(image_of("p", (10, 10, 12), size=(100, 80)))))
    assert chosen["proposals.min_size"] == 10


def test_settings_that_the_user_gave_are_not_chosen(search_that_finds):
    tried = search_that_finds(1000)
    fixed = ["proposals.max_side", "proposals.mode", "regions.scales"]
    chosen = choose_settings(SETTINGS, dataset_of(image_of("p", (0, 0, 30))), fixed)
    assert [choice.key for choice in chosen] == ["proposals.min_size", "regions.max_side"]
    assert tried == [(500, "balanced")]


def test_without_objects_nothing_is_chosen():
    assert choose_settings(SETTINGS, dataset_of(image_of("p"))) == []


def test_difficult_objects_do_not_count(search_that_finds):
    tried = search_that_finds(20)
    sample = image_of("p", (10, 10, 200), (500, 500, 8))
    sample.difficult[1] = True
    choose_settings(SETTINGS, dataset_of(sample))
    assert tried == [(500, "balanced")]


def test_the_sample_shows_rare_classes_and_grows_until_there_are_objects_enough():
    images = [image_of(f"p{i}", (0, 0, 50)) for i in range(80)]
    images[70:] = [image_of(f"q{i}", (0, 0, 50), labels=[1]) for i in range(10)]
    sample = data_settings._sample(dataset_of(*images), seed=3)
    labels = np.concatenate([image.labels for image in sample])
    assert len(sample) == 60 and np.bincount(labels).tolist() == [50, 10]
    rich = [image_of(f"p{i}", *[(0, 0, 50)] * 4) for i in range(80)]
    assert len(data_settings._sample(dataset_of(*rich), seed=3)) == 30


def scales_for(side, size, count):
    fixed = ["proposals.max_side", "proposals.mode", "proposals.min_size"]
    with_objects = dataset_of(*(image_of(f"p{s}", (0, 0, s), size=size) for s in side))
    (chosen,) = [c for c in data_settings._scales(with_objects, SETTINGS, fixed, count) if c.key == "regions.scales"]
    return chosen.value


def test_scales_bring_objects_near_the_target():
    # A side of 112 in images of 480 is 224 at 960.
    assert scales_for([112], (640, 480), 1) == [864]
    assert scales_for([224], (640, 480), 1) == [480]
    # Sides of 100 and 224: 864 brings the first to 180, and 480 leaves the second. 1200 would bring it to 250, dearly.
    assert scales_for([100, 224], (640, 480), 2) == [480, 864]


def test_a_scale_that_costs_much_must_bring_much():
    # 160 in 600: 224 at 840. With two scales, 480 adds least to the cost.
    assert scales_for([160], (800, 600), 1) == [864]
    assert scales_for([160], (800, 600), 2) == [480, 864]


def test_long_images_raise_the_longest_side(search_that_finds):
    search_that_finds(1)
    images = [image_of(f"p{i}", (0, 0, 40), size=(4000, 1000)) for i in range(5)]
    chosen = values(choose_settings(override(SETTINGS, ["regions.scales=[688]"]), dataset_of(*images)))
    assert chosen["regions.scales"] == [1200] and chosen["regions.max_side"] == 4800


def test_choices_are_settings():
    choices = [Choice("regions.scales", [480, 864], ""), Choice("proposals.min_size", 7.0, "")]
    config = override(Config(), [choice.override for choice in choices])
    assert config.regions.scales == (480, 864) and config.proposals.min_size == 7


def test_a_finished_run_keeps_its_settings(tmp_path):
    two_scales = override(Config(), [f"run.dir={tmp_path}", "regions.scales=[480,864]"])
    assert choices_of_run(two_scales) == []
    values = {"regions": {"scales": [576, 1200]}, "proposals": {"max_side": 1000}, "versions": {}}
    (tmp_path / "config.json").write_text(json.dumps(values))
    overrides = [choice.override for choice in choices_of_run(two_scales, ["regions.max_side"])]
    assert overrides == [
        "proposals.max_side=1000",
        "proposals.min_size=20.0",
        "proposals.mode=fast",
        "regions.scales=[576, 1200]",
    ]
    assert choices_of_run(override(two_scales, ["regions.scales=[688]"])) == []  # another preset: choose again


def test_a_real_search_finds_drawn_objects(shapes_root):
    from sppdet.data.splits import read_dataset

    dataset = read_dataset(shapes_root, "trainval")
    first, second = (choose_settings(SETTINGS, dataset) for _ in range(2))
    assert values(first) == values(second)
    assert set(values(first)) == set(data_settings.KEYS)
