"""SPP-net's window features: the bins of a window on the image's feature maps, pooled at every level of a pyramid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from sppdet.config import PoolingSettings, RegionSettings
from sppdet.features.regions import choose_scales, locate, project, scale_factor
from sppdet.features.window_features import WindowFeatures, Windows
from sppdet.networks import Backbone, CellGrid
from sppdet.ops import bins, pyramid_pool, pyramid_roi_align, unique_windows
from sppdet.utils import SppdetError

if TYPE_CHECKING:  # detection does not load torch unless it needs it
    import torch

_KINDS = ("max", "align")


@dataclass(frozen=True)
class PyramidFeatures(WindowFeatures[list[np.ndarray]]):
    """How windows become pooled vectors on feature maps.

    See `sppdet.features.regions` for the scale and cells of a window, `sppdet.ops.pooling` and
    `sppdet.ops.roi_align` for its bins.

    Attributes:
        grid: where the backbone's cells lie in its input.
        channels: C of the feature maps.
        scales: pixels of the image's shorter side, S of them.
        max_side: highest number of pixels of the image's longer side.
        target: side in pixels of the square that a window should come closest to at its scale.
        shrink: pixels by which a window's edges move inwards before ``max`` rounds them to cells.
        levels: bins per side of each level.
        kind: ``max``, the maximum of a bin's whole cells, or ``align``, RoIAlign: the mean of samples of the window as
            it is.
        samples: sample points per side of each bin of ``align``; 0 takes as many as the bin is cells long.

    Raises:
        SppdetError: a model of an older version has another kind.
    """

    grid: CellGrid
    channels: int
    scales: tuple[int, ...]
    max_side: int
    target: int
    shrink: float
    levels: tuple[int, ...]
    # Model files of the first versions lack these two.
    kind: str = "max"
    samples: int = 0

    needs_windows: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise SppdetError(
                f"model.json: features.kind '{self.kind}' is not supported any more; train again with pooling.kind=max "
                "or pooling.kind=align"
            )

    @classmethod
    def create(cls, backbone: Backbone, regions: RegionSettings, pooling: PoolingSettings) -> PyramidFeatures:
        """Return the features that a configuration describes, on a backbone's feature maps."""
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
        """Length of a pooled vector, C times the number of bins."""
        return self.channels * bins(self.levels)

    def read(self, backbone: Backbone, image: np.ndarray, boxes: np.ndarray | None = None) -> list[np.ndarray]:
        """Compute the feature maps of an RGB uint8 image, one per scale: float32 ``(H, W, C)``."""
        return [backbone(image, factor) for factor in self.factors(image.shape[1], image.shape[0])]

    def factors(self, width: int, height: int) -> np.ndarray:
        """Return the enlargement ``(S,)`` of an image at each scale."""
        return np.array([scale_factor(width, height, scale, self.max_side) for scale in self.scales])

    def windows(self, boxes: np.ndarray, size: tuple[int, int], maps: list[np.ndarray]) -> Windows:
        """Find boxes on the maps of an image; those of ``max`` with the same cells are one window.

        Args:
            boxes: ``(N, 4)`` pixel edges.
            size: ``(width, height)`` of the image.
            maps: feature maps, one per scale.
        """
        factors = self.factors(*size)
        scales = choose_scales(boxes, factors, self.target)
        cells = np.zeros((len(boxes), 4), np.float32 if self.kind == "align" else np.int32)
        for s, (factor, feature_map) in enumerate(zip(factors, maps)):
            chosen = scales == s
            map_size = (feature_map.shape[1], feature_map.shape[0])
            cells[chosen] = self.to_cells(boxes[chosen], size, factor, map_size)
        if self.kind == "align":
            return Windows(scales, cells, np.arange(len(boxes)))
        first, group = unique_windows(cells, scales)
        return Windows(scales[first], cells[first], group)

    def to_cells(
        self, boxes: np.ndarray, size: tuple[int, int], factor: float, map_size: tuple[int, int]
    ) -> np.ndarray:
        """Return the rectangles of boxes on a feature map.

        Args:
            boxes: ``(N, 4)`` pixel edges.
            size: ``(width, height)`` of the image.
            factor: enlargement of the image.
            map_size: ``(width, height)`` of the map in cells.

        Returns:
            ``(N, 4)`` as ``x1, y1, x2, y2``: int32 half-open cells for ``max``, float32 edges in cells for ``align``.
        """
        if self.kind == "align":
            return locate(boxes, size, factor, self.grid, map_size)
        return project(boxes, size, factor, self.grid, map_size, self.shrink)

    def halved(self, maps: list[np.ndarray]) -> list[np.ndarray]:
        """Return the maps as the int16 that `sppdet.ops.pyramid_pool` takes for bfloat16, where ``half`` is set.

        A map with a negative value stays as it is: as whole numbers only positive values are in order.
        """
        if not self.half or self.kind != "max":
            return maps
        import torch

        return [m if m.min(initial=0) < 0 else torch.from_numpy(m).bfloat16().view(torch.int16).numpy() for m in maps]

    def block(self, maps: list[np.ndarray], windows: Windows, rows: np.ndarray) -> np.ndarray:
        """Return the pooled vectors ``(len(rows), D)`` of the windows at ``rows``, which are read on one map."""
        feature_map, cells = maps[windows.scales[rows[0]]], windows.cells[rows]
        if self.kind == "align":
            import torch

            return self._align(torch.from_numpy(feature_map).permute(2, 0, 1), cells).numpy()
        return pyramid_pool(feature_map, cells, self.levels).reshape(len(cells), -1)

    def _align(self, feature_map: torch.Tensor, edges: np.ndarray) -> torch.Tensor:
        return pyramid_roi_align(feature_map, edges, self.levels, self.samples).flatten(1)

    def trunk_input(
        self, backbone: Backbone, image: np.ndarray, boxes: np.ndarray, scale: int
    ) -> tuple[torch.Tensor, float]:
        """Return the pixels ``(1, 3, H, W)`` of an image whose shorter side is ``scale``, and its enlargement."""
        factor = scale_factor(image.shape[1], image.shape[0], scale, self.max_side)
        return backbone.pixels(image, factor), factor

    def pool(self, maps: torch.Tensor, boxes: np.ndarray, size: tuple[int, int], factor: float) -> torch.Tensor:
        """Pool a feature map ``(1, C, H, W)``: vectors ``(N, D)`` of boxes ``(N, 4)``, differentiable."""
        cells = self.to_cells(boxes, size, factor, (maps.shape[3], maps.shape[2]))
        if self.kind == "align":
            return self._align(maps[0], cells)
        from sppdet.ops import pyramid_pool_batch

        return pyramid_pool_batch(maps[0], cells, self.levels).flatten(1)
