"""SPP-net's window features: bins of the image's feature maps, pooled at every level of a pyramid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from sppdet.config import PoolingSettings, RegionSettings
from sppdet.features import WindowFeatures, Windows
from sppdet.features.regions import choose_scales, locate, project, scale_factor
from sppdet.networks import Backbone, CellGrid
from sppdet.ops import average_pool, average_pool_batch, bins, pyramid_pool, pyramid_pool_batch, unique_windows


@dataclass(frozen=True)
class PyramidFeatures(WindowFeatures):
    """How windows become pooled vectors; see :mod:`sppdet.features.regions`, :mod:`sppdet.ops.pooling`, :mod:`sppdet.ops.averaging`.

    ``kind`` is what a bin takes: ``max`` or ``average`` of its whole cells, or ``align``, RoIAlign's average of points
    of the window as it is. ``shrink`` is of whole cells only, ``samples`` of ``align``.
    """

    grid: CellGrid
    channels: int
    scales: tuple[int, ...]
    max_side: int
    target: int
    shrink: float
    levels: tuple[int, ...]
    kind: str = "max"
    samples: int = 0

    needs_windows: ClassVar[bool] = False

    @classmethod
    def create(cls, backbone: Backbone, regions: RegionSettings, pooling: PoolingSettings) -> PyramidFeatures:
        """What a configuration says, on a backbone's maps."""
        return cls(
            grid=backbone.grid,
            channels=backbone.channels,
            scales=tuple(regions.scales),
            max_side=regions.max_side,
            target=regions.target,
            shrink=regions.shrink,
            levels=tuple(pooling.levels),
            kind=pooling.kind,
            samples=pooling.samples,
            half=backbone.bfloat16_on_cpu,
        )

    @property
    def pooled_dimension(self) -> int:
        return self.channels * bins(self.levels)

    def description(self) -> dict:
        # Older models lack the last two.
        names = ("scales", "max_side", "target", "shrink", "levels", "kind", "samples")
        return {name: getattr(self, name) for name in names}

    def read(self, backbone: Backbone, image: np.ndarray, boxes: np.ndarray | None = None) -> list[np.ndarray]:
        """The conv maps of an RGB uint8 image, one a scale: float32 ``(H, W, C)``."""
        return [backbone(image, factor) for factor in self.factors(image.shape[1], image.shape[0])]

    def factors(self, width: int, height: int) -> np.ndarray:
        """``(S,)`` enlargement of an image at each scale."""
        return np.array([scale_factor(width, height, scale, self.max_side) for scale in self.scales])

    def windows(self, boxes: np.ndarray, size: tuple[int, int], maps: Sequence[np.ndarray]) -> Windows:
        """Boxes ``(N, 4)`` of an image of ``(width, height)`` on its S conv maps."""
        factors = self.factors(*size)
        scales = choose_scales(boxes, factors, self.target)
        cells = np.zeros((len(boxes), 4), np.float32 if self.kind == "align" else np.int32)
        for s, (factor, conv_map) in enumerate(zip(factors, maps)):
            chosen = scales == s
            cells[chosen] = self.place(boxes[chosen], size, factor, (conv_map.shape[1], conv_map.shape[0]))
        if self.kind == "align":
            return Windows(scales, cells, np.arange(len(boxes)))
        first, group = unique_windows(cells, scales)
        return Windows(scales[first], cells[first], group)

    def place(self, boxes: np.ndarray, size: tuple[int, int], factor: float, map_size: tuple[int, int]) -> np.ndarray:
        """Boxes ``(N, 4)`` on a map of ``(width, height)`` cells: int32 half-open cells, or float32 edges in cells."""
        if self.kind == "align":
            return locate(boxes, size, factor, self.grid, map_size)
        return project(boxes, size, factor, self.grid, map_size, self.shrink)

    @property
    def _samples(self) -> int | None:
        return self.samples if self.kind == "align" else None

    def halved(self, maps: Sequence[np.ndarray]) -> list[np.ndarray]:
        """As int16 of :func:`sppdet.pooling.pyramid_pool`, where bins are maxima and nothing is negative."""
        if not self.half or self.kind != "max":
            return maps
        return [m if m.min(initial=0) < 0 else torch.from_numpy(m).bfloat16().view(torch.int16).numpy() for m in maps]

    def block(self, maps: Sequence[np.ndarray], windows: Windows, rows: np.ndarray) -> torch.Tensor:
        conv_map, cells = maps[windows.scales[rows[0]]], windows.cells[rows]
        if self.kind == "max":
            pooled = torch.from_numpy(pyramid_pool(conv_map, cells, self.levels))
        else:
            pooled = torch.from_numpy(average_pool(conv_map, cells, self.levels, self._samples))
        return (pooled.view(torch.bfloat16) if conv_map.dtype == np.int16 else pooled).flatten(1)

    def trunk_input(
        self, backbone: Backbone, image: np.ndarray, boxes: np.ndarray, scale: int
    ) -> tuple[torch.Tensor, float]:
        factor = scale_factor(image.shape[1], image.shape[0], scale, self.max_side)
        return backbone.pixels(image, factor), factor

    def pool(self, maps: torch.Tensor, boxes: np.ndarray, size: tuple[int, int], factor: float) -> torch.Tensor:
        """The map ``(1, C, H, W)`` of an image of ``(width, height)`` -> ``(N, D)``."""
        cells = self.place(boxes, size, factor, (maps.shape[3], maps.shape[2]))
        if self.kind == "max":
            return pyramid_pool_batch(maps[0], cells, self.levels).flatten(1)
        return average_pool_batch(maps[0], cells, self.levels, self._samples).flatten(1)
