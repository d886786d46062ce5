"""The last layers that the stages' files make: one class upon the other, joint boxes for the vectors at hand."""

from __future__ import annotations

import numpy as np
import pytest

from sppdet.features.crop_features import CropFeatures
from sppdet.features.warp import Crop
from sppdet.networks.fc_head import Head
from sppdet.training.cached_result import Key, finish
from sppdet.training.stage_files import StageFiles

KEY = Key.of([], [])
UNITS, POOLED = 3, 8  # of fc7, and of the pooled vector: two channels at level 2


def test_files_of_long_names_differ_and_are_short_enough(tmp_path):
    made = StageFiles(tmp_path, ["свет" * 20 + "а", "свет" * 20 + "б", "c" * 300])
    names = [made.of_class("svm", k).name for k in range(3)]
    assert len(set(names)) == 3 and max(map(len, names)) < 200


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def head():
    return Head(POOLED, UNITS, "pool5+fc7", balance=2.5)


@pytest.fixture
def learned(tmp_path, rng):
    """Two classes, of which the end-to-end training knew the second alone, and a third that is no longer asked for."""
    made = StageFiles(tmp_path, ["a class / 1", "cat"])
    for k in range(2):
        finish(made.of_class("svm", k), KEY, {"weight": rng.normal(size=POOLED), "bias": np.full(1, k)})
        finish(made.of_class("bbox", k), KEY, arrays(rng, weight=(4, POOLED + UNITS), bias=(4,)))
    layers = arrays(rng, **{"move.weight": (2 * 4, UNITS), "move.bias": (2 * 4,)})
    layers |= arrays(rng, **{"classify.weight": (3, UNITS), "classify.bias": (3,)})
    finish(made.end_to_end, KEY, layers, classes=["gone", "cat"])
    return made


def arrays(rng, **shapes) -> dict[str, np.ndarray]:
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def seen(head: Head) -> CropFeatures:
    """What the classifier sees with this head."""
    return CropFeatures(channels=2, crop=Crop("warp", 32, 0), levels=(2,)).under(head)


def test_classes_lie_in_their_order_whatever_they_are_called(learned):
    svms = learned.svms()
    assert svms.weight.shape == (2, POOLED) and svms.bias.tolist() == [0, 1]
    assert learned.of_class("svm", 0).parent == learned.folder / "svm"


def test_a_softmax_has_the_background_too(learned):
    assert learned.softmax().weight.shape == (3, UNITS)


def test_joint_boxes_move_by_fc7_wherever_it_stands_in_the_vector(learned, head, rng):
    pooled, fc7 = rng.normal(size=POOLED), rng.normal(size=UNITS)
    concat_pooled = learned.regressors("joint", seen(head), head)
    alone = Head(POOLED, UNITS, "fc7")
    plain = learned.regressors("joint", seen(alone), alone)
    assert concat_pooled.of_head and plain.of_head
    vector = np.concatenate([pooled, head.balance * fc7])
    np.testing.assert_allclose(
        concat_pooled.weight @ vector + concat_pooled.bias, plain.weight @ fc7 + plain.bias, rtol=1e-4
    )


def test_shifts_are_the_mean_of_both_kinds_where_both_were_learned(learned, head):
    ridge, joint, both = (learned.regressors(kind, seen(head), head) for kind in ("ridge", "joint", "ridge+joint"))
    assert ridge.of_head and both.of_head
    np.testing.assert_array_equal(both.weight[0], ridge.weight[0])  # the class that came later
    for name in ("weight", "bias"):
        cat = getattr(ridge, name)[1], getattr(joint, name)[1]
        np.testing.assert_allclose(getattr(both, name)[1], (cat[0] + cat[1]) / 2, rtol=1e-6)
