"""Box regression: which windows a class learns from, and that classes do not depend on each other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from device import DEVICE

from sppdet.config.settings import BoxRegressionSettings
from sppdet.ops import boxes as geometry
from sppdet.training import bbox_regression
from sppdet.training.box_fit import NearWindows, fit_class
from sppdet.utils.execution import Execution
from sppdet.utils.progress import Estimate, Progress


@pytest.fixture
def split(make_split):
    """Class a has objects, b has none, c has one without a proposal near it."""
    rng = np.random.default_rng(0)
    content = []
    for i in range(6):
        near = [[8 + 4 * (i % 2), 8, 24, 24], [8, 8, 24, 20]]
        boxes, labels = [[8, 8, 24, 24]], [0]
        if i == 0:
            boxes, labels = [*boxes, [40, 40, 56, 56]], [0, 2]
        content.append((rng.random((16, 16, 3)), [*near, [0, 32, 8, 40]], boxes, labels))
    return make_split(content, ("a", "b", "c"))


def sample_of(split, **settings) -> NearWindows:
    """Return the windows that class 0 learns from."""
    (sample,) = bbox_regression._samples(split, [0], BoxRegressionSettings(**settings), Execution(workers=1))
    return sample


def test_a_class_without_windows_moves_nothing(split, tiny_features):
    regressors = bbox_regression.train(
        split, tiny_features(3), [0, 1], BoxRegressionSettings(ridge=0.1), 1.0, Execution(workers=1)
    )
    assert regressors.weight.shape == (2, 4, 15) and regressors.bias.shape == (2, 4)
    assert regressors.weight.dtype == regressors.bias.dtype == np.float32
    assert np.abs(regressors.weight[0]).max() > 0
    assert not regressors.weight[1].any() and not regressors.bias[1].any()


def test_a_class_that_learns_from_an_object_alone_moves_nothing(split, tiny_features):
    regressors = bbox_regression.train(split, tiny_features(3), [2], BoxRegressionSettings(), 1.0, Execution(workers=1))
    # The target of an object is no shift, and one window leaves nothing but its mean.
    np.testing.assert_allclose(regressors.bias, 0, atol=1e-6)
    np.testing.assert_allclose(regressors.weight, 0, atol=1e-6)


def test_an_image_and_its_mirror_image_are_of_one_file(split):
    sample = sample_of(split.with_mirror_images())
    assert np.unique(np.stack([sample.images, sample.files]), axis=1).tolist() == [[*range(12)], [*range(6)] * 2]


def test_windows_above_the_overlap_have_targets_onto_their_object(split):
    sample = sample_of(split, min_overlap=0.5)
    # From each image the object itself and both windows near it (IoU 3/4, or 1 where a window is the object).
    assert np.bincount(sample.images).tolist() == [3] * 6
    moved = geometry.decode(sample.boxes.astype(np.float32), sample.targets)
    np.testing.assert_allclose(moved, np.tile([[8, 8, 24, 24]], (18, 1)), atol=1e-4)
    # Where a window is the object, that of IoU 3/4 is not nearly as good; the objects themselves never are.
    assert sample.good.tolist() == 3 * [False, True, False, False, True, True]
    strict = sample_of(split, min_overlap=0.75)
    assert len(strict.images) == 9  # an overlap of exactly 0.75 is not above it


def test_the_regressor_of_a_class_does_not_depend_on_the_classes_trained_with_it(split, tiny_features):
    settings = BoxRegressionSettings(ridge=0.1, max_windows=7)
    together = bbox_regression.train(split, tiny_features(3), [0, 1, 2], settings, 1.0, Execution(workers=2))
    for k in range(3):
        alone = bbox_regression.train(split, tiny_features(3), [k], settings, 1.0, Execution(workers=1))
        np.testing.assert_array_equal(alone.weight[0], together.weight[k])
        np.testing.assert_array_equal(alone.bias[0], together.bias[k])


def test_windows_that_are_chosen_elsewhere_are_the_same(split, tiny_features, request):
    settings = BoxRegressionSettings(ridge=0.1, max_windows=7)

    def regressors():
        return bbox_regression.train(split, tiny_features(3), [2, 0], settings, 1.0, Execution(workers=1))

    here, sent = regressors(), request.getfixturevalue("elsewhere")
    np.testing.assert_array_equal(regressors().weight, here.weight)
    assert sent == [6]


def test_more_windows_than_the_limit_are_sampled_in_their_order(split):
    every = sample_of(split, max_windows=18)
    sample = sample_of(split, max_windows=5)
    # Seeded by the run's seed and by the name of the class, "a".
    rows = np.sort(np.random.default_rng([3, ord("a")]).permutation(18)[:5])
    for name in ("images", "boxes", "targets", "files", "good"):
        np.testing.assert_array_equal(getattr(sample, name), getattr(every, name)[rows])


def test_a_class_is_fitted_to_the_vectors_and_targets_of_its_windows(random_split, tiny_features):
    split, features = random_split(images=20), tiny_features(8, (4, 2, 1))
    settings = BoxRegressionSettings(min_overlap=0.3, ridge=1.0)
    regressors = bbox_regression.train(split, features, [2, 0], settings, 0.5, Execution(workers=1))
    sample = sample_of(split, min_overlap=0.3)
    vectors = [
        features.of_boxes(split.maps(i), box[None].astype(np.float32), split.size(i), np.float16)[0]
        for i, box in zip(sample.images, sample.boxes)
    ]
    weight, bias = fit_class(np.array(vectors), sample, ridge=1.0, scale=0.5)
    np.testing.assert_allclose(regressors.weight[1], weight, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(regressors.bias[1], bias, rtol=1e-4, atol=1e-6)


def test_the_limit_of_memory_changes_nothing(split, tiny_features):
    settings, one_class_at_a_time = BoxRegressionSettings(ridge=0.1), Execution(workers=1, memory_gb=1e-9)
    expected = bbox_regression.train(split, tiny_features(3), [0, 1, 2], settings, 1.0, Execution(workers=1))
    regressors = bbox_regression.train(split, tiny_features(3), [0, 1, 2], settings, 1.0, one_class_at_a_time)
    np.testing.assert_array_equal(regressors.weight, expected.weight)
    np.testing.assert_array_equal(regressors.bias, expected.bias)


def test_the_progress_names_the_classes_that_are_fitted(split, tiny_features):
    with Progress({"bbox": Estimate(10)}) as progress:
        progress.begin("bbox")
        bbox_regression.train(split, tiny_features(3), [0, 1, 2], BoxRegressionSettings(), 1.0, Execution(workers=1))
        assert progress._text == "fitting box regressions, 3 of 3"


@pytest.mark.parametrize("kind", ["max", "align"])
def test_on_a_device_the_same_boxes_are_learned(random_split, tiny_features, kind):
    """The path of GPUs, here on the CPU."""
    split, features, settings = random_split(), tiny_features(8, kind=kind), BoxRegressionSettings(ridge=1.0)
    compiled, there = (
        bbox_regression.train(split, each, [0, 1, 2], settings, 1.0, Execution(workers=1))
        for each in (features, replace(features, device=DEVICE))
    )
    assert np.abs(compiled.weight).max() > 0.01
    np.testing.assert_allclose(there.weight, compiled.weight, atol=1e-4)
    np.testing.assert_allclose(there.bias, compiled.bias, atol=1e-4)
