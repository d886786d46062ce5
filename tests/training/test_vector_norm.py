"""The factor that brings vectors to a norm."""

from __future__ import annotations

import numpy as np
import pytest

from sppdet.training.vector_norm import feature_scale
from sppdet.utils.execution import Execution


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
