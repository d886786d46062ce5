"""A few drawn images with proposals near their objects, for the tests of end-to-end training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sppdet.config.settings import EndToEndSettings
from sppdet.data.voc import read_voc
from sppdet.features.cached_split import open_proposals
from sppdet.features.pyramid_features import PyramidFeatures
from sppdet.features.window_features import WindowFeatures
from sppdet.networks.backbone import Backbone
from sppdet.networks.fc_head import Head
from sppdet.ops import boxes as geometry
from sppdet.training import end_to_end
from sppdet.training.end_to_end_network import EndToEndNetwork
from sppdet.utils.execution import Checkpoint, Execution

QUICK = {"epochs": 1.0, "scales": [96], "units": 16, "windows_per_image": 16, "frozen_stride": 4, "dropout": 0.0}


class FixedWindows:
    """Stands for a selective search whose results are in the cache."""

    def settings(self) -> dict[str, Any]:
        return {}


class Workplace:
    """The images, a narrow backbone of random weights and its features.

    Args:
        root: of the drawn images.
        folder: for the cache and the checkpoint.
    """

    def __init__(self, root: Path, folder: Path):
        self.backbone = Backbone.create("small", "random", "cpu", "float32")
        self.features: WindowFeatures = PyramidFeatures(
            grid=self.backbone.grid, channels=128, scales=(96,), max_side=400, target=64, shrink=0.0, levels=(2, 1)
        )
        self.split = open_proposals(read_voc(root, "trainval"), folder / "cache", FixedWindows())
        rng = np.random.default_rng(0)
        for name, sample in zip(self.split.names, self.split.dataset):
            near = np.repeat(sample.boxes, 12, axis=0)
            near = geometry.clip(near + rng.normal(size=near.shape) * 12, sample.width, sample.height)
            near = near[(near[:, 2:] - near[:, :2] > 4).all(axis=1)]
            self.split.proposal_store.write(name, near.astype(np.float32))
        self.checkpoint = folder / "network.checkpoint"

    def train(
        self, key: str = "key", start: Head | None = None, seed: int = 3, **changes: Any
    ) -> tuple[EndToEndNetwork, float]:
        """Train with quick settings and some changes to them."""
        execution = Execution(seed=seed, checkpoint=Checkpoint(self.checkpoint, key))
        settings = EndToEndSettings(**QUICK | changes)
        return end_to_end.train(self.split, self.backbone, self.features, settings, execution, start)
