"""R-CNN's features (arXiv 1311.2524, section 2): each window is warped and goes through the trunk on its own.

The vectors of an image's windows take the place of its feature maps: the methods that find, pool and multiply windows
(`sppdet.features.window_features`) look a window up by its box.

Names: N windows, R stored windows, D features of the pooled vector.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from sppdet.config import PoolingSettings, RegionSettings
from sppdet.features.warp import Crop
from sppdet.features.window_features import LayerPyramid, WindowFeatures, Windows
from sppdet.networks import Backbone
from sppdet.utils import in_threads, thread_count

if TYPE_CHECKING:  # detection does not load torch unless it needs it
    import torch

# Crops that go through the trunk together. On a CPU few, whose maps stay in its caches: SqueezeNet takes 1.3 times as
# long for 32 at once as for four times 8.
_BATCHES = {"cpu": 8, "cuda": 128}
_FLOAT16_MAX = float(np.finfo(np.float16).max)


@dataclass(frozen=True, eq=False)
class CropVectors:
    """The windows of one image and their pooled vectors.

    Attributes:
        boxes: float32 ``(R, 4)`` pixel edges.
        vectors: float16 ``(R, D)``.
    """

    boxes: np.ndarray
    vectors: np.ndarray

    def rows(self, boxes: np.ndarray) -> np.ndarray:
        """Return the row ``(N,)`` of each of ``boxes`` ``(N, 4)``; of equal stored boxes the first.

        Raises:
            KeyError: a box that is not stored.

        Examples:
            >>> stored = CropVectors(np.array([[0, 0, 4, 4], [2, 2, 9, 9]], np.float32), np.zeros((2, 8), np.float16))
            >>> stored.rows(np.array([[2, 2, 9, 9]])).tolist()
            [1]
        """
        known = {box.tobytes(): row for row, box in reversed([*enumerate(self.boxes)])}
        return np.array([known[box.tobytes()] for box in boxes.astype(np.float32, copy=False)], np.int64)


@dataclass(frozen=True)
class CropFeatures(WindowFeatures[CropVectors]):
    """How windows become pooled vectors: each is cropped, and the feature map of the crop is pooled as a whole.

    Attributes:
        channels: C of the feature maps.
        crop: how a window becomes a square of pixels.
        levels: bins per side of each level of the pyramid on a crop's feature map, of layers without levels of their
            own.
    """

    channels: int
    crop: Crop
    levels: tuple[int, ...]

    needs_windows: ClassVar[bool] = True

    @classmethod
    def create(cls, backbone: Backbone, regions: RegionSettings, pooling: PoolingSettings) -> CropFeatures:
        """Return the features that a configuration describes, on a backbone's feature maps."""
        return cls(
            channels=backbone.channels,
            crop=Crop(regions.crop, regions.crop_size, regions.context),
            levels=pooling.levels,
            layer_channels=backbone.layer_channels,
            layer_levels=pooling.layer_levels,
            layer_weights=pooling.layer_weights,
        )

    @property
    def pyramids(self) -> list[LayerPyramid]:
        """The pyramid of each layer."""
        return self._pyramids(self.channels, self.levels)

    def read(self, backbone: Backbone, image: np.ndarray, boxes: np.ndarray | None = None) -> CropVectors:
        """Compute the vectors of the windows ``(N, 4)`` of an RGB uint8 image."""
        if boxes is None:
            raise ValueError("crops are read window by window: the boxes must be given")
        return CropVectors(boxes, self.compute(backbone, image, boxes))

    def compute(self, backbone: Backbone, image: np.ndarray, boxes: np.ndarray, batch: int | None = None) -> np.ndarray:
        """Compute the pooled vectors of an image's windows: float16 ``(N, D)``.

        Args:
            image: RGB uint8 ``(H, W, 3)``.
            boxes: ``(N, 4)`` pixel edges.
            batch: windows that go through the trunk together; None takes what suits the device.
        """
        import torch

        batch = batch or _BATCHES[backbone.device.type]
        normalised, starts = backbone.normalisation.normalise(image), range(0, len(boxes), batch)
        vectors = torch.empty((len(boxes), self.pooled_dimension), dtype=torch.float16)

        def warp(start: int) -> tuple[int, torch.Tensor]:
            return start, _channels_first(self.crop.pixels(normalised, boxes[start : start + batch]))

        for start, crops in in_threads(warp, starts, thread_count()):  # ahead of the network
            pooled = self._pool_crops(backbone.run(crops.to(backbone.device)))
            vectors[start : start + batch] = pooled.float().clamp(-_FLOAT16_MAX, _FLOAT16_MAX)
        return vectors.numpy()

    def windows(self, boxes: np.ndarray, size: tuple[int, int], maps: CropVectors) -> Windows:
        """Find boxes ``(N, 4)`` among the stored ones; stored row r is cell r of a map that is one cell high."""
        rows, group = np.unique(maps.rows(boxes), return_inverse=True)
        cells = np.stack([rows, np.zeros_like(rows), rows + 1, np.ones_like(rows)], axis=1)
        return Windows(np.zeros(len(rows), np.int64), cells.astype(np.int32), group.reshape(-1))

    def block(self, maps: CropVectors, windows: Windows, rows: np.ndarray) -> np.ndarray:
        """Return the stored vectors ``(len(rows), D)`` of the windows at ``rows`` as float32."""
        import torch  # converts half precision many times faster than numpy

        return torch.from_numpy(maps.vectors[windows.cells[rows, 0].astype(np.int64)]).float().numpy()

    def trunk_input(
        self, backbone: Backbone, image: np.ndarray, boxes: np.ndarray, scale: int
    ) -> tuple[torch.Tensor, float]:
        """Return the crops ``(N, 3, size, size)`` of windows ``(N, 4)``, float32, and 1: crops have but one scale."""
        normalised = backbone.normalisation.normalise(image)
        return _channels_first(self.crop.pixels(normalised, boxes)), 1.0

    def pool(self, maps: torch.Tensor, boxes: np.ndarray, size: tuple[int, int], factor: float) -> torch.Tensor:
        """Pool the feature maps ``(N, C, H, W)`` of N crops: vectors ``(N, D)``, differentiable."""
        return self._pool_crops(maps)

    def _pool_crops(self, maps: torch.Tensor) -> torch.Tensor:
        import torch
        from torch.nn import functional

        pooled = []
        for channels, levels, weight in self.pyramids:
            bins = [functional.adaptive_max_pool2d(maps[:, channels], n).flatten(2) for n in levels]
            pooled.append(weight * torch.cat(bins, dim=2).transpose(1, 2).flatten(1))
        return torch.cat(pooled, 1)


def _channels_first(crops: np.ndarray) -> torch.Tensor:
    """Return crops ``(N, S, S, 3)`` as a view ``(N, 3, S, S)``: in memory the channels stay last."""
    import torch

    return torch.from_numpy(crops).permute(0, 3, 1, 2)
