"""A detector whose detections can be derived by hand."""

from __future__ import annotations

import numpy as np

from sppdet.config.settings import DetectionSettings
from sppdet.detection.detector import Detector
from sppdet.detection.linear_layers import LinearSVMs
from sppdet.networks.backbone import Backbone
from sppdet.proposals.search import SelectiveSearch

# Four windows of a 64 x 64 image with 4 pixels per cell.
A, B, C, D = [8, 8, 16, 16], [12, 8, 20, 16], [40, 40, 48, 48], [0, 40, 8, 48]
WINDOWS = np.array([D, B, C, A], np.float32)


def hand_made_map() -> np.ndarray:
    """Return a map whose channel 0 is 3 in window A alone and 2.5 in a cell of A and B; channel 1 is 2 in C."""
    values = np.zeros((16, 16, 2), np.float32)
    values[2, 2, 0], values[3, 3, 0], values[10, 10, 1] = 3, 2.5, 2
    return values


def hand_made_detector(tiny_features) -> Detector:
    """Return a detector whose margin of class k is the highest value of channel k in a window, less 1."""
    return Detector(
        classes=("red", "blue"),
        # Only its precision matters: the maps are made by hand.
        backbone=Backbone.create("small", "random", "cpu", "float32", seed=3),
        features=tiny_features(2, (1,)),
        search=SelectiveSearch(),
        classifier=LinearSVMs(np.eye(2, dtype=np.float32), np.array([-1, -1], np.float32)),
        regressors=None,
        detection=DetectionSettings(nms=0.3, min_margin=-0.5),
    )
