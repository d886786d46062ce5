"""R-CNN's features (arXiv 1311.2524, section 2): each window is warped and goes through the trunk on its own.

An image's list of window vectors takes the place of its conv maps: what finds, pools and multiplies the windows
of conv maps (:mod:`sppdet.features.window_features`) is asked the same, and answers by looking a window up.

Names: N windows, R of them stored, D features of the pooled vector.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import ClassVar

import numpy as np
import torch
from torch.nn import functional

from sppdet.features.warp import Crop
from sppdet.features.window_features import WindowFeatures, Windows
from sppdet.networks import Backbone, normalise
from sppdet.ops import bins
from sppdet.utils import in_threads, thread_count

# Crops that go through the trunk together: on a processor few, whose maps stay in its caches; 32 take 1.3 times as
# long as four times 8 (SqueezeNet on an EPYC of the 4th generation).
_BATCHES = {"cpu": 8, "cuda": 128}
_FLOAT16_MAX = torch.finfo(torch.float16).max


@dataclass(frozen=True, eq=False)
class CropVectors:
    """The windows of one image and their pooled vectors: float32 ``(R, 4)`` boxes and float16 ``(R, D)``."""

    boxes: np.ndarray
    vectors: np.ndarray

    def rows(self, boxes: np.ndarray) -> np.ndarray:
        """``(N,)`` where each of ``boxes`` ``(N, 4)`` is; of equal ones the first."""
        known = {box.tobytes(): row for row, box in reversed([*enumerate(self.boxes)])}
        return np.array([known[box.tobytes()] for box in boxes.astype(np.float32, copy=False)], np.int64)


@dataclass(frozen=True)
class CropFeatures(WindowFeatures):
    """How windows become pooled vectors: cropped, warped, and each crop's whole conv map pooled at ``levels``."""

    channels: int
    crop: Crop
    levels: tuple[int, ...]

    needs_windows: ClassVar[bool] = True

    @property
    def pooled_dimension(self) -> int:
        return self.channels * bins(self.levels)

    def description(self) -> dict:
        return {"crop": asdict(self.crop), "levels": list(self.levels)}

    def read(self, backbone: Backbone, image: np.ndarray, boxes: np.ndarray) -> CropVectors:
        return CropVectors(boxes, self.compute(backbone, image, boxes))

    def compute(self, backbone: Backbone, image: np.ndarray, boxes: np.ndarray, batch: int | None = None) -> np.ndarray:
        """Float16 ``(N, D)`` pooled vectors of the windows ``(N, 4)`` of an RGB uint8 image, ``batch`` at a time."""
        batch = batch or _BATCHES[backbone.device.type]
        normalised, starts = normalise(image), range(0, len(boxes), batch)
        found = torch.empty((len(boxes), self.pooled_dimension), dtype=torch.float16)

        def warp(start: int) -> tuple[int, torch.Tensor]:
            return start, _channels_first(self.crop.pixels(normalised, boxes[start : start + batch]))

        for start, crops in in_threads(warp, starts, thread_count()):  # ahead of the network
            pooled = self.pool(backbone.run(crops.to(backbone.device)))
            found[start : start + batch] = pooled.float().clamp(-_FLOAT16_MAX, _FLOAT16_MAX)
        return found.numpy()

    def windows(self, boxes: np.ndarray, size: tuple[int, int], maps: CropVectors) -> Windows:
        """Boxes ``(N, 4)`` among those of ``maps``, as cells of a map one cell high that holds a vector in each."""
        rows, group = np.unique(maps.rows(boxes), return_inverse=True)
        cells = np.stack([rows, np.zeros_like(rows), rows + 1, np.ones_like(rows)], axis=1)
        return Windows(np.zeros(len(rows), np.int64), cells.astype(np.int32), group.reshape(-1))

    def block(self, maps: CropVectors, windows: Windows, rows: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(maps.vectors[windows.cells[rows, 0].astype(np.int64)]).float()

    # What training the trunk asks

    def trunk_input(
        self, backbone: Backbone, image: np.ndarray, boxes: np.ndarray, scale: int
    ) -> tuple[torch.Tensor, float]:
        """What the trunk sees of windows ``(N, 4)``: float32 ``(N, 3, size, size)``; there is but one scale."""
        return _channels_first(self.crop.pixels(normalise(image), boxes)), 1.0

    def pool(self, maps: torch.Tensor, *_) -> torch.Tensor:
        """The trunk's maps of N crops ``(N, C, H, W)`` -> their vectors ``(N, D)``, differentiable."""
        pooled = [functional.adaptive_max_pool2d(maps, n).flatten(2) for n in self.levels]
        return torch.cat(pooled, dim=2).transpose(1, 2).flatten(1)


def _channels_first(crops: np.ndarray) -> torch.Tensor:
    """``(N, S, S, 3)`` as ``(N, 3, S, S)``, left where it is: in memory the channels stay last."""
    return torch.from_numpy(crops).permute(0, 3, 1, 2)
