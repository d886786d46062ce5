"""The bank of vectors beside a model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sppdet.config.settings import BoxRegressionSettings, CalibrationSettings, SvmSettings
from sppdet.detection.linear_layers import LinearSVMs
from sppdet.features.feature_split import MapSplit
from sppdet.ops.coded_maps import encode_map
from sppdet.training.bank import BANK_FILE, Bank, StoredVectors, bank_origin, choose_windows, store_vectors
from sppdet.training.locations import pool_locations
from sppdet.training.mining import Miner
from sppdet.utils.execution import Execution

EXECUTION = Execution(seed=3, workers=1)


class CodedSplit(MapSplit):
    """A split whose maps are rounded to codes."""

    def maps(self, i: int) -> list:
        return [encode_map(feature_map) for feature_map in super().maps(i)]


def chosen(split, features, limit: int = 60):
    """Return the windows that a bank of three classes holds, and their labels."""
    weight = np.zeros((3, features.dimension), np.float32)
    weight[np.arange(3), -8 + np.arange(3)] = 1.0
    svms = LinearSVMs(weight, np.full(3, -3, np.float32))
    settings = SvmSettings(positive_overlap=0.7, random_negatives=10)
    miner = Miner(split, features, range(3), settings, 1.0, EXECUTION)
    return choose_windows(split, svms, miner, limit, EXECUTION.seed)


def make_bank(labels: np.ndarray, limit: int = 4000, dimension: int = 5) -> Bank:
    numbers = np.random.default_rng(0).normal(size=(len(labels), dimension)).astype(np.float16)
    stored = StoredVectors(numbers, np.zeros((0, 2, 0), np.float32), np.zeros(len(labels), np.int32))
    classes = tuple("abcdefgh"[: labels.shape[1]])
    settings = SvmSettings(), BoxRegressionSettings(), CalibrationSettings()
    return Bank(classes, stored, labels.astype(np.int8), limit, "key", (1.5, 2.5), *settings, 3, "origin")


def test_windows_are_positives_hard_negatives_and_random_ones(random_split, tiny_features):
    split, features = random_split(), tiny_features(8)
    locations, labels = chosen(split, features)
    assert len(locations) == len(labels) <= 60
    positives = (labels > 0).any(axis=1)
    assert positives.sum() <= 24
    assert ((labels > 0).sum(axis=0) > 0).all()
    assert ((labels > 0).sum(axis=1) <= 1).all(), "a window is the positive of one class"
    again, _ = chosen(split, features)
    assert np.array_equal(again, locations), "the draw is seeded"


@pytest.mark.parametrize("levels", [(2, 1), (3,)])
def test_codes_are_decoded_to_the_vectors_of_training(random_split, tiny_features, levels):
    plain = random_split()
    fields = {name: getattr(plain, name) for name in plain.__dataclass_fields__}
    split = CodedSplit(**fields)
    features = tiny_features(8, levels, map_type="uint8", layer_channels=(3, 5), layer_weights=(0.6, 1.0))
    locations, _ = chosen(split, features)
    stored = store_vectors(split, features, locations, EXECUTION)
    assert stored.numbers.dtype == np.uint8
    expected = pool_locations(split, features, locations, 1)
    np.testing.assert_allclose(stored.decoded(features), expected, rtol=1e-3, atol=1e-3)
    assert (stored.decoded(features) == expected).mean() > 0.99, "but for roundings of the last bit"
    some = np.arange(0, len(stored), 3)
    assert np.array_equal(stored[some].decoded(features), stored.decoded(features)[some])
    twice = stored.followed_by(stored[some]).decoded(features)
    assert np.array_equal(twice[len(stored) :], stored.decoded(features)[some])


def test_vectors_of_other_maps_are_stored_in_half_precision(random_split, tiny_features):
    split, features = random_split(), tiny_features(8)
    locations, _ = chosen(split, features)
    stored = store_vectors(split, features, locations, EXECUTION)
    assert np.array_equal(stored.decoded(features), pool_locations(split, features, locations, 1))


def test_a_bank_is_read_as_it_was_written(tmp_path):
    bank = make_bank(np.array([[1, -1], [-1, 1], [0, -1]]))
    bank.save(tmp_path / BANK_FILE)
    assert bank_origin(tmp_path) == "origin"
    read = Bank.load(tmp_path)
    assert np.array_equal(read.vectors.numbers, bank.vectors.numbers)
    assert np.array_equal(read.labels, bank.labels)
    names = [name for name in bank.__dataclass_fields__ if name not in ("vectors", "labels")]
    assert [getattr(read, name) for name in names] == [getattr(bank, name) for name in names]
    content = (tmp_path / BANK_FILE).read_bytes()
    for _ in range(5):
        bank.save(tmp_path / BANK_FILE)
        assert (tmp_path / BANK_FILE).read_bytes() == content


def test_a_full_bank_keeps_a_share_of_every_class():
    labels = np.full((100, 2), -1)
    labels[:40, 0], labels[40:45, 1] = 1, 1
    bank = make_bank(labels, limit=50)
    new = StoredVectors(bank.vectors.numbers[:30], bank.vectors.tables, bank.vectors.table[:30])
    of_new = np.tile([0, 0, 1], (30, 1))
    grown = bank.with_rows(new, of_new, ["a", "b", "c"])
    assert len(grown) == 50
    assert ((grown.labels > 0).sum(axis=0)).tolist() == [8, 5, 7], "20 positives: all 5 of b, and the rest in halves"
    assert grown.classes == ("a", "b", "c")
    assert grown.origin == ""


def test_old_vectors_are_background_of_a_new_class():
    bank = make_bank(np.array([[1, -1], [-1, 1]]))
    grown = bank.with_rows(bank.vectors[np.array([0])], np.array([[0, 0, 1]]), ["a", "b", "c"])
    assert grown.labels.tolist() == [[1, -1, -1], [-1, 1, -1], [0, 0, 1]]


def test_positives_of_a_removed_class_stay_as_background():
    bank = make_bank(np.array([[1, -1], [-1, 1]])).without(["a"])
    assert bank.classes == ("b",)
    assert bank.labels.tolist() == [[-1], [1]]
    assert replace(bank, origin="x").origin == "x"
