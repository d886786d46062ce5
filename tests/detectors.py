"""Detectors for tests: one whose detections can be derived by hand, and one with random weights."""

from __future__ import annotations

import numpy as np
import torch

from sppdet.config.settings import DetectionSettings
from sppdet.detection.detector import Detector
from sppdet.detection.linear_layers import BoxRegressors, LinearSVMs
from sppdet.features.pyramid_features import PyramidFeatures
from sppdet.networks.backbone import Backbone
from sppdet.networks.fc_head import Head
from sppdet.networks.trunk_output import WHOLE, Cut
from sppdet.proposals.search import SelectiveSearch

# Four windows of a 64 x 64 image, 4 pixels per cell.
A, B, C, D = [8, 8, 16, 16], [12, 8, 20, 16], [40, 40, 48, 48], [0, 40, 8, 48]
WINDOWS = np.array([D, B, C, A], np.float32)


def hand_made_map() -> np.ndarray:
    """Channel 0 is 3 in window A alone, 2.5 in the cells that A and B share; channel 1 is 2 in C."""
    values = np.zeros((16, 16, 2), np.float32)
    values[2, 2, 0], values[3, 3, 0], values[10, 10, 1] = 3, 2.5, 2
    return values


def hand_made_detector(tiny_features, channels: int = 2) -> Detector:
    """Class k scores the highest value of channel k, less 1; to be saved, it needs the 128 channels of its network."""
    return Detector(
        classes=("red", "blue"),
        backbone=Backbone.create("small", "random", "cpu", "float32", seed=3),  # not run: tests give the feature maps
        features=tiny_features(channels, (1,)),
        search=SelectiveSearch(),
        classifier=LinearSVMs(np.eye(2, channels, dtype=np.float32), np.array([-1, -1], np.float32)),
        regressors=None,
        detection=DetectionSettings(nms=0.3, min_margin=-0.5),
    )


class FixedSearch(SelectiveSearch):
    """Proposes the four windows in every image."""

    def __call__(self, image: np.ndarray) -> np.ndarray:
        return WINDOWS


def two_rectangles() -> np.ndarray:
    """An image of 160 x 120 pixels: an orange and a blue rectangle on dark noise."""
    image = np.random.default_rng(0).integers(0, 60, (120, 160, 3), np.uint8)
    image[20:80, 30:90] = [200, 60, 20]
    image[50:100, 100:150] = [20, 160, 220]
    return image


def random_detector(layer: str | None = None, with_regressors: bool = True, cut: Cut = WHOLE, **pooling) -> Detector:
    """A detector of three classes with random weights at two scales; it finds much in `two_rectangles`.

    Args:
        layer: the layer that the classifier sees: None (pooled features), ``fc6``, ``fc7`` or ``pool5+fc7``.
        with_regressors: whether it has box regression.
        cut: where the trunk ends.
        pooling: fields of ``PyramidFeatures``, such as ``kind``.
    """
    rng = np.random.default_rng(0)
    backbone = Backbone.create("small", "random", "cpu", "float32", 3, cut, engine="auto")
    features = PyramidFeatures(
        grid=backbone.grid, channels=backbone.channels, scales=(120, 160), max_side=1000, target=64, shrink=6.5,
        levels=(2, 1), layer_channels=backbone.layer_channels, **pooling,
    )  # fmt: skip
    pooled, head = features.dimension, None
    if layer:
        torch.manual_seed(0)
        head = Head(pooled, 16, layer, 0.5, balance=0.7).eval()
        features = features.under(head)
    weight = rng.normal(size=(3, features.dimension)).astype(np.float32)
    regressors = None
    if with_regressors:
        of_head = features.concat_pooled
        bias = rng.normal(0, 0.1, (3, 4)).astype(np.float32)
        inputs = features.dimension if of_head else pooled
        regressors = BoxRegressors(rng.normal(0, 0.002, (3, 4, inputs)).astype(np.float32), bias, of_head=of_head)
    return Detector(
        classes=("a", "b c", "ü"),
        backbone=backbone,
        features=features,
        search=SelectiveSearch(),
        classifier=LinearSVMs(weight, np.zeros(3, np.float32)),
        regressors=regressors,
        detection=DetectionSettings(nms=0.4, min_margin=-0.2, max_per_class=9, context=0.01),
        head=head,
        image_svms=LinearSVMs(rng.normal(size=weight.shape).astype(np.float32), np.full(3, -2, np.float32)),
    )
