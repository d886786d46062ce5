"""From an image's feature maps to the vectors of its windows: pooling and, where asked for, the fc head.

Names: N windows, U of them with different cells, S scales, D features of a vector, K and R rows of weights.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import DTypeLike

from sppdet.networks import Backbone
from sppdet.ops import Products, as_tensor, bins, on_host
from sppdet.utils import side_by_side

if TYPE_CHECKING:  # detection does not load torch unless it needs it
    import torch

    from sppdet.networks import Head

_BLOCK = 128  # windows pooled at a time: 13 MB at 512 channels, so an image's vectors never exist all at once

# Fields of features that the backbone or the head decides. All others are settings: the vectors depend on them.
_NOT_SETTINGS = {"head", "head_dimension", "concat_pooled", "half", "device", "grid", "channels", "layer_channels"}
# Left out of the description at their defaults: keys and model files are then those of versions without them.
_OPTIONAL = {"layer_levels", "layer_weights", "map_type"}

Maps = TypeVar("Maps")  # what windows are read from: a list of feature maps, or the vectors of crops


@dataclass(frozen=True, eq=False)
class Windows:
    """The windows of one image on its feature maps; windows that cover the same whole cells at one scale are one.

    Attributes:
        scales: int64 ``(U,)`` index of the map on which each window is read.
        cells: ``(U, 4)`` rectangle of each window on this map, see `PyramidFeatures.to_cells`.
        group: int64 ``(N,)`` row of each of the N windows among the U.
    """

    scales: np.ndarray
    cells: np.ndarray
    group: np.ndarray


class LayerPyramid(NamedTuple):
    """How one layer of a backbone is pooled.

    Attributes:
        channels: those of the feature map that are the layer's.
        levels: bins per side of each level.
        weight: factor of the layer's numbers.
    """

    channels: slice
    levels: tuple[int, ...]
    weight: float


@dataclass(frozen=True, kw_only=True)
class WindowFeatures(ABC, Generic[Maps]):
    """How the windows of an image become vectors.

    ``maps`` is what `read` returns for an image: in `sppdet.features.pyramid_features` a list of feature
    maps, in `sppdet.features.crop_features` the vectors of cropped windows.

    Attributes:
        head: maps pooled vectors ``(n, D)`` to vectors ``(n, head_dimension)``; None leaves the pooled vectors.
        head_dimension: length of the vectors of ``head``.
        concat_pooled: whether the pooled vector stays, before the vector of ``head``.
        layer_channels: channels of each layer of the backbone.
        layer_levels: bins per side of each level, for each layer; empty pools all layers at the same levels.
        layer_weights: factor of each layer's numbers; empty is 1 for all.
        half: whether feature maps are rounded to bfloat16, and pooled and multiplied in bfloat16 where bins are maxima.
        device: where torch pools and multiplies, such as ``cuda``; empty: on the CPU, by compiled loops.
        needs_windows: whether `read` has to know the windows.
    """

    head: Callable[[torch.Tensor], torch.Tensor] | None = None
    head_dimension: int = 0
    concat_pooled: bool = False
    layer_channels: tuple[int, ...] = ()
    layer_levels: tuple[tuple[int, ...], ...] = ()
    layer_weights: tuple[float, ...] = ()
    half: bool = False
    device: str = ""

    needs_windows: ClassVar[bool]

    @property
    @abstractmethod
    def pyramids(self) -> list[LayerPyramid]:
        """The pyramid of each layer, whose vectors are concatenated; one of all channels where layers do not differ."""

    def _pyramids(self, channels: int, levels: tuple[int, ...]) -> list[LayerPyramid]:
        """Return `pyramids` on maps of ``channels``; ``levels`` are those of layers without their own."""
        if not self.layer_levels and not self.layer_weights:
            return [LayerPyramid(slice(0, channels), levels, 1.0)]
        layers = len(self.layer_channels)
        ends = np.cumsum(self.layer_channels).tolist()
        slices = [slice(end - count, end) for end, count in zip(ends, self.layer_channels)]
        all_levels, weights = self.layer_levels or [levels] * layers, self.layer_weights or [1.0] * layers
        return [*map(LayerPyramid, slices, all_levels, weights)]

    @property
    def pooled_dimension(self) -> int:
        """Length of a pooled vector: channels times bins, summed over the layers."""
        return sum((p.channels.stop - p.channels.start) * bins(p.levels) for p in self.pyramids)

    @abstractmethod
    def read(self, backbone: Backbone, image: np.ndarray, boxes: np.ndarray | None = None) -> Maps:
        """Compute what the windows of an image are read from.

        Args:
            image: RGB uint8 ``(H, W, 3)``.
            boxes: the windows, ``(N, 4)`` pixel edges; not used unless ``needs_windows``.
        """

    @abstractmethod
    def windows(self, boxes: np.ndarray, size: tuple[int, int], maps: Maps) -> Windows:
        """Find boxes on the maps of an image.

        Args:
            boxes: ``(N, 4)`` pixel edges.
            size: ``(width, height)`` of the image.
        """

    @abstractmethod
    def block(self, maps: Maps, windows: Windows, rows: np.ndarray) -> np.ndarray:
        """Return the pooled vectors ``(len(rows), D)`` of the windows at ``rows``, one of `blocks`.

        They are float32, or int16 for the bits of bfloat16 numbers where `halved` has rounded the maps.
        """

    @abstractmethod
    def trunk_input(
        self, backbone: Backbone, image: np.ndarray, boxes: np.ndarray, scale: int
    ) -> tuple[torch.Tensor, float]:
        """Return what a trunk in training is run on, and the enlargement of the image.

        Args:
            image: RGB uint8 ``(H, W, 3)``.
            boxes: the windows, ``(N, 4)`` pixel edges.
            scale: pixels of the image's shorter side.
        """

    @abstractmethod
    def pool(self, maps: torch.Tensor, boxes: np.ndarray, size: tuple[int, int], factor: float) -> torch.Tensor:
        """Pool a trunk's output on `trunk_input`: vectors ``(N, D)``, differentiable.

        Args:
            boxes: ``(N, 4)`` pixel edges.
            size: ``(width, height)`` of the image.
            factor: enlargement of the image.
        """

    def description(self) -> dict[str, Any]:
        """Return every setting that the pooled vectors depend on, apart from the backbone; JSON-like.

        A model file holds it, and keys of cached and learned results are made from it.
        """
        values = {field: getattr(self, field.name) for field in fields(self) if field.name not in _NOT_SETTINGS}
        return {
            field.name: _json_like(value)
            for field, value in values.items()
            if field.name not in _OPTIONAL or value != field.default
        }

    @property
    def dimension(self) -> int:
        """D, the length of the vectors that `vectors` returns and `products` multiplies."""
        if self.head is None:
            return self.pooled_dimension
        return self.head_dimension + (self.pooled_dimension if self.concat_pooled else 0)

    @property
    def pooled(self) -> WindowFeatures[Maps]:
        """These features without the head."""
        return replace(self, head=None)

    def under(self, head: Head) -> WindowFeatures[Maps]:
        """Return these features with the fc layers ``head`` on the pooled vectors."""
        return replace(self, head=head.vectors, head_dimension=head.dimension, concat_pooled=head.concat_pooled)

    def halved(self, maps: Maps) -> Maps:
        """Return the maps as `block` reads them: in bfloat16 where these features pool them so."""
        return maps

    def blocks(self, windows: Windows, rows: np.ndarray | None = None) -> list[np.ndarray]:
        """Split the U windows, or those at ``rows``, into blocks of one scale that are pooled at a time."""
        rows = np.arange(len(windows.cells)) if rows is None else np.asarray(rows)
        scales = windows.scales[rows]
        rows_of_scales = [rows[scales == scale] for scale in np.unique(scales)]
        return [
            rows_of_scale[start : start + _BLOCK]
            for rows_of_scale in rows_of_scales
            for start in range(0, len(rows_of_scale), _BLOCK)
        ]

    def _columns(self, pooled: np.ndarray) -> list[tuple[slice, np.ndarray]]:
        """Return the vectors of pooled ones as (columns, values) pairs."""
        # Not side by side in one array: the copy would take longer than pooling.
        if self.head is None:
            return [(slice(None), pooled)]
        first = [(slice(0, self.pooled_dimension), pooled)] if self.concat_pooled else []
        return [*first, (slice(-self.head_dimension, None), self.head(as_tensor(pooled)).numpy())]

    def on_device(self, maps: Maps) -> Any:
        """Return the maps as `block_on_device` reads them."""
        raise NotImplementedError

    def block_on_device(self, maps: Any, windows: Windows, rows: np.ndarray) -> torch.Tensor:
        """Return what `block` returns in float32, computed by torch on ``device``."""
        raise NotImplementedError

    def _columns_on_device(
        self, maps: Maps, windows: Windows, rows: np.ndarray | None
    ) -> Iterator[tuple[np.ndarray, list[tuple[slice, torch.Tensor]]]]:
        """Yield blocks of windows, and their vectors as (columns, values) pairs on ``device``."""
        maps = self.on_device(maps)
        for block in self.blocks(windows, rows):
            pooled = self.block_on_device(maps, windows, block)
            if self.head is None:
                yield block, [(slice(None), pooled)]
                continue
            first = [(slice(0, self.pooled_dimension), pooled)] if self.concat_pooled else []
            yield block, [*first, (slice(-self.head_dimension, None), self.head(pooled))]

    def vectors(self, maps: Maps, windows: Windows, rows: np.ndarray, dtype: DTypeLike = np.float32) -> np.ndarray:
        """Return the vectors ``(len(rows), D)`` of the windows at ``rows``, which must not repeat."""
        import torch

        position = torch.empty(len(windows.cells), dtype=torch.int64)
        position[rows] = torch.arange(len(rows))
        # Through torch: numpy converts to half precision a number at a time, 40 times slower.
        vectors = torch.from_numpy(np.empty((len(rows), self.dimension), dtype))
        if self.device:
            with torch.inference_mode():
                for block, pairs in self._columns_on_device(maps, windows, rows):
                    for columns, tensor in pairs:
                        vectors[position[block], columns] = tensor.to(vectors.dtype).cpu()
            return vectors.numpy()
        maps = self.halved(maps)
        for block in self.blocks(windows, rows):
            for columns, values in self._columns(self.block(maps, windows, block)):
                vectors[position[block], columns] = as_tensor(values).to(vectors.dtype)
        return vectors.numpy()

    def of_boxes(
        self, maps: Maps, boxes: np.ndarray, size: tuple[int, int], dtype: DTypeLike = np.float32
    ) -> np.ndarray:
        """Return the vectors ``(N, D)`` of boxes ``(N, 4)`` of an image of ``(width, height)`` pixels."""
        windows = self.windows(boxes, size, maps)
        return self.vectors(maps, windows, np.arange(len(windows.cells)), dtype)[windows.group]

    def whole(self, maps: Maps, size: tuple[int, int]) -> Windows:
        """Return the whole image, of ``(width, height)`` pixels, as its only window."""
        return self.windows(np.array([[0, 0, *size]], np.float32), size, maps)

    def products(
        self, maps: Maps, windows: Windows, weights: Products, rows: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Multiply the vectors of all windows by exact and by rough weights, block by block, without storing them.

        Args:
            rows: the windows to compute; the other rows of the result are 0. None computes all.

        Returns:
            float32 ``(U, K)`` products with the exact weights and ``(U, R)`` with the rough ones.
        """
        if self.device:
            on_device = self.products_on_device(maps, windows, weights, rows)
            return on_host(on_device[0]), on_host(on_device[1])
        exact, rough = (np.zeros((len(windows.cells), count), np.float32) for count in weights.counts)
        maps = self.halved(maps)

        def multiply(block: np.ndarray) -> None:
            pooled = self.block(maps, windows, block)
            products = [weights(values, columns) for columns, values in self._columns(pooled)]
            for total, summands in zip((exact, rough), zip(*products)):
                total[block] = sum(summands)

        side_by_side(multiply, self.blocks(windows, rows))
        return exact, rough

    def products_on_device(
        self, maps: Maps, windows: Windows, weights: Products, rows: np.ndarray | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what `products` returns as tensors on ``device``, where all is computed."""
        import torch

        with torch.inference_mode():
            matrix = weights.on(self.device)
            products = torch.zeros(len(windows.cells), matrix.shape[1], device=self.device)
            for block, pairs in self._columns_on_device(maps, windows, rows):
                index = torch.from_numpy(block).to(self.device)
                products[index] = sum(values @ matrix[columns] for columns, values in pairs)
        exact, rough = weights.counts
        return products[:, :exact], products[:, exact : exact + rough]


def _json_like(value: Any) -> Any:
    """Return a setting as JSON has it."""
    if isinstance(value, tuple):
        return [*map(_json_like, value)]
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
