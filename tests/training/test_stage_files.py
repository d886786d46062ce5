"""The last layers from the stages' files: classes stacked in order, joint boxes for the vectors of the classifier."""

from __future__ import annotations

import numpy as np
import pytest

from sppdet.features.crop_features import CropFeatures
from sppdet.features.warp import Crop
from sppdet.networks.fc_head import Head
from sppdet.training.cached_result import Key, write_result
from sppdet.training.stage_files import StageFiles

KEY = Key.of([], [])
UNITS, POOLED = 3, 8  # lengths of fc7 and of the pooled vector: two channels, four bins of level 2


def test_files_of_long_names_differ_and_are_short_enough(tmp_path):
    files = StageFiles(tmp_path, ["свет" * 20 + "а", "свет" * 20 + "б", "c" * 300])
    names = [files.of_class("svm", k).name for k in range(3)]
    assert len(set(names)) == 3 and max(map(len, names)) < 200


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def head() -> Head:
    return Head(POOLED, UNITS, "pool5+fc7", balance=2.5)


@pytest.fixture
def files(tmp_path, rng) -> StageFiles:
    """Two classes; the end-to-end training knew the second and one that the run does not have any more."""
    files = StageFiles(tmp_path, ["a class / 1", "cat"])
    for k in range(2):
        write_result(files.of_class("svm", k), KEY, {"weight": np.full(POOLED, k + 0.5), "bias": np.full(1, k)})
        write_result(files.of_class("bbox", k), KEY, random_arrays(rng, weight=(4, POOLED), bias=(4,)))
    layers = random_arrays(rng, **{"move.weight": (2 * 4, UNITS), "move.bias": (2 * 4,)})
    layers |= random_arrays(rng, **{"classify.weight": (3, UNITS), "classify.bias": (3,)})
    write_result(files.end_to_end, KEY, layers, classes=["gone", "cat"])
    return files


def random_arrays(rng, **shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def features_of(head: Head) -> CropFeatures:
    """Return the features that the classifier sees with this head."""
    return CropFeatures(channels=2, crop=Crop("warp", 32, 0), levels=(2,)).under(head)


def test_classes_are_stacked_in_their_order_whatever_they_are_called(files):
    svms = files.svms()
    np.testing.assert_array_equal(svms.weight, np.repeat([[0.5], [1.5]], POOLED, axis=1))
    assert svms.bias.tolist() == [0, 1]
    assert files.of_class("svm", 0) == files.folder / "svm" / "a class %2F 1.safetensors"


def test_a_softmax_has_a_row_for_the_background(files):
    assert files.softmax().weight.shape == (3, UNITS)


def test_joint_boxes_move_by_fc7_wherever_it_stands_in_the_vector(files, head, rng):
    pooled, fc7 = rng.normal(size=POOLED), rng.normal(size=UNITS)
    side_by_side = files.regressors("joint", features_of(head), head)
    only_fc7 = Head(POOLED, UNITS, "fc7")
    alone = files.regressors("joint", features_of(only_fc7), only_fc7)
    assert side_by_side.of_head and alone.of_head
    vector = np.concatenate([pooled, head.balance * fc7])
    moves = side_by_side.weight @ vector + side_by_side.bias
    np.testing.assert_allclose(moves, alone.weight @ fc7 + alone.bias, rtol=1e-4)


def test_ridge_regression_moves_by_the_pooled_vector_alone(files, head, rng):
    vector, only_pooled = rng.normal(size=POOLED + UNITS), Head(POOLED, UNITS, "fc7")
    beside, alone = (files.regressors("ridge", features_of(each), each) for each in (head, only_pooled))
    assert beside.of_head and not alone.of_head
    np.testing.assert_allclose(beside.weight @ vector + beside.bias, alone.weight @ vector[:POOLED] + alone.bias)


def test_shifts_are_the_mean_of_both_kinds_where_both_were_learned(files, head):
    ridge, joint, both = (files.regressors(kind, features_of(head), head) for kind in ("ridge", "joint", "ridge+joint"))
    assert ridge.of_head and both.of_head
    np.testing.assert_array_equal(both.weight[0], ridge.weight[0])  # the class that was added later
    for name in ("weight", "bias"):
        cat = (getattr(ridge, name)[1] + getattr(joint, name)[1]) / 2
        np.testing.assert_allclose(getattr(both, name)[1], cat, rtol=1e-6)
