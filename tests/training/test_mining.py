"""Hard-negative mining: what the sample cache keeps, what is found, and that classes do not see each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sppdet.config.settings import SvmSettings
from sppdet.features.window_features import Windows
from sppdet.networks.fc_head import Head
from sppdet.ops.products import Products
from sppdet.training import mining
from sppdet.training.mining import PLACE, Miner, SampleCache, feature_scale

SETTINGS = {"C": 0.1, "random_negatives": 30, "max_negatives": 40, "hard_per_image": 6}


def sample_cache() -> SampleCache:
    """Two classes with one positive each."""
    return SampleCache(np.zeros(2, PLACE), np.array([0, 1]), 2)


def add(cache: SampleCache, image: int, windows: list[int], wanted, score) -> None:
    places = np.array([(image, 0, (window, 0, 9, 9)) for window in windows], PLACE)
    wanted = np.array(wanted, bool).reshape(-1, 2)
    cache.add(np.array(windows, int), places, wanted, np.array(score, np.float32).reshape(-1, 2))


def negatives(cache: SampleCache, k: int) -> list[list[int]]:
    """Image and number of class k's."""
    index, labels = cache.problem(k)
    return [[int(place["picture"]), int(place["window"][0])] for place in cache.places[index[labels < 0]]]


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


def miner(split, features, labels, workers=1, memory_gb=2.0, **changes) -> Miner:
    settings = SvmSettings(**SETTINGS | changes)
    return Miner(split, features, labels, settings, scale=1.0, workers=workers, memory_gb=memory_gb)


@pytest.mark.parametrize(
    ("workers", "kind", "near"), [(1, "max", 1.0), (2, "max", 1.0), (2, "align", 1.0), (2, "max", 0.4)]
)
def test_a_class_trained_alone_is_the_same_svm(random_split, tiny_features, workers, kind, near):
    split, features = random_split(images=20), tiny_features(8, kind=kind)
    together = miner(split, features, [0, 1, 2], positive_overlap=near).train()
    for k in range(3):
        alone = miner(split, features, [k], workers, positive_overlap=near).train()
        np.testing.assert_array_equal(alone.weight[0], together.weight[k])
        assert alone.bias[0] == together.bias[k]
    pair = miner(split, features, [2, 0], workers, positive_overlap=near).train()
    np.testing.assert_array_equal(pair.weight, together.weight[[2, 0]])


@pytest.mark.parametrize("layer", ["fc6", "pool5+fc7"])
def test_behind_fc_layers_it_is_but_for_the_last_bits(random_split, tiny_features, layer):
    split, pooled = random_split(images=20), tiny_features(8)
    torch.manual_seed(3)
    features = pooled.under(Head(pooled.pooled_dimension, 32, layer).eval())
    together = miner(split, features, [0, 1, 2]).train()
    alone = miner(split, features, [1]).train()
    np.testing.assert_allclose(alone.weight[0], together.weight[1], atol=1e-4)
    assert np.abs(alone.weight).max() > 0.1


