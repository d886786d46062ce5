"""From an image's conv maps to the vectors of its windows: regions, pooling and, where asked for, the fc head.

Names: N windows, U of them with different cells, S scales, D features of the pooled vector.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch

from sppdet.networks import Backbone
from sppdet.ops import (
    Products,
)
from sppdet.utils import side_by_side

_BLOCK = 128  # windows pooled at a time: 13 MB at 512 channels, so an image's vectors never exist all at once


@dataclass(frozen=True, eq=False)
class Windows:
    """The windows of one image on its conv maps; those that cover the same whole cells at one scale are one.

    Attributes:
        scales, cells: ``(U,)`` index of the map, and ``(U, 4)`` where on it, as of :meth:`PyramidFeatures.place`.
        group: ``(N,)`` which of the U each window is.
    """

    scales: np.ndarray
    cells: np.ndarray
    group: np.ndarray


@dataclass(frozen=True, kw_only=True)
class WindowFeatures(ABC):
    """How the windows of an image become vectors, whatever these are made of; ``head`` may follow the pooling.

    Its vectors then take the place of the pooled ones, or, with ``beside``, stand behind them. With ``half`` maps are
    numbers of bfloat16, and are pooled and multiplied as such where the maxima of their bins are, too.
    ``maps`` is what :meth:`read` makes of an image: conv maps here, a list of vectors in :mod:`sppdet.features.crop_features`.
    """

    head: Callable[[torch.Tensor], torch.Tensor] | None = None
    head_dimension: int = 0
    concat_pooled: bool = False
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
        """What the windows ``(N, 4)`` of an RGB uint8 image are read from."""

    @abstractmethod
    def windows(self, boxes: np.ndarray, size: tuple[int, int], maps) -> Windows:
        """Boxes ``(N, 4)`` of an image of ``(width, height)`` on its maps."""

    @abstractmethod
    def block(self, maps, windows: Windows, rows: np.ndarray) -> torch.Tensor:
        """Pooled vectors ``(len(rows), D)`` of the windows at ``rows``, all of one scale: one of :meth:`blocks`."""

    @abstractmethod
    def trunk_input(
        self, backbone: Backbone, image: np.ndarray, boxes: np.ndarray, scale: int
    ) -> tuple[torch.Tensor, float]:
        """What a trunk in training sees of an image's windows ``(N, 4)``, and by how much the image is enlarged."""

    @abstractmethod
    def pool(self, maps: torch.Tensor, boxes: np.ndarray, size: tuple[int, int], factor: float) -> torch.Tensor:
        """The trunk's output on :meth:`trunk_input` -> pooled vectors ``(N, D)``, differentiable."""

    @property
    def dimension(self) -> int:
        """D, of the vectors that :meth:`vectors` returns and :meth:`products` multiplies."""
        if self.head is None:
            return self.pooled_dimension
        return self.head_dimension + (self.pooled_dimension if self.concat_pooled else 0)

    @property
    def pooled(self) -> WindowFeatures:
        """The same without the head."""
        return replace(self, head=None)

    def under(self, head) -> WindowFeatures:
        """The same below a :class:`sppdet.networks.fc_head.Head`."""
        return replace(self, head=head.vectors, head_dimension=head.dimension, concat_pooled=head.concat_pooled)

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
        front = [(slice(0, self.pooled_dimension), pooled)] if self.concat_pooled else []
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
        """``(N, D)`` vectors of boxes ``(N, 4)`` of an image of ``(width, height)``."""
        windows = self.windows(boxes, size, maps)
        return self.vectors(maps, windows, np.arange(len(windows.cells)), dtype)[windows.group]

    def whole(self, maps, size: tuple[int, int]) -> Windows:
        """The image itself, of ``(width, height)``, as its only window."""
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
