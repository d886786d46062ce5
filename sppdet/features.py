"""From a picture's conv maps to the vectors of its windows: regions, pooling and, where asked for, the fc head.

Names: N windows, U of them with different cells, S scales, D features of the pooled vector.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch

from sppdet.averaging import average_pool, average_pool_batch
from sppdet.backbone import Backbone
from sppdet.parallel import side_by_side
from sppdet.pooling import bins, pyramid_pool, pyramid_pool_batch, unique_windows
from sppdet.products import Products
from sppdet.regions import CellGrid, choose_scales, locate, project, scale_factor
from sppdet.settings import Pooling, Regions

_BLOCK = 128  # windows pooled at a time: 13 MB at 512 channels, so a picture's vectors never exist all at once


@dataclass(frozen=True, eq=False)
class Windows:
    """The windows of one picture on its conv maps; those that cover the same whole cells at one scale are one.

    Attributes:
        scales, cells: ``(U,)`` index of the map, and ``(U, 4)`` where on it, as of :meth:`PyramidFeatures.place`.
        group: ``(N,)`` which of the U each window is.
    """

    scales: np.ndarray
    cells: np.ndarray
    group: np.ndarray


@dataclass(frozen=True, kw_only=True)
class WindowFeatures(ABC):
    """How the windows of a picture become vectors, whatever these are made of; ``head`` may follow the pooling.

    Its vectors then take the place of the pooled ones, or, with ``beside``, stand behind them. With ``half`` maps are
    numbers of bfloat16, and are pooled and multiplied as such where the maxima of their bins are, too.
    ``maps`` is what :meth:`read` makes of a picture: conv maps here, a list of vectors in :mod:`sppdet.crops`.
    """

    head: Callable[[torch.Tensor], torch.Tensor] | None = None
    head_dimension: int = 0
    beside: bool = False
    half: bool = False

    needs_windows: ClassVar[bool]  # whether :meth:`read` wants to know the windows

    @property
    @abstractmethod
    def pooled_dimension(self) -> int:
        """Length of a pooled vector."""

    @abstractmethod
    def description(self) -> dict:
        """What a saved detector has to know, besides the backbone."""

    @abstractmethod
    def read(self, backbone: Backbone, image: np.ndarray, boxes: np.ndarray | None):
        """What the windows ``(N, 4)`` of an RGB uint8 picture are read from."""

    @abstractmethod
    def windows(self, boxes: np.ndarray, size: tuple[int, int], maps) -> Windows:
        """Boxes ``(N, 4)`` of a picture of ``(width, height)`` on its maps."""

    @abstractmethod
    def block(self, maps, windows: Windows, rows: np.ndarray) -> torch.Tensor:
        """Pooled vectors ``(len(rows), D)`` of the windows at ``rows``, all of one scale: one of :meth:`blocks`."""

    @abstractmethod
    def trunk_input(
        self, backbone: Backbone, image: np.ndarray, boxes: np.ndarray, scale: int
    ) -> tuple[torch.Tensor, float]:
        """What a trunk in training sees of a picture's windows ``(N, 4)``, and by how much the picture is enlarged."""

    @abstractmethod
    def pool(self, maps: torch.Tensor, boxes: np.ndarray, size: tuple[int, int], factor: float) -> torch.Tensor:
        """The trunk's output on :meth:`trunk_input` -> pooled vectors ``(N, D)``, differentiable."""

    @property
    def dimension(self) -> int:
        """D, of the vectors that :meth:`vectors` returns and :meth:`products` multiplies."""
        if self.head is None:
            return self.pooled_dimension
        return self.head_dimension + (self.pooled_dimension if self.beside else 0)

    @property
    def pooled(self) -> WindowFeatures:
        """The same without the head."""
        return replace(self, head=None)

    def under(self, head) -> WindowFeatures:
        """The same below a :class:`sppdet.head.Head`."""
        return replace(self, head=head.vectors, head_dimension=head.dimension, beside=head.beside)

    def halved(self, maps):
        """The maps in bfloat16, if ``half``; what :meth:`block` makes of them then is."""
        return maps

    def blocks(self, windows: Windows, rows: np.ndarray | None = None) -> list[np.ndarray]:
        """The U windows, or those at ``rows``, in parts to be pooled at a time."""
        rows = np.arange(len(windows.cells)) if rows is None else np.asarray(rows)
        scales = windows.scales[rows]
        parts = [rows[scales == scale] for scale in np.unique(scales)]
        return [part[start : start + _BLOCK] for part in parts for start in range(0, len(part), _BLOCK)]

    def _parts(self, pooled: torch.Tensor) -> list[tuple[slice, torch.Tensor]]:
        """What a block's pooled vectors become, and the features that it is. They are not put side by side, as copying
        takes longer than pooling."""
        if self.head is None:
            return [(slice(None), pooled)]
        behind = slice(-self.head_dimension, None)
        front = [(slice(0, self.pooled_dimension), pooled)] if self.beside else []
        return [*front, (behind, self.head(pooled))]

    def vectors(self, maps, windows: Windows, rows: np.ndarray, dtype=np.float32) -> np.ndarray:
        """``(len(rows), D)`` vectors of the windows at ``rows``, which must not repeat."""
        position = torch.empty(len(windows.cells), dtype=torch.int64)
        position[rows] = torch.arange(len(rows))
        # Through torch: numpy converts to half precision a number at a time, 40 times slower.
        found = torch.from_numpy(np.empty((len(rows), self.dimension), dtype))
        maps = self.halved(maps)
        for block in self.blocks(windows, rows):
            for features, part in self._parts(self.block(maps, windows, block)):
                found[position[block], features] = part.to(found.dtype)
        return found.numpy()

    def of_boxes(self, maps, boxes: np.ndarray, size: tuple[int, int], dtype=np.float32):
        """``(N, D)`` vectors of boxes ``(N, 4)`` of a picture of ``(width, height)``."""
        windows = self.windows(boxes, size, maps)
        return self.vectors(maps, windows, np.arange(len(windows.cells)), dtype)[windows.group]

    def whole(self, maps, size: tuple[int, int]) -> Windows:
        """The picture itself, of ``(width, height)``, as its only window."""
        return self.windows(np.array([[0, 0, *size]], np.float32), size, maps)

    def products(
        self, maps, windows: Windows, weights: Products, rows: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Products of all windows' vectors with exact weights and with rough ones: float32 ``(U, K)`` and ``(U, R)``.

        With ``rows``, only those of the windows named by it are computed, and the others mean nothing.
        """
        found = tuple(torch.zeros((len(windows.cells), count)) for count in weights.counts)
        maps = self.halved(maps)

        def multiply(block: np.ndarray) -> None:
            pooled = self.block(maps, windows, block)
            parts = [weights(part, features) for features, part in self._parts(pooled)]
            for own, products in zip(found, zip(*parts)):
                own[block] = sum(products)

        side_by_side(multiply, self.blocks(windows, rows))
        return tuple(own.numpy() for own in found)


@dataclass(frozen=True)
class PyramidFeatures(WindowFeatures):
    """How windows become pooled vectors; see :mod:`sppdet.regions`, :mod:`sppdet.pooling`, :mod:`sppdet.averaging`.

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
    def create(cls, backbone: Backbone, regions: Regions, pooling: Pooling) -> PyramidFeatures:
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
            half=backbone.half_behind,
        )

    @property
    def pooled_dimension(self) -> int:
        return self.channels * bins(self.levels)

    def description(self) -> dict:
        # Older models lack the last two.
        names = ("scales", "max_side", "target", "shrink", "levels", "kind", "samples")
        return {name: getattr(self, name) for name in names}

    def read(self, backbone: Backbone, image: np.ndarray, boxes: np.ndarray | None = None) -> list[np.ndarray]:
        """The conv maps of an RGB uint8 picture, one a scale: float32 ``(H, W, C)``."""
        return [backbone(image, factor) for factor in self.factors(image.shape[1], image.shape[0])]

    def factors(self, width: int, height: int) -> np.ndarray:
        """``(S,)`` enlargement of a picture at each scale."""
        return np.array([scale_factor(width, height, scale, self.max_side) for scale in self.scales])

    def windows(self, boxes: np.ndarray, size: tuple[int, int], maps: Sequence[np.ndarray]) -> Windows:
        """Boxes ``(N, 4)`` of a picture of ``(width, height)`` on its S conv maps."""
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
        """The map ``(1, C, H, W)`` of a picture of ``(width, height)`` -> ``(N, D)``."""
        cells = self.place(boxes, size, factor, (maps.shape[3], maps.shape[2]))
        if self.kind == "max":
            return pyramid_pool_batch(maps[0], cells, self.levels).flatten(1)
        return average_pool_batch(maps[0], cells, self.levels, self._samples).flatten(1)
