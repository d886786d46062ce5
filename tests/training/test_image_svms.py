"""SVMs of whole images: they tell which images hold a class, each class on its own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sppdet.config.settings import SvmSettings
from sppdet.training import image_svms, svm
from sppdet.utils.execution import Execution

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
    """Compute margins ``(images, K)`` in plain numpy."""
    margins = []
    for i in range(len(split)):
        (values,) = split.maps(i)
        bins = [np.array_split(rows, 2, axis=1) for rows in np.array_split(values, 2)]  # level 2 of a map of even sides
        vector = [cells.max(axis=(0, 1)) for row in bins for cells in row] + [values.max(axis=(0, 1))]
        margins.append(np.concatenate(vector) @ svms.weight.T + svms.bias)
    return np.array(margins)


def test_images_that_hold_a_class_have_positive_margins(split, tiny_features):
    features = tiny_features(4)  # levels 2 and 1
    values = margins(split, features, image_svms.train(split, features, [0, 1, 2], SETTINGS, 1.0, Execution(workers=1)))
    assert (values[1::2, 0] > 0).all() and (values[::2, 0] < 0).all()
    assert not values[:, 1:].any()  # a class that all images hold, or none, gives nothing to learn


def test_the_problem_is_that_of_liblinear(random_split, tiny_features):
    split, features = random_split(images=30), tiny_features(8)
    ours = image_svms.train(split, features, [0, 1, 2], SETTINGS, 0.3, Execution(workers=1))
    liblinear = image_svms.train(
        split, features, [0, 1, 2], SvmSettings(C=0.1, solver="liblinear"), 0.3, Execution(workers=1)
    )
    np.testing.assert_allclose(margins(split, features, ours), margins(split, features, liblinear), atol=0.05)


def test_the_svm_of_a_class_does_not_depend_on_the_classes_trained_with_it(random_split, tiny_features):
    split, features = random_split(), tiny_features(8)
    together = image_svms.train(split, features, [0, 1, 2], SETTINGS, 1.0, Execution(workers=2))
    for k in range(3):
        alone = image_svms.train(split, features, [k], SETTINGS, 1.0, Execution(workers=1))
        np.testing.assert_array_equal(alone.weight[0], together.weight[k])
        np.testing.assert_array_equal(alone.bias[0], together.bias[k])


def test_more_images_than_the_limit_are_sampled(split, tiny_features, monkeypatch):
    monkeypatch.setattr(image_svms, "_MAX_IMAGES", 7)
    sizes = []

    def count(rows, index, labels, problem):
        sizes.append((len(rows), len(index), len(labels)))
        return svm.fit(rows, index, labels, problem)

    monkeypatch.setitem(svm.SOLVERS, "dual", count)
    image_svms.train(split, tiny_features(4), [0], SETTINGS, 1.0, Execution(workers=1))
    assert sizes == [(7, 7, 7)]


def test_an_image_with_a_region_that_is_ignored_teaches_nothing(split, tiny_features):
    """It counts as little as one in which the class was not looked for."""
    features, execution = tiny_features(4), Execution(workers=1)
    region, every = np.array([[0, 0, 9, 9]], np.float32), np.array([-1])
    changes = {"ignored": region, "ignored_labels": every}, {"looked_for": np.array([False, True, True])}
    weights = []
    for change in changes:
        samples = (replace(split.dataset[0], **change), *split.dataset.samples[1:])
        changed = replace(split, dataset=replace(split.dataset, samples=samples))
        weights.append(image_svms.train(changed, features, [0], SETTINGS, 1.0, execution).weight)
    np.testing.assert_array_equal(*weights)
    assert not np.array_equal(weights[0], image_svms.train(split, features, [0], SETTINGS, 1.0, execution).weight)
