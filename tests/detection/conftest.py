"""The detector whose detections can be derived by hand, its feature map, and an image for it."""

from __future__ import annotations

import types
from dataclasses import replace

import numpy as np
import pytest
from detectors import FixedSearch, hand_made_detector, hand_made_map

from sppdet.detection.detector import Detector


@pytest.fixture
def conv_map() -> np.ndarray:
    return hand_made_map()


@pytest.fixture
def by_hand(tiny_features) -> Detector:
    return hand_made_detector(tiny_features)


@pytest.fixture
def camera(by_hand, conv_map) -> types.SimpleNamespace:
    """``model``, the hand-made detector with a network that appends each image that it is run on to ``seen``."""
    seen = []

    def network(image: np.ndarray, factor: float) -> np.ndarray:
        seen.append(image)
        return conv_map

    return types.SimpleNamespace(model=replace(by_hand, backbone=network, search=FixedSearch()), seen=seen)


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
