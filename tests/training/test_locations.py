"""Locations of windows: vectors from them, and which classes are fitted together."""

from __future__ import annotations

import numpy as np
import pytest

from sppdet.features.window_features import Windows
from sppdet.training.locations import (
    LOCATION,
    ClassWindows,
    KeptVectors,
    class_groups,
    locations_of,
    pool_locations,
    share_locations,
    windows_in_memory,
)


@pytest.mark.parametrize("kind", ["max", "align"])
def test_vectors_are_pooled_again_as_they_were(random_split, tiny_features, kind):
    split, features = random_split(images=6), tiny_features(8, kind=kind)
    for i, name in enumerate(split.names):  # edges between cells
        shift = np.random.default_rng(i).uniform(-1, 1, (len(split.proposals(i)), 4)).astype(np.float32)
        split.proposal_store.write(name, np.clip(split.proposals(i) + shift, 0, 64))
    windows = [features.windows(split.proposals(i), split.size(i), split.maps(i)) for i in range(len(split))]
    locations = np.concatenate([locations_of(i, w, np.arange(0, len(w.cells), 3)) for i, w in enumerate(windows)])
    for place, vector in zip(locations, pool_locations(split, features, locations, 1)):
        alone = Windows(place["scale"][None], place["cells"][None], np.zeros(1, np.int64))
        expected = features.block(split.maps(place["image"]), alone, np.zeros(1, np.int64))
        np.testing.assert_array_equal(vector, expected[0].astype(np.float16))
    assert pool_locations(split, features, locations[:0], 1).shape == (0, features.dimension)
    whole = locations["cells"] % 1 == 0
    assert whole.all() if kind == "max" else not whole.all(axis=1).any()


def test_vectors_stay_for_those_who_ask_again(random_split, tiny_features, monkeypatch):
    split, features = random_split(images=6), tiny_features(8)
    windows = [features.windows(split.proposals(i), split.size(i), split.maps(i)) for i in range(len(split))]
    locations = np.concatenate([locations_of(i, w, np.arange(len(w.cells))) for i, w in enumerate(windows)])
    kept, read = KeptVectors(split, features, 40, 1), []
    maps = split.maps
    monkeypatch.setattr(type(split), "maps", lambda self, i: read.append(i) or maps(i))

    def check(chosen: np.ndarray, images: list[int]) -> None:
        read.clear()
        rows = kept.rows(locations[chosen])
        assert sorted(read) == images
        np.testing.assert_array_equal(kept.vectors[rows], pool_locations(split, features, locations[chosen], 1))

    of_image = np.split(np.arange(len(locations)), np.cumsum([len(w.cells) for w in windows])[:-1])
    first, second, third = (np.concatenate([of_image[i][:8] for i in images]) for images in ([0, 1], [1, 2], [2, 3, 4]))
    check(first, [0, 1])
    check(np.concatenate([second, second[:1]]), [2])  # one window twice
    size = len(kept.vectors)
    check(third, [3, 4])
    check(np.concatenate([third, first]), [0, 1] if size == 40 else [0, 1, 2, 3, 4])
    assert len(kept.vectors) == 40
    check(np.arange(41), sorted({i for i, rows in enumerate(of_image) if rows[0] < 41}))  # a class beyond the limit
    assert len(kept.vectors) == 41


def test_windows_of_several_classes_have_one_location():
    first, second = np.zeros(3, LOCATION), np.zeros(2, LOCATION)
    first["image"], second["image"] = [2, 0, 1], [1, 5]
    windows = [ClassWindows(locations, 1, np.zeros(len(locations), np.float32)) for locations in (first, second)]
    locations, rows = share_locations(windows)
    assert sorted(locations["image"].tolist()) == [0, 1, 2, 5]
    assert [locations["image"][of_class].tolist() for of_class in rows] == [[2, 0, 1], [1, 5]]


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (1, [([0], [1, 2, 3]), ([1], [2, 3]), ([2], [0])]),
        (3, [([0, 1], [1, 2, 3]), ([2], [0])]),
        (4, [([0, 1, 2], [0, 1, 2, 3])]),
    ],
)
def test_as_many_classes_are_fitted_together_as_share_windows_that_fit_into_memory(limit, expected):
    rows = [np.array([3, 1, 2]), np.array([2, 3]), np.array([0])]
    assert [(classes, shared.tolist()) for classes, shared in class_groups(rows, limit)] == expected


def test_a_number_in_half_precision_takes_two_bytes():
    assert windows_in_memory(1, 500) == 1e6


def test_windows_survive_being_written():
    locations = np.zeros(4, LOCATION)
    locations["image"], locations["scale"] = [3, 1, 2, 0], [0, 1, 0, 1]
    locations["cells"] = np.arange(16).reshape(4, 4)
    windows = ClassWindows(locations, 1, np.array([0.5, 0, 1, 0.25], np.float32))
    restored = ClassWindows.restore(windows.tensors())
    assert (restored.locations == locations).all() and restored.labels.tolist() == [1, -1, -1, -1]
    assert restored.alpha.tolist() == windows.alpha.tolist()
