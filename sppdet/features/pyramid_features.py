"""SPP-net's window features: the bins of a window on the image's feature maps, pooled at every level of a pyramid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from sppdet.config import PoolingSettings, RegionSettings
from sppdet.features.regions import choose_scales, locate, project, scale_factor
from sppdet.features.window_features import LayerPyramid, WindowFeatures, Windows
from sppdet.networks import Backbone, CellGrid
from sppdet.ops import (
    CODES,
    CodedMap,
    aligned_array,
    as_tensor,
    bins,
    pyramid_pool,
    pyramid_pool_coded,
    pyramid_roi_align,
    round_map,
    unique_windows,
)
from sppdet.utils import SppdetError

if TYPE_CHECKING:  # detection does not load torch unless it needs it
    import torch

_KINDS = ("max", "align")

FeatureMap = np.ndarray | CodedMap  # float32 (H, W, C), or its codes
Pool = Callable[["torch.Tensor", np.ndarray, tuple[int, ...]], "torch.Tensor"]  # (map, cells, levels) -> vectors


@dataclass(frozen=True)
class PyramidFeatures(WindowFeatures[list[FeatureMap]]):
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
        levels: bins per side of each level, of layers without levels of their own.
        kind: ``max``, the maximum of a bin's whole cells, or ``align``, RoIAlign: the mean of samples of the window as
            it is.
        samples: sample points per side of each bin of ``align``; 0 takes as many as the bin is cells long.
        map_type: ``float16``, or ``uint8`` or ``uint6`` for maps that are rounded to codes, see `sppdet.ops.round_map`.

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
    # Older model files lack this one.
    map_type: str = "float16"

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
            layer_channels=backbone.layer_channels,
            layer_levels=pooling.layer_levels,
            layer_weights=pooling.layer_weights,
            map_type=pooling.map_type,
            half=backbone.bfloat16_on_cpu,
            device=backbone.device_off_cpu,
        )

    @property
    def pyramids(self) -> list[LayerPyramid]:
        """The pyramid of each layer."""
        return self._pyramids(self.channels, self.levels)

    def read(self, backbone: Backbone, image: np.ndarray, boxes: np.ndarray | None = None) -> list[FeatureMap]:
        """Compute the feature maps of an RGB uint8 image, one per scale: float32 ``(H, W, C)``, or maps of codes.

        With ``device`` they are tensors that stay there.
        """
        factors = self.factors(image.shape[1], image.shape[0])
        if self.device and not self.coded:
            return [backbone.on_device(image, factor) for factor in factors]  # type: ignore[misc]
        return [round_map(backbone(image, factor), self.map_type) for factor in factors]

    @property
    def coded(self) -> bool:
        """Whether maps are rounded to codes."""
        return self.map_type in CODES

    def factors(self, width: int, height: int) -> np.ndarray:
        """Return the enlargement ``(S,)`` of an image at each scale."""
        return np.array([scale_factor(width, height, scale, self.max_side) for scale in self.scales])

    def windows(self, boxes: np.ndarray, size: tuple[int, int], maps: list[FeatureMap]) -> Windows:
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

    def halved(self, maps: list[FeatureMap]) -> list[FeatureMap]:
        """Return the maps as `block` reads them: one per scale and layer, layers of a scale side by side.

        Where ``half`` is set, they are the int16 that `sppdet.ops.pyramid_pool` takes for bfloat16. A map with a
        negative value stays as it is: as whole numbers only positive values are in order. So does a map of codes, of
        which `block` decodes the maxima; ``align`` needs all of its numbers.
        """
        pyramids = self.pyramids
        if len(pyramids) > 1:
            maps = [_layer(m, p) for m in maps for p in pyramids]
        if self.kind != "max":
            return [m.decoded() if isinstance(m, CodedMap) else m for m in maps]
        return [_halved(m) for m in maps] if self.half else maps

    def block(self, maps: list[FeatureMap], windows: Windows, rows: np.ndarray) -> np.ndarray:
        """Return the pooled vectors ``(len(rows), D)`` of the windows at ``rows``, which are read at one scale.

        They are int16 only where the maps of all layers have been rounded to bfloat16.

        Args:
            maps: those of `halved`; or those of `read`, where all layers have one pyramid.
        """
        cells, pyramids = windows.cells[rows], self.pyramids
        first = windows.scales[rows[0]] * len(pyramids)
        layers = list(zip(maps[first : first + len(pyramids)], pyramids))
        kinds = {self._kind(feature_map) for feature_map, _ in layers}
        if self.kind == "align" or len(kinds) > 1:
            return _side_by_side([self._pooled(feature_map, cells, p.levels) for feature_map, p in layers])
        vectors = aligned_array((len(cells), self.pooled_dimension), *kinds)
        end = 0
        for feature_map, pyramid in layers:
            shape = (len(cells), bins(pyramid.levels), feature_map.shape[2])
            start, end = end, end + shape[1] * shape[2]
            self._pool_max(feature_map, cells, pyramid.levels, vectors[:, start:end].reshape(shape))
        return vectors

    def _kind(self, feature_map: FeatureMap) -> type[np.generic]:
        """Return the type of the numbers that are pooled from a map."""
        half = self.half if isinstance(feature_map, CodedMap) else feature_map.dtype == np.int16
        return np.int16 if half else np.float32

    def _pooled(self, feature_map: FeatureMap, cells: np.ndarray, levels: tuple[int, ...]) -> np.ndarray:
        if self.kind == "align" and not isinstance(feature_map, CodedMap):
            return self._align(as_tensor(feature_map).permute(2, 0, 1), cells, levels).numpy()
        return self._pool_max(feature_map, cells, levels).reshape(len(cells), -1)

    def _pool_max(
        self, feature_map: FeatureMap, cells: np.ndarray, levels: tuple[int, ...], out: np.ndarray | None = None
    ) -> np.ndarray:
        if isinstance(feature_map, CodedMap):
            return pyramid_pool_coded(feature_map, cells, levels, self.half, out)
        return pyramid_pool(feature_map, cells, levels, out)

    def _align(self, feature_map: torch.Tensor, edges: np.ndarray, levels: tuple[int, ...]) -> torch.Tensor:
        return pyramid_roi_align(feature_map, edges, levels, self.samples).flatten(1)

    def on_device(self, maps: list[FeatureMap]) -> list[torch.Tensor]:
        """Return the maps as float32 tensors ``(C, H, W)`` on ``device``."""
        import torch

        decoded = [m.decoded() if isinstance(m, CodedMap) else m for m in maps]
        return [torch.as_tensor(m).to(self.device, torch.float32).permute(2, 0, 1) for m in decoded]

    def block_on_device(self, maps: list[torch.Tensor], windows: Windows, rows: np.ndarray) -> torch.Tensor:
        return self._pool_cells(maps[windows.scales[rows[0]]], windows.cells[rows], _max_by_torch)

    def trunk_input(
        self, backbone: Backbone, image: np.ndarray, boxes: np.ndarray, scale: int
    ) -> tuple[torch.Tensor, float]:
        """Return the pixels ``(1, 3, H, W)`` of an image whose shorter side is ``scale``, and its enlargement."""
        factor = scale_factor(image.shape[1], image.shape[0], scale, self.max_side)
        return backbone.pixels(image, factor), factor

    def pool(self, maps: torch.Tensor, boxes: np.ndarray, size: tuple[int, int], factor: float) -> torch.Tensor:
        """Pool a feature map ``(1, C, H, W)``: vectors ``(N, D)`` of boxes ``(N, 4)``, differentiable."""
        return self._pool_cells(maps[0], self.to_cells(boxes, size, factor, (maps.shape[3], maps.shape[2])), _max)

    def _pool_cells(self, feature_map: torch.Tensor, cells: np.ndarray, pool_max: Pool) -> torch.Tensor:
        """Pool rectangles ``(n, 4)`` of a map ``(C, H, W)``: vectors ``(n, D)``; ``pool_max`` does kind ``max``."""
        import torch

        pool = self._align if self.kind == "align" else pool_max
        pooled = [pool(feature_map[p.channels] * p.weight, cells, p.levels) for p in self.pyramids]
        return torch.cat(pooled, 1) if len(pooled) > 1 else pooled[0]


def _max(feature_map: torch.Tensor, cells: np.ndarray, levels: tuple[int, ...]) -> torch.Tensor:
    from sppdet.ops import pyramid_pool_batch

    return pyramid_pool_batch(feature_map, cells, levels).flatten(1)


def _max_by_torch(feature_map: torch.Tensor, cells: np.ndarray, levels: tuple[int, ...]) -> torch.Tensor:
    from sppdet.ops import pyramid_pool_nested

    return pyramid_pool_nested(feature_map, as_tensor(cells), levels).flatten(1)


def _layer(feature_map: FeatureMap, pyramid: LayerPyramid) -> FeatureMap:
    """Return the channels of one layer of a map, multiplied by the layer's weight."""
    if isinstance(feature_map, CodedMap):
        return feature_map.part(pyramid.channels, pyramid.weight)
    return np.ascontiguousarray(feature_map[..., pyramid.channels]) * np.float32(pyramid.weight)


def _halved(feature_map: FeatureMap) -> FeatureMap:
    """Return a map as the bits of bfloat16; one of codes or with a negative value as it is."""
    if isinstance(feature_map, CodedMap) or feature_map.min(initial=0) < 0:
        return feature_map
    import torch

    return torch.from_numpy(feature_map).bfloat16().view(torch.int16).numpy()


def _side_by_side(vectors: list[np.ndarray]) -> np.ndarray:
    """Return vectors ``(n, D)`` of layers as one array, float32 unless all are the bits of bfloat16."""
    if len(vectors) == 1:
        return vectors[0]
    if len({layer.dtype for layer in vectors}) > 1:
        vectors = [as_tensor(layer).float().numpy() for layer in vectors]
    return np.concatenate(vectors, axis=1)
