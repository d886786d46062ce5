"""A split with its cached proposals, and work on each of its images."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from sppdet.features import cached_split as module
from sppdet.features.cached_split import CachedSplit, fill_each, map_images, open_proposals
from sppdet.features.store import NotWritable
from sppdet.networks.backbone import Backbone
from sppdet.proposals.search import SelectiveSearch
from sppdet.utils.errors import SppdetError

SEARCH = SelectiveSearch(max_side=100, max_windows=6)


def test_proposals_need_no_network(tmp_path, greys, monkeypatch):
    monkeypatch.setattr(Backbone, "create", lambda *_: pytest.fail("a network was built"))
    split = open_proposals(greys, tmp_path / "cache", SEARCH)
    assert type(split) is CachedSplit and split.fill_proposals(SEARCH, 1) == 3
    # All of an image of one grey is one region.
    assert split.proposals(0).tolist() == [[0, 0, 40, 30]] and split.size(0) == (40, 30)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["proposals"]


def test_a_changed_image_has_another_entry(tmp_path, greys):
    before = module.entry_names(greys)
    Image.new("L", (40, 30), 200).save(greys[1].path)
    after = module.entry_names(greys)
    assert [a == b for a, b in zip(before, after)] == [True, False, True]
    assert all(name.startswith(f"{sample.id}-") for name, sample in zip(after, greys))


def test_objects_and_overlaps_of_classes(make_split):
    boxes = [[0, 0, 10, 10], [0, 0, 20, 10], [50, 50, 60, 60]]
    split = make_split([(np.zeros((16, 16, 1)), [[0, 0, 10, 10]], boxes, [0, 1, 0])], ("a", "b", "c"))
    assert split.objects(0, 0).tolist() == [boxes[0], boxes[2]] and split.objects(0, 2).shape == (0, 4)
    windows = np.array([[0, 0, 10, 10], [30, 30, 40, 40], [0, 0, 20, 20]], np.float32)
    np.testing.assert_allclose(split.overlaps(0, windows, [1, 0, 2]), [[0.5, 1, 0], [0, 0, 0], [0.5, 0.25, 0]])
    assert split.overlaps(0, windows, []).shape == (3, 0)


def test_recall_leaves_difficult_objects_out(make_split):
    boxes = [[0, 0, 10, 10], [20, 20, 30, 30], [40, 40, 50, 50]]
    split = make_split([(np.zeros((16, 16, 1)), [[0, 0, 10, 12], [0, 0, 3, 3]], boxes, [0, 0, 0])], ("a",))
    assert split.recall() == {
        "windows": 2.0,
        "recall@0.5": 0.3333,
        "recall@0.7": 0.3333,
        "average_best_overlap": 0.2778,  # 10 / 12 of one of three
    }
    sample = replace(split.dataset[0], difficult=np.array([False, True, True]))
    split = replace(split, dataset=replace(split.dataset, samples=(sample,)))
    assert split.recall()["recall@0.5"] == 1 and split.recall()["average_best_overlap"] == 0.8333


def test_the_errors_of_all_splits_are_told_together():
    def fill(split: str) -> int:
        if split == "good":
            return 2
        raise SppdetError(f"{split}: cannot be read")

    assert fill_each(["good", "good"], fill) == 4
    with pytest.raises(SppdetError) as caught:
        fill_each(["first", "good", "second"], fill)
    assert str(caught.value).splitlines() == ["first: cannot be read", "second: cannot be read"]


def test_a_full_disk_is_told_once():
    def fill(split: str) -> int:
        raise (NotWritable if split == "full" else SppdetError)(split)

    with pytest.raises(SppdetError) as caught:
        fill_each(["first", "full", "full"], fill)
    assert str(caught.value).splitlines() == ["first", "full"]


def test_images_are_passed_one_by_one_with_their_numbers(random_split):
    split = random_split(images=5)

    def look(i: int, image: CachedSplit) -> tuple[int, int, list]:
        return i, len(image), image.maps(0)[0].tolist()

    assert list(map_images(look, split, [4, 0, 2], 2, "images")) == [
        (i, 1, split.maps(i)[0].tolist()) for i in (4, 0, 2)
    ]