def test_memory_is_bounded_and_no_row_comes_twice(random_split, tiny_features):
    split, features = random_split(images=20), tiny_features(8)
    made = miner(split, features, [0, 1, 2], max_negatives=10, hard_margin=-1e9, evict_margin=-1e9)
    sizes = []
    made.log = lambda text: "a class" in text and sizes.append(len(made.cache))
    svms = made.train()
    assert svms.weight.shape == (3, 40) and svms.weight.dtype == svms.bias.dtype == np.float32
    # A class holds up to a quarter more than its limit after a trim; random negatives come before the first one.
    assert max(sizes[1:]) <= 3 * (10 * 5 // 4)
    for k in range(3):
        index, _ = made.cache.problem(k)
        assert len(index) == len(set(index.tolist()))
        assert (index >= made.cache.positives).sum() <= 12


@pytest.fixture
def planted(make_split):
    """Ten images with a bright object each; in the last one a thing that is brighter still but is no object."""
    rng = np.random.default_rng(0)
    content = []
    for i in range(10):
        conv_map = rng.random((16, 16, 4)) * 0.1
        conv_map[2:6, 2:6, 0] = 1.0  # the object
        windows = [[32 + 4 * x, 32 + 4 * y, 44 + 4 * x, 44 + 4 * y] for x in range(3) for y in range(3)]
        if i == 9:
            conv_map[10:14, 2:6, 0] = 1.2
            conv_map[10:14, 2:6, 1] = 1.0  # what tells it from an object
            windows.append([8, 40, 24, 56])
        windows.append([8, 8, 24, 20])  # IoU 3/4 with the object: never a negative
        content.append((conv_map, windows, [[8, 8, 24, 24]], [0]))
    return make_split(content, ("a",))


def test_a_planted_hard_negative_is_found(planted, tiny_features):
    features = tiny_features(4)
    hard = np.array([[8, 40, 24, 56], [8, 8, 24, 24]], np.float32)
    maps = planted.maps(9)

    def margins(hard_per_image: int) -> tuple[float, float]:
        svms = miner(planted, features, [0], C=10.0, random_negatives=8, hard_per_image=hard_per_image).train()
        windows = features.windows(hard, (64, 64), maps)
        scores = (features.products(maps, windows, Products(svms.weight))[0] + svms.bias)[windows.group, 0]
        return scores[0], scores[1]

    thing, thing_object = margins(hard_per_image=0)
    assert thing > 0.5 and thing_object > 0.5  # random negatives alone say nothing about it
    thing, thing_object = margins(hard_per_image=100)
    assert thing < -0.9 and thing_object > 0.9


def test_windows_near_an_object_are_no_negatives(planted, tiny_features):
    made = miner(planted, tiny_features(4), [0], random_negatives=1000, hard_margin=-1e9, evict_margin=-1e9)
    made.train()
    index, labels = made.cache.problem(0)
    brightest = made._vectors(index[labels < 0]).reshape(-1, 5, 4)[:, -1]
    assert not ((brightest[:, 0] > 0.5) & (brightest[:, 1] < 0.5)).any()  # all that bright but the planted thing
    assert ((brightest[:, 0] > 0.5) & (brightest[:, 1] > 0.5)).sum() == 1


@pytest.mark.parametrize(("overlap", "expected"), [(1.0, []), (0.8, []), (0.7, [[8, 8, 24, 20]])])
def test_windows_that_overlap_an_object_by_enough_are_positives_too(planted, tiny_features, overlap, expected):
    made = miner(planted, tiny_features(4), [0], random_negatives=8, positive_overlap=overlap)
    made.train()
    index, labels = made.cache.problem(0)
    places = made.cache.places[index[labels > 0]]
    for image in range(10):
        cells = places["window"][places["picture"] == image]
        assert (cells * 4).tolist() == [[8, 8, 24, 24], *expected]


@pytest.mark.parametrize(("of_class", "expected"), [(10000, 20), (7, 7), (0, 1)])
def test_of_windows_near_an_object_a_few_are_drawn_each_cell_once(
    make_split, tiny_features, monkeypatch, of_class, expected
):
    monkeypatch.setattr(mining, "_NEAR_OF_CLASS", of_class)
    windows = [[x, y, 60, 60 + z] for x in range(0, 9, 4) for y in range(0, 13, 4) for z in (0, 4)] * 2
    split = make_split([(np.ones((16, 16, 1)), [*windows, [0, 0, 8, 8]], [[0, 0, 64, 64]], [0])], ("a",))
    made = miner(split, tiny_features(1), [0], positive_overlap=0.5)
    made.train()
    index, labels = made.cache.problem(0)
    cells = made.cache.places["window"][index[labels > 0]]
    assert len(cells) == 1 + expected < 1 + len(windows) // 2
    assert len(np.unique(cells[1:], axis=0)) == expected


def test_of_overlapping_hard_negatives_the_hardest_stays(make_split, tiny_features):
    conv_map = np.full((16, 16, 1), 0.1)
    conv_map[8:12, 8:12] = 1
    conv_map[8, 8] = 2
    # The second window leaves out the brightest cell; their IoU is 3/4.
    windows = [[32, 32, 48, 48], [36, 32, 48, 48], [0, 48, 16, 64]]
    split = make_split([(conv_map, windows, [[0, 0, 16, 16]], [0])], ("a",))

    def kept(overlap: float) -> int:
        options = {"random_negatives": 1, "duplicate_overlap": overlap, "rounds": 1}
        made = miner(split, tiny_features(1, (1,)), [0], **options, hard_margin=-1e9, evict_margin=-1e9)
        made.train()
        return len(made.cache)

    assert kept(0.8) == 3
    assert kept(0.7) in (2, 3)  # three only if the random negative was the one that mining thins out


def test_feature_scale_brings_the_mean_norm_to_20(random_split, tiny_features):
    split, features = random_split(images=4), tiny_features(8)
    norms = []
    for i in range(4):
        maps = split.maps(i)
        windows = features.windows(split.proposals(i), (64, 64), maps)
        vectors = features.vectors(maps, windows, np.arange(len(windows.cells)))[windows.group]
        norms += np.linalg.norm(vectors, axis=1).tolist()
    scale = feature_scale(split, features, 20.0, seed=3, workers=1)
    assert scale * np.mean(norms) == pytest.approx(20.0, rel=1e-5)


def test_feature_scale_of_nothing_is_one(make_split, tiny_features):
    nothing = (np.ones((16, 16, 1)), [], [[0, 0, 8, 8]], [0])
    zeros = (np.zeros((16, 16, 1)), [[0, 0, 8, 8]], [], [])
    assert feature_scale(make_split([nothing], ("a",)), tiny_features(1), 20.0, 3, 1) == 1.0
    assert feature_scale(make_split([zeros], ("a",)), tiny_features(1), 20.0, 3, 1) == 1.0


def test_a_class_that_fills_its_images_needs_no_negatives(make_split, tiny_features):
    """Every window overlaps its object: what it learns is to say yes to them, and the other class is as without it."""
    bright, dark = np.ones((16, 16, 1)), np.full((16, 16, 1), 0.1)
    windows, small = [[0, 0, 60, 64], [0, 0, 64, 60]], [[0, 0, 16, 16], [0, 0, 64, 60]]
    full = [(bright, windows, [[0, 0, 64, 64]], [0])]
    split = make_split([*full, (dark, small, [[0, 0, 64, 64], [0, 0, 16, 16]], [0, 1])], ("a", "b"))
    made = miner(make_split(full, ("a", "b")), tiny_features(1), [0])
    made.train()
    index, labels = made.cache.problem(0)
    assert (labels > 0).all() and (made.cache.score[index, 0] > 0.9).all()
    assert miner(split, tiny_features(1), [0, 1]).train().weight.shape == (2, 5)


@pytest.mark.parametrize("solver", ["dual", "liblinear"])
def test_images_without_objects_or_windows_take_part(random_split, make_split, tiny_features, solver):
    rng = np.random.default_rng(0)
    conv_map = rng.random((16, 16, 8))
    windows = [[0, 0, 16, 16], [16, 16, 40, 40], [24, 8, 48, 24]]
    split = make_split(
        [(conv_map, [], [[8, 8, 24, 24]], [0]), (conv_map, windows, [], []), (conv_map, [], [], [])], ("a",)
    )
    svms = miner(split, tiny_features(8), [0], solver=solver, positive_overlap=0.5).train()
    assert np.isfinite(svms.weight).all() and np.abs(svms.weight).max() > 0


@pytest.mark.parametrize("kind", ["max", "align"])
def test_vectors_are_pooled_again_as_they_were(random_split, tiny_features, kind):
    split, features = random_split(images=6), tiny_features(8, kind=kind)
    for i, name in enumerate(split.names):  # edges between cells
        shift = np.random.default_rng(i).uniform(-1, 1, (len(split.proposals(i)), 4)).astype(np.float32)
        split.proposal_store.write(name, np.clip(split.proposals(i) + shift, 0, 64))
    made = miner(split, features, [0, 1])
    made.train()
    index, labels = made.cache.problem(1)
    for place, vector in zip(made.cache.places[index], made._vectors(index)):
        alone = Windows(place["scale"][None], place["window"][None], np.zeros(1, np.int64))
        expected = features.block(split.maps(place["picture"]), alone, np.zeros(1, np.int64))
        np.testing.assert_array_equal(vector, expected[0].half())
    assert made._vectors(index[:0]).shape == (0, features.dimension)
    whole = made.cache.places[index[labels < 0]]["window"] % 1 == 0
    assert whole.all() if kind == "max" else not whole.all(axis=1).any()


def test_a_class_whose_svm_takes_its_objects_for_background_is_named(make_split, tiny_features):
    # Objects of `lost` look like everything else; those of `seen` are bright.
    boxes, proposals = [[0, 0, 16, 16], [32, 32, 48, 48]], [[x, 48, x + 8, 60] for x in range(0, 56, 4)]
    conv_map = np.ones((16, 16, 2))
    conv_map[8:12, 8:12, 1] = 5
    split, lines = make_split([(conv_map, proposals, boxes, [0, 1])] * 4, ("lost", "seen")), []
    Miner(split, tiny_features(2), [0, 1], SvmSettings(**SETTINGS), 1.0, workers=1, log=lines.append).train()
    assert [line.split(":")[0].strip() for line in lines if "background" in line] == ["lost"]


def test_a_window_takes_24_bytes():
    assert PLACE.itemsize == 24


def test_the_memory_at_hand_changes_nothing(random_split, tiny_features, monkeypatch):
    split, features = random_split(images=20), tiny_features(8)
    expected, sizes = miner(split, features, [0, 1, 2]).train(), []
    vectors = Miner._vectors
    monkeypatch.setattr(Miner, "_vectors", lambda self, rows: sizes.append(len(rows)) or vectors(self, rows))
    for memory_gb, parts in ((1e-9, 3), (1.0, 1)):
        sizes.clear()
        found = miner(split, features, [0, 1, 2], memory_gb=memory_gb).train()
        assert len(sizes) == 6 * parts  # six fits
        np.testing.assert_array_equal(found.weight, expected.weight)
        np.testing.assert_array_equal(found.bias, expected.bias)


def test_an_interrupted_training_goes_on_to_the_same_svms(random_split, tiny_features, tmp_path):
    split, checkpoint = random_split(images=20), tmp_path / "svm.checkpoint"
    lines = []

    def miner(log=lines.append) -> Miner:
        return Miner(split, tiny_features(8), [0, 1], SvmSettings(**SETTINGS), 1.0, workers=1, log=log)

    whole = miner().train(checkpoint, "key")
    fits = len(lines)

    def interrupt(text: str) -> None:
        lines.append(text)
        if len(lines) == fits + 4:
            raise KeyboardInterrupt

    checkpoint.unlink()
    with pytest.raises(KeyboardInterrupt):
        miner(interrupt).train(checkpoint, "key")
    lines.clear()
    resumed = miner().train(checkpoint, "key")
    assert 0 < len(lines) < fits  # only what was left
    np.testing.assert_array_equal(resumed.weight, whole.weight)
    np.testing.assert_array_equal(resumed.bias, whole.bias)
    lines.clear()
    miner().train(checkpoint, "of other settings")
    assert len(lines) == fits
