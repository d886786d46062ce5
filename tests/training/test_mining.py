"""Hard-negative mining: what the sample cache keeps, what is mined, and that classes do not depend on each other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from device import DEVICE
from safetensors import safe_open

from sppdet.config.settings import SvmSettings
from sppdet.detection.linear_layers import LinearSVMs
from sppdet.features.feature_split import map_name
from sppdet.networks.fc_head import Head
from sppdet.ops.products import Products
from sppdet.training import mining, svm
from sppdet.training.locations import pool_locations
from sppdet.training.mining import Miner
from sppdet.utils.execution import Checkpoint, Execution

SETTINGS = {"C": 0.1, "random_negatives": 30, "max_negatives": 40, "hard_per_image": 6}


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


@pytest.mark.parametrize("layer", [None, "fc6"])
def test_on_a_device_the_same_negatives_are_mined(random_split, tiny_features, layer):
    """The path of GPUs, here on the CPU: pooling, fc layers and products by torch."""
    split, features = random_split(images=20), tiny_features(8)
    if layer:
        torch.manual_seed(3)
        features = features.under(Head(features.pooled_dimension, 32, layer).eval())
    compiled, there = (miner(split, each, [0, 1, 2]) for each in (features, replace(features, device=DEVICE)))
    svms, of_device = compiled.train(), there.train()
    np.testing.assert_allclose(of_device.weight, svms.weight, atol=1e-4)
    for k in range(3):
        np.testing.assert_array_equal(there.windows(k).locations, compiled.windows(k).locations)


def test_memory_is_bounded_and_no_row_comes_twice(random_split, tiny_features, monkeypatch):
    split, features = random_split(images=20), tiny_features(8)
    made = miner(split, features, [0, 1, 2], max_negatives=10, hard_margin=-1e9, evict_margin=-1e9)
    sizes, fit = [], made._fit
    monkeypatch.setattr(made, "_fit", lambda problem: sizes.append(len(made.cache)) or fit(problem))
    svms = made.train()
    assert svms.weight.shape == (3, 40) and svms.weight.dtype == svms.bias.dtype == np.float32
    # After a trim a class holds up to a quarter more than its limit; random negatives come before the first one.
    assert len(sizes) == 6 and max(sizes[1:]) <= 3 * (10 * 5 // 4)
    for k in range(3):
        index, _ = made.cache.problem(k)
        assert len(index) == len(set(index.tolist()))
        assert (index >= made.cache.positives).sum() <= 12


def test_the_last_fit_alone_has_the_tolerance_of_the_settings(random_split, tiny_features, monkeypatch):
    made = miner(random_split(images=20), tiny_features(8), [0], rounds=4, tolerance=0.02)
    tolerances, fit = [], made._fit
    monkeypatch.setattr(made, "_fit", lambda problem: tolerances.append(problem.tolerance) or fit(problem))
    made.train()
    assert tolerances == pytest.approx([0.2] * 4 + [0.02])


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
    negatives = made.cache.locations[index[labels < 0]]
    brightest = pool_locations(planted, made.features, negatives, 1).reshape(-1, 5, 4)[:, -1]
    assert not ((brightest[:, 0] > 0.5) & (brightest[:, 1] < 0.5)).any()  # all so bright, but for the planted window
    assert ((brightest[:, 0] > 0.5) & (brightest[:, 1] > 0.5)).sum() == 1


def test_where_a_class_was_not_looked_for_no_candidate_of_a_bank_is_its_negative(random_split, tiny_features):
    split, features = random_split(images=4), tiny_features(8)
    samples = list(split.dataset.samples)
    samples[0] = replace(samples[0], looked_for=np.array([True, False, True]))
    partly = replace(split, dataset=replace(split.dataset, samples=tuple(samples)))
    svms = LinearSVMs(np.zeros((3, features.dimension), np.float32), np.zeros(3, np.float32))

    def labels(images) -> np.ndarray:
        (candidates,) = miner(images, features, [0, 1, 2]).candidates([0], svms, 100)
        return candidates[1]

    every = labels(split)
    assert (every[:, 1] < 0).any()
    np.testing.assert_array_equal(labels(partly)[:, 1], np.maximum(every[:, 1], 0))


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
    vectors = pool_locations(split, made.features, made.cache.locations[index], 1)
    expected = svm.fit(vectors, np.arange(4), labels, replace(made.problem, tolerance=1e-6))
    np.testing.assert_allclose(svms.weight[0], expected.weight, atol=0.01)
    np.testing.assert_allclose(svms.bias[0], expected.intercept, atol=0.02)


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
    monkeypatch.setattr(mining, "pool_locations", lambda *given: sizes.append(len(given[2])) or pool_locations(*given))
    # Where all classes fit into memory together, vectors stay from fit to fit.
    for memory_gb, groups in ((1e-9, 3), (1.0, 0)):
        sizes.clear()
        found = miner(split, features, [0, 1, 2], memory_gb=memory_gb).train()
        assert len(sizes) == 6 * groups  # of each of six fits
        np.testing.assert_array_equal(found.weight, expected.weight)
        np.testing.assert_array_equal(found.bias, expected.bias)


@pytest.mark.parametrize("solver", ["dual", "liblinear"])
def test_what_is_sent_elsewhere_gives_the_same_svms_and_windows(random_split, tiny_features, solver, request):
    split, features, settings = random_split(images=20), tiny_features(8), {"solver": solver, "positive_overlap": 0.6}
    here = miner(split, features, [0, 2, 1], **settings)
    expected = here.train()
    sent = request.getfixturevalue("elsewhere")
    there = miner(split, features, [0, 2, 1], **settings)
    svms = there.train()
    assert sent.count(3) >= 6, "each class of each fit"
    np.testing.assert_array_equal(svms.weight, expected.weight)
    np.testing.assert_array_equal(svms.bias, expected.bias)
    for name, values in here.cache.state().items():
        np.testing.assert_array_equal(there.cache.state()[name], values)
    for of_class, expected_of_class in zip(there.candidates([3, 1], svms, 9), here.candidates([3, 1], svms, 9)):
        for values, expected_values in zip(of_class, expected_of_class):
            np.testing.assert_array_equal(values, expected_values)


def test_after_fc_layers_classes_are_fitted_here(random_split, tiny_features, elsewhere):
    split, pooled = random_split(images=6), tiny_features(8)
    features = pooled.under(Head(pooled.pooled_dimension, 16, "fc6").eval())
    miner(split, features, [0, 1, 2], rounds=1).train()
    assert elsewhere == [6, 6]  # the windows of the first fit and one round of mining, but no classes


class TestCheckpoint:
    """An interrupted training resumes after its last fit and ends at the same SVMs."""

    @pytest.fixture
    def fits(self, monkeypatch) -> list[int]:
        """The fits that were done; the list may be emptied."""
        fits, fit = [], Miner._fit
        monkeypatch.setattr(Miner, "_fit", lambda self, problem: fits.append(len(fits)) or fit(self, problem))
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


def test_hard_negatives_are_looked_for_in_the_images_but_not_in_their_mirror_images(
    random_split, tiny_features, monkeypatch
):
    split, mined = random_split(images=8), []
    both = split.with_mirror_images()
    for image, mirrored in zip(split.names, both.names[8:]):
        feature_map = split.map_store.read(map_name(split.features.scales[0], image))
        split.map_store.write(map_name(split.features.scales[0], mirrored), np.ascontiguousarray(feature_map[:, ::-1]))
    monkeypatch.setattr(Miner, "_mine", lambda self, images, fitted: mined.extend(images.tolist()))
    training = miner(both, tiny_features(8), [0, 1])
    training.train()
    assert sorted(mined) == [*range(8)]
    positives = training.cache.locations[: training.cache.positives]
    assert set(positives["image"]) - set(range(8))  # the mirror images have objects to learn from
