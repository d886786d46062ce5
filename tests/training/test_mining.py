"""Hard-negative mining: what the sample cache keeps, what is mined, and that classes do not depend on each other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open

from sppdet.config.settings import SvmSettings
from sppdet.features.window_features import Windows
from sppdet.networks.fc_head import Head
from sppdet.ops.products import Products
from sppdet.training import mining, svm
from sppdet.training.mining import LOCATION, Miner, SampleCache, feature_scale
from sppdet.utils.execution import Checkpoint, Execution

SETTINGS = {"C": 0.1, "random_negatives": 30, "max_negatives": 40, "hard_per_image": 6}


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


def miner(split, features, labels, workers=1, memory_gb=2.0, checkpoint=None, **changes) -> Miner:
    settings = SvmSettings(**SETTINGS | changes)
    execution = Execution(workers=workers, memory_gb=memory_gb, checkpoint=checkpoint)
    return Miner(split, features, labels, settings, 1.0, execution)


@pytest.mark.parametrize(
    ("workers", "kind", "near"), [(1, "max", 1.0), (2, "max", 1.0), (2, "align", 1.0), (2, "max", 0.4)]
)
def test_a_class_trained_alone_gets_the_same_svm(random_split, tiny_features, workers, kind, near):
    images = 6 if kind == "align" else 20  # RoIAlign takes many times longer
    split, features = random_split(images=images), tiny_features(8, kind=kind)
    together = miner(split, features, [0, 1, 2], positive_overlap=near).train()
    for k in range(3):
        alone = miner(split, features, [k], workers, positive_overlap=near).train()
        np.testing.assert_array_equal(alone.weight[0], together.weight[k])
        assert alone.bias[0] == together.bias[k]
    pair = miner(split, features, [2, 0], workers, positive_overlap=near).train()
    np.testing.assert_array_equal(pair.weight, together.weight[[2, 0]])


@pytest.mark.parametrize("layer", ["fc6", "pool5+fc7"])
def test_after_fc_layers_it_is_the_same_but_for_the_last_bits(random_split, tiny_features, layer):
    split, pooled = random_split(images=20), tiny_features(8)
    torch.manual_seed(3)
    features = pooled.under(Head(pooled.pooled_dimension, 32, layer).eval())
    together = miner(split, features, [0, 1, 2]).train()
    alone = miner(split, features, [1]).train()
    np.testing.assert_allclose(alone.weight[0], together.weight[1], atol=1e-4)
    assert np.abs(alone.weight).max() > 0.1


def test_memory_is_bounded_and_no_row_comes_twice(random_split, tiny_features, monkeypatch):
    split, features = random_split(images=20), tiny_features(8)
    made = miner(split, features, [0, 1, 2], max_negatives=10, hard_margin=-1e9, evict_margin=-1e9)
    sizes, fit = [], made._fit
    monkeypatch.setattr(made, "_fit", lambda: sizes.append(len(made.cache)) or fit())
    svms = made.train()
    assert svms.weight.shape == (3, 40) and svms.weight.dtype == svms.bias.dtype == np.float32
    # After a trim a class holds up to a quarter more than its limit; random negatives come before the first one.
    assert len(sizes) == 6 and max(sizes[1:]) <= 3 * (10 * 5 // 4)
    for k in range(3):
        index, _ = made.cache.problem(k)
        assert len(index) == len(set(index.tolist()))
        assert (index >= made.cache.positives).sum() <= 12


@pytest.fixture
def planted(make_split):
    """Ten images with a bright object each; in the last one a window that is brighter still but is no object."""
    rng = np.random.default_rng(0)
    content = []
    for i in range(10):
        conv_map = rng.random((16, 16, 4)) * 0.1
        conv_map[2:6, 2:6, 0] = 1.0  # the object
        windows = [[32 + 4 * x, 32 + 4 * y, 44 + 4 * x, 44 + 4 * y] for x in range(3) for y in range(3)]
        if i == 9:
            conv_map[10:14, 2:6, 0] = 1.2
            conv_map[10:14, 2:6, 1] = 1.0  # objects have none of this channel
            windows.append([8, 40, 24, 56])
        windows.append([8, 8, 24, 20])  # IoU 3/4 with the object: never a negative
        content.append((conv_map, windows, [[8, 8, 24, 24]], [0]))
    return make_split(content, ("a",))


def test_a_planted_hard_negative_is_mined(planted, tiny_features):
    features = tiny_features(4)
    hard = np.array([[8, 40, 24, 56], [8, 8, 24, 24]], np.float32)
    maps = planted.maps(9)

    def margins(hard_per_image: int) -> tuple[float, float]:
        svms = miner(planted, features, [0], C=10.0, random_negatives=8, hard_per_image=hard_per_image).train()
        windows = features.windows(hard, (64, 64), maps)
        scores = (features.products(maps, windows, Products(svms.weight))[0] + svms.bias)[windows.group, 0]
        return scores[0], scores[1]

    negative, positive = margins(hard_per_image=0)
    assert negative > 0.5 and positive > 0.5  # nothing like it is among the random negatives
    negative, positive = margins(hard_per_image=100)
    assert negative < -0.9 and positive > 0.9


def test_windows_near_an_object_are_no_negatives(planted, tiny_features):
    made = miner(planted, tiny_features(4), [0], random_negatives=1000, hard_margin=-1e9, evict_margin=-1e9)
    made.train()
    index, labels = made.cache.problem(0)
    brightest = made._vectors(index[labels < 0]).reshape(-1, 5, 4)[:, -1]
    assert not ((brightest[:, 0] > 0.5) & (brightest[:, 1] < 0.5)).any()  # all so bright, but for the planted window
    assert ((brightest[:, 0] > 0.5) & (brightest[:, 1] > 0.5)).sum() == 1


def test_where_a_class_was_not_looked_for_no_window_is_a_negative(planted, tiny_features):
    samples = list(planted.dataset.samples)
    samples[9] = replace(samples[9], looked_for=np.array([False]))
    split = replace(planted, dataset=replace(planted.dataset, samples=tuple(samples)))
    made = miner(split, tiny_features(4), [0], random_negatives=1000, hard_margin=-1e9, evict_margin=-1e9)
    made.train()
    index, labels = made.cache.problem(0)
    locations = made.cache.locations[index]
    assert 9 in locations["image"][labels > 0]  # its object is an object all the same
    assert 9 not in locations["image"][labels < 0] and (labels < 0).sum() > 30


def test_where_a_class_was_not_looked_for_no_candidate_of_a_bank_is_its_negative(random_split, tiny_features):
    split, features = random_split(images=4), tiny_features(8)
    samples = list(split.dataset.samples)
    samples[0] = replace(samples[0], looked_for=np.array([True, False, True]))
    partly = replace(split, dataset=replace(split.dataset, samples=tuple(samples)))
    weights = Products(np.zeros((3, features.dimension), np.float32))

    def labels(images) -> np.ndarray:
        return miner(images, features, [0, 1, 2]).candidates(0, weights, np.zeros(3, np.float32), 100)[1]

    every = labels(split)
    assert (every[:, 1] < 0).any()
    np.testing.assert_array_equal(labels(partly)[:, 1], np.maximum(every[:, 1], 0))


@pytest.mark.parametrize(("overlap", "expected"), [(1.0, []), (0.8, []), (0.7, [[8, 8, 24, 20]])])
def test_windows_that_overlap_an_object_by_enough_are_positives_too(planted, tiny_features, overlap, expected):
    made = miner(planted, tiny_features(4), [0], random_negatives=8, positive_overlap=overlap)
    made.train()
    index, labels = made.cache.problem(0)
    locations = made.cache.locations[index[labels > 0]]
    for image in range(10):
        cells = locations["cells"][locations["image"] == image]
        assert (cells * 4).tolist() == [[8, 8, 24, 24], *expected]


@pytest.mark.parametrize(("per_class", "expected"), [(10000, 20), (7, 7), (0, 1)])
def test_of_windows_near_an_object_a_few_are_drawn_each_cell_once(
    make_split, tiny_features, monkeypatch, per_class, expected
):
    monkeypatch.setattr(mining, "_NEAR_PER_CLASS", per_class)
    windows = [[x, y, 60, 60 + z] for x in range(0, 9, 4) for y in range(0, 13, 4) for z in (0, 4)] * 2
    split = make_split([(np.ones((16, 16, 1)), [*windows, [0, 0, 8, 8]], [[0, 0, 64, 64]], [0])], ("a",))
    made = miner(split, tiny_features(1), [0], positive_overlap=0.5)
    made.train()
    index, labels = made.cache.problem(0)
    cells = made.cache.locations["cells"][index[labels > 0]]
    assert len(cells) == 1 + expected < 1 + len(windows) // 2
    assert len(np.unique(cells[1:], axis=0)) == expected


@pytest.mark.parametrize(("overlap", "negatives"), [(0.8, {(8, 8), (9, 8), (0, 12)}), (0.7, {(8, 8), (0, 12)})])
def test_of_overlapping_hard_negatives_the_hardest_stays(make_split, tiny_features, overlap, negatives):
    conv_map = np.full((16, 16, 1), 0.1)
    conv_map[8:12, 8:12] = 1
    conv_map[8, 8] = 2
    # The second window leaves out the brightest cell; the IoU of the first two is 3/4.
    windows = [[32, 32, 48, 48], [36, 32, 48, 48], [0, 48, 16, 64]]
    split = make_split([(conv_map, windows, [[0, 0, 16, 16]], [0])], ("a",))
    made = miner(
        split, tiny_features(1, (1,)), [0],
        random_negatives=0, duplicate_overlap=overlap, rounds=1, hard_margin=-1e9, evict_margin=-1e9,
    )  # fmt: skip
    made.train()
    index, labels = made.cache.problem(0)
    corners = made.cache.locations["cells"][index[labels < 0], :2]
    assert {(int(x), int(y)) for x, y in corners} == negatives


def test_feature_scale_brings_the_mean_norm_to_20(random_split, tiny_features):
    split, features = random_split(images=4), tiny_features(8)
    norms = []
    for i in range(4):
        maps = split.maps(i)
        windows = features.windows(split.proposals(i), (64, 64), maps)
        vectors = features.vectors(maps, windows, np.arange(len(windows.cells)))[windows.group]
        norms += np.linalg.norm(vectors, axis=1).tolist()
    scale = feature_scale(split, features, 20.0, Execution(workers=1))
    assert scale * np.mean(norms) == pytest.approx(20.0, rel=1e-5)


def test_without_windows_or_with_zeros_the_scale_is_one(make_split, tiny_features):
    nothing = (np.ones((16, 16, 1)), [], [[0, 0, 8, 8]], [0])
    zeros = (np.zeros((16, 16, 1)), [[0, 0, 8, 8]], [], [])
    for image in (nothing, zeros):
        assert feature_scale(make_split([image], ("a",)), tiny_features(1), 20.0, Execution(workers=1)) == 1.0


def test_a_class_whose_objects_fill_their_images_needs_no_negatives(make_split, tiny_features):
    """Every window overlaps its object, so it learns that all are positive; the other class is trained as well."""
    bright, dark = np.ones((16, 16, 1)), np.full((16, 16, 1), 0.1)
    windows, small = [[0, 0, 60, 64], [0, 0, 64, 60]], [[0, 0, 16, 16], [0, 0, 64, 60]]
    full = [(bright, windows, [[0, 0, 64, 64]], [0])]
    split = make_split([*full, (dark, small, [[0, 0, 64, 64], [0, 0, 16, 16]], [0, 1])], ("a", "b"))
    made = miner(make_split(full, ("a", "b")), tiny_features(1), [0])
    made.train()
    index, labels = made.cache.problem(0)
    assert (labels > 0).all() and (made.cache.score[index, 0] > 0.9).all()
    both, alone = (miner(split, tiny_features(1), labels).train() for labels in ([0, 1], [1]))
    np.testing.assert_array_equal(both.weight[1], alone.weight[0])


@pytest.mark.parametrize("solver", ["dual", "liblinear"])
def test_images_without_objects_or_windows_take_part(random_split, make_split, tiny_features, solver):
    rng = np.random.default_rng(0)
    conv_map = rng.random((16, 16, 8))
    windows = [[0, 0, 16, 16], [16, 16, 40, 40], [24, 8, 48, 24]]
    split = make_split(
        [(conv_map, [], [[8, 8, 24, 24]], [0]), (conv_map, windows, [], []), (conv_map, [], [], [])], ("a",)
    )
    made = miner(split, tiny_features(8), [0], solver=solver, positive_overlap=0.5)
    svms = made.train()
    index, labels = made.cache.problem(0)
    assert labels.tolist() == [1, -1, -1, -1]  # the object of the first image, the windows of the second
    expected = svm.fit(made._vectors(index), np.arange(4), labels, replace(made.problem, tolerance=1e-6))
    np.testing.assert_allclose(svms.weight[0], expected.weight, atol=0.01)
    np.testing.assert_allclose(svms.bias[0], expected.intercept, atol=0.02)


@pytest.mark.parametrize("kind", ["max", "align"])
def test_vectors_are_pooled_again_as_they_were(random_split, tiny_features, kind):
    split, features = random_split(images=6), tiny_features(8, kind=kind)
    for i, name in enumerate(split.names):  # edges between cells
        shift = np.random.default_rng(i).uniform(-1, 1, (len(split.proposals(i)), 4)).astype(np.float32)
        split.proposal_store.write(name, np.clip(split.proposals(i) + shift, 0, 64))
    made = miner(split, features, [0, 1])
    made.train()
    index, labels = made.cache.problem(1)
    for place, vector in zip(made.cache.locations[index], made._vectors(index)):
        alone = Windows(place["scale"][None], place["cells"][None], np.zeros(1, np.int64))
        expected = features.block(split.maps(place["image"]), alone, np.zeros(1, np.int64))
        np.testing.assert_array_equal(vector, expected[0].astype(np.float16))
    assert made._vectors(index[:0]).shape == (0, features.dimension)
    whole = made.cache.locations[index[labels < 0]]["cells"] % 1 == 0
    assert whole.all() if kind == "max" else not whole.all(axis=1).any()


def test_a_class_whose_svm_takes_its_objects_for_background_is_named(make_split, tiny_features, log_lines):
    # Objects of `lost` look like everything else; those of `seen` are bright.
    boxes, proposals = [[0, 0, 16, 16], [32, 32, 48, 48]], [[x, 48, x + 8, 60] for x in range(0, 56, 4)]
    conv_map = np.ones((16, 16, 2))
    conv_map[8:12, 8:12, 1] = 5
    split = make_split([(conv_map, proposals, boxes, [0, 1])] * 4, ("lost", "seen"))
    miner(split, tiny_features(2), [0, 1]).train()
    (line,) = [line for line in log_lines if "background" in line]
    assert line.startswith("lost: the SVM takes all objects of its class for background; svm.positive_overlap=0.7")


def test_the_limit_of_memory_changes_nothing(random_split, tiny_features, monkeypatch):
    split, features = random_split(images=20), tiny_features(8)
    expected, sizes = miner(split, features, [0, 1, 2]).train(), []
    vectors = Miner._vectors
    monkeypatch.setattr(Miner, "_vectors", lambda self, rows: sizes.append(len(rows)) or vectors(self, rows))
    for memory_gb, groups in ((1e-9, 3), (1.0, 1)):
        sizes.clear()
        found = miner(split, features, [0, 1, 2], memory_gb=memory_gb).train()
        assert len(sizes) == 6 * groups  # of each of six fits
        np.testing.assert_array_equal(found.weight, expected.weight)
        np.testing.assert_array_equal(found.bias, expected.bias)


class TestCheckpoint:
    """An interrupted training resumes after its last fit and ends at the same SVMs."""

    @pytest.fixture
    def fits(self, monkeypatch) -> list[int]:
        """The fits that were done; the list may be emptied."""
        fits, fit = [], Miner._fit
        monkeypatch.setattr(Miner, "_fit", lambda self: fits.append(len(fits)) or fit(self))
        return fits

    @pytest.fixture
    def interrupted(self, random_split, tiny_features, tmp_path, monkeypatch, fits):
        """``interrupted(key)``: a miner that finds the checkpoint of one that was interrupted in its fourth fit."""
        split, checkpoint = random_split(images=20), Checkpoint(tmp_path / "svm.checkpoint", "key")

        def stop_in_the_fourth(self, images, fitted):
            if len(fits) == 3:
                raise KeyboardInterrupt
            return mine(self, images, fitted)

        mine = Miner._mine
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Miner, "_mine", stop_in_the_fourth)
            miner(split, tiny_features(8), [0, 1], checkpoint=checkpoint).train()
        fits.clear()
        return lambda key: miner(split, tiny_features(8), [0, 1], checkpoint=Checkpoint(checkpoint.path, key))

    @pytest.fixture
    def whole(self, random_split, tiny_features):
        return miner(random_split(images=20), tiny_features(8), [0, 1]).train()

    def test_it_resumes_with_the_fits_that_are_left(self, whole, interrupted, fits):
        fits.clear()
        resumed = interrupted("key").train()
        assert len(fits) == 3  # of six
        np.testing.assert_array_equal(resumed.weight, whole.weight)
        np.testing.assert_array_equal(resumed.bias, whole.bias)

    def test_a_checkpoint_of_another_key_is_not_resumed_from(self, interrupted, fits):
        interrupted("of other settings").train()
        assert len(fits) == 6

    def test_the_names_in_the_file_are_those_of_earlier_versions(self, interrupted):
        with safe_open(interrupted("key").execution.checkpoint.path, "numpy") as stored:
            assert set(stored.keys()) == {
                "weight", "bias", "cache.picture", "cache.scale", "cache.window", "cache.held", "cache.alpha",
                "cache.score", "cache.rank", "cache.positives",
            }  # fmt: skip
            metadata = stored.metadata()
        assert metadata.pop("crc32") and metadata == {"key": "key", "done": "2"}
