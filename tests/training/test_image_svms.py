"""SVMs of whole images: they tell which images hold a class, each class by itself."""

from __future__ import annotations

import numpy as np
import pytest

from sppdet.config.settings import SvmSettings
from sppdet.training import image_svms as context
from sppdet.training import svm

SETTINGS = SvmSettings(C=0.1)


@pytest.fixture
def split(make_split):
    """Class a is in every other image, bright in channel 0 somewhere; b is in all of them, c in none."""
    rng = np.random.default_rng(0)
    content = []
    for i in range(16):
        conv_map, cell = np.maximum(rng.normal(size=(16, 16, 4)), 0), rng.integers(0, 15, 2)
        if i % 2:
            conv_map[cell[0], cell[1], 0] = 9
        boxes = [[*(4 * cell), *(4 * cell + 8)], [8, 8, 24, 24]]
        content.append((conv_map, [[0, 0, 8, 8]], boxes[1 - i % 2 :], [0, 1][1 - i % 2 :]))
    return make_split(content, ("a", "b", "c"))


def margins(split, features, svms) -> np.ndarray:
    """``(images, K)``, pooled and multiplied in plain numpy."""
    found = []
    for i in range(len(split)):
        (values,) = split.maps(i)
        bins = [np.array_split(rows, 2, axis=1) for rows in np.array_split(values, 2)]  # level 2 of a map of even sides
        vector = [part.max(axis=(0, 1)) for row in bins for part in row] + [values.max(axis=(0, 1))]
        found.append(np.concatenate(vector) @ svms.weight.T + svms.bias)
    return np.array(found)


def test_an_image_says_yes_to_what_it_holds(split, tiny_features):
    features = tiny_features(4)  # levels 2 and 1
    found = margins(split, features, context.train(split, features, [0, 1, 2], SETTINGS, 1.0, workers=1))
    assert (found[1::2, 0] > 0).all() and (found[::2, 0] < 0).all()
    assert not found[:, 1:].any()  # of what all images hold, or none, nothing is said


def test_the_problem_is_liblinears(random_split, tiny_features):
    split, features = random_split(images=30), tiny_features(8)
    ours = context.train(split, features, [0, 1, 2], SETTINGS, 0.3, workers=1)
    theirs = context.train(split, features, [0, 1, 2], SvmSettings(C=0.1, solver="liblinear"), 0.3, workers=1)
    np.testing.assert_allclose(margins(split, features, ours), margins(split, features, theirs), atol=0.05)


def test_a_class_is_the_same_whichever_are_trained_with_it(random_split, tiny_features):
    split, features = random_split(), tiny_features(8)
    together = context.train(split, features, [0, 1, 2], SETTINGS, 1.0, workers=2)
    for k in range(3):
        alone = context.train(split, features, [k], SETTINGS, 1.0, workers=1)
        np.testing.assert_array_equal(alone.weight[0], together.weight[k])
        np.testing.assert_array_equal(alone.bias[0], together.bias[k])


def test_of_many_images_a_sample_is_learned_from(split, tiny_features, monkeypatch):
    monkeypatch.setattr(context, "_MOST", 7)
    seen = []

    def count(rows, index, labels, problem):
        seen.append((len(rows), len(index), len(labels)))
        return svm.fit(rows, index, labels, problem)

    monkeypatch.setitem(svm.SOLVERS, "dual", count)
    context.train(split, tiny_features(4), [0], SETTINGS, 1.0, workers=1)
    assert seen == [(7, 7, 7)]
