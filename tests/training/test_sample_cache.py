"""The cache of windows that classes train on: what it keeps, shares and frees."""

from __future__ import annotations

import numpy as np

from sppdet.training.locations import LOCATION
from sppdet.training.sample_cache import SampleCache


def sample_cache() -> SampleCache:
    """Two classes with one positive each."""
    return SampleCache(np.zeros(2, LOCATION), np.array([0, 1]), 2)


def add(cache: SampleCache, image: int, windows: list[int], wanted, score) -> None:
    locations = np.array([(image, 0, (window, 0, 9, 9)) for window in windows], LOCATION)
    wanted = np.array(wanted, bool).reshape(-1, 2)
    cache.add(np.array(windows, int), locations, wanted, np.array(score, np.float32).reshape(-1, 2))


def negatives(cache: SampleCache, k: int) -> list[list[int]]:
    """Return the image and the number of each of class k's negatives."""
    index, labels = cache.problem(k)
    return [[int(location["image"]), int(location["cells"][0])] for location in cache.locations[index[labels < 0]]]


def test_positives_belong_to_their_class():
    index, labels = sample_cache().problem(1)
    assert index.tolist() == [1] and labels.tolist() == [1]


def test_a_window_is_kept_once_for_all_classes():
    cache = sample_cache()
    add(cache, 7, [3, 4], [[1, 0], [0, 1]], [[0.5, 0], [0, 0.6]])
    add(cache, 7, [3], [[1, 1]], [[0.9, 0.8]])
    assert len(cache) == 2
    assert negatives(cache, 0) == [[7, 3]] and negatives(cache, 1) == [[7, 3], [7, 4]]
    row = next(r for r in cache.problem(0)[0] if r >= 2)
    np.testing.assert_allclose(cache.score[row], [0.5, 0.8])  # class 0 had it: its score is the one of its last fit


def test_the_same_window_number_of_another_image_is_another_row():
    cache = sample_cache()
    add(cache, 1, [3], [[1, 0]], [[0, 0]])
    add(cache, 2, [3], [[1, 0]], [[0, 0]])
    assert negatives(cache, 0) == [[1, 3], [2, 3]]


def test_trim_keeps_the_hardest_once_a_quarter_more_has_come():
    cache = sample_cache()
    add(cache, 1, list(range(5)), [[1, 1]] * 5, [[w, -w] for w in range(5)])
    cache.trim(0, 4)
    assert len(negatives(cache, 0)) == 5  # five are not more than four and a quarter of four
    add(cache, 2, [9], [[1, 0]], [[10, 0]])
    cache.trim(0, 4)
    assert negatives(cache, 0) == [[1, 2], [1, 3], [1, 4], [2, 9]]
    assert len(negatives(cache, 1)) == 5  # the other class keeps its own


def test_evict_drops_easy_negatives_and_never_positives():
    cache = sample_cache()
    add(cache, 1, [0, 1, 2], [[1, 1]] * 3, [[-2, 0], [-1.2, 0], [0, -3]])
    cache.score[:2] = -9
    cache.evict(0, -1.2)
    assert negatives(cache, 0) == [[1, 1], [1, 2]] and len(negatives(cache, 1)) == 3
    assert (cache.problem(0)[1] > 0).sum() == 1


def test_negatives_of_an_image_that_must_not_be_such_go():
    cache = sample_cache()
    add(cache, 0, [0, 2], [[1, 1], [1, 1]], [[0, 0]] * 2)
    add(cache, 1, [2], [[1, 1]], [[0, 0]])
    cache.restrict(0, np.array([[True, True], [True, True], [False, True]]))
    assert negatives(cache, 0) == [[0, 0], [1, 2]] and negatives(cache, 1) == [[0, 0], [0, 2], [1, 2]]
    assert (cache.problem(0)[1] > 0).sum() == 1  # the positive is of image 0, too


def test_collect_frees_rows_that_no_class_holds():
    cache = sample_cache()
    add(cache, 1, [0, 1, 2], [[1, 1], [1, 0], [0, 1]], [[-2, 0], [-2, 0], [0, 0]])
    cache.evict(0, -1)
    cache.collect()
    assert len(cache) == 2 and negatives(cache, 1) == [[1, 0], [1, 2]]
    add(cache, 5, [8], [[1, 0]], [[1, 0]])  # fits, where four rows would not
    assert negatives(cache, 0) == [[5, 8]]


def test_a_row_that_is_used_again_starts_from_nothing():
    cache = sample_cache()
    add(cache, 1, [0], [[1, 0]], [[-5, 0]])
    row = int(cache.problem(0)[0][-1])
    cache.alpha[row, 0] = 0.7
    cache.evict(0, -1)
    cache.collect()
    add(cache, 2, [0], [[1, 0]], [[0.25, 0]])
    assert cache.problem(0)[0][-1] == row
    assert cache.alpha[row, 0] == 0 and cache.score[row, 0] == 0.25
