"""What may take the place of a maximum in a window's bins: the mean of whole cells, or of points between them.

``average`` takes the mean of the very bins of :mod:`sppdet.ops.pooling`. ``align`` is RoIAlign (He et al. 2017, arXiv
1703.06870, section 3) at any number of levels: windows are not rounded to cells (:func:`sppdet.features.regions.locate`), the
bins of a level are equal and do not overlap, and each is the mean of bilinear samples inside it. With the one level 7
it is RoIAlign as published, with 6, 3, 2, 1 a pyramid of it.

Names and the order of a vector are those of :mod:`sppdet.ops.pooling`. ``samples`` says which of the two: the points a
side of each bin of ``align``, where 0 is as many as the bin is cells long, rounded up; None means whole cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional

from sppdet.ops.pooling import CHANNELS, PART, bins, check_cells, output_array
from sppdet.utils import share


def average_pool(
    conv_map: np.ndarray,
    windows: np.ndarray,
    levels: Sequence[int],
    samples: int | None = None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """The mean of every bin of every window: float32 ``(N, M, C)``, up to rounding :func:`average_pool_torch`'s.

    Args:
        conv_map: float32 ``(H, W, C)``.
        windows: ``(N, 4)`` whole cells as of :func:`sppdet.pooling.pyramid_pool`, or, with ``samples``, float32 edges
            in cells as of :func:`sppdet.features.regions.locate`.
        levels: bins a side of each level.
        samples: see the module.
        out: as of :func:`sppdet.pooling.pyramid_pool`, as is the number of threads.
    """
    from sppdet.ops.averaging_kernel import average_windows  # Numba takes long to load

    windows = np.asarray(windows, np.int32 if samples is None else np.float32)
    (check_cells if samples is None else _check_edges)(windows, conv_map)
    conv_map, windows = (np.ascontiguousarray(value, np.float32) for value in (conv_map, windows))
    pooled = output_array(out, (len(windows), bins(levels), conv_map.shape[2]))
    levels = np.asarray(levels, np.int64)

    def work(start: int) -> None:
        part = slice(start, start + PART)
        average_windows(conv_map, windows[part], levels, _code(samples), pooled[part])

    share(work, range(0, len(windows), PART))
    return pooled


def average_pool_batch(
    conv_map: torch.Tensor, windows: np.ndarray, levels: Sequence[int], samples: int | None = None
) -> torch.Tensor:
    """The same, differentiable and quick, for training: ``(C, H, W)`` on any device -> ``(N, M, C)``.

    In float32 on the CPU by the compiled loops, elsewhere by :func:`average_pool_torch`.
    """
    if conv_map.device.type == "cpu" and conv_map.dtype == torch.float32:
        return _CompiledAverage.apply(conv_map, windows, levels, samples)
    return average_pool_torch(conv_map, windows, levels, samples)


def average_pool_torch(
    conv_map: torch.Tensor, windows: np.ndarray, levels: Sequence[int], samples: int | None = None
) -> torch.Tensor:
    """The same in plain PyTorch: torchvision's ``roi_align`` with ``aligned``, or for whole cells a table of sums."""
    if samples is None:
        return _means_of_cells(conv_map, np.asarray(windows, np.int64), levels)
    from torchvision.ops import roi_align  # takes longer to import than torch

    rois = [torch.from_numpy(np.asarray(windows, np.float32)).to(conv_map)]
    pooled = [roi_align(conv_map[None], rois, n, sampling_ratio=samples or -1, aligned=True) for n in levels]
    return torch.cat([level.flatten(2) for level in pooled], dim=2).transpose(1, 2)


def _means_of_cells(conv_map: torch.Tensor, cells: np.ndarray, levels: Sequence[int]) -> torch.Tensor:
    channels, _, width = conv_map.shape
    # Of all rectangles in the map's corner; float64, because a bin is a small difference of large ones.
    sums = functional.pad(conv_map.double().cumsum(1).cumsum(2), (1, 0, 1, 0)).permute(1, 2, 0).reshape(-1, channels)

    def corner(x: np.ndarray, y: np.ndarray) -> torch.Tensor:
        return sums[torch.from_numpy(y * (width + 1) + x).to(sums.device)]

    def level(n: int) -> torch.Tensor:
        bins_of_level = np.arange(n * n)
        left, right = _edges(cells[:, 0], cells[:, 2], n, bins_of_level % n)
        top, bottom = _edges(cells[:, 1], cells[:, 3], n, bins_of_level // n)
        total = corner(right, bottom) - corner(left, bottom) - corner(right, top) + corner(left, top)
        return total / torch.from_numpy((right - left) * (bottom - top)).to(sums)[..., None]

    return torch.cat([level(n) for n in levels], dim=1).to(conv_map.dtype)


def _edges(start: np.ndarray, end: np.ndarray, n: int, i: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``(N, len(i))`` each: where bins i of n begin and end on sides from ``start`` to ``end`` ``(N,)``."""
    start, side = start[:, None], (end - start)[:, None]
    return start + i * side // n, start - (-(i + 1) * side // n)


def _check_edges(windows: np.ndarray, conv_map: np.ndarray) -> None:
    """Refuse edges ``(N, 4)`` where torchvision would read nothing; the compiled loops would take the nearest cell."""
    height, width = conv_map.shape[:2]
    ordered = (windows[:, :2] < windows[:, 2:]).all()
    if not (ordered and (windows >= -0.5).all() and (windows <= np.array([width, height] * 2) + 0.5).all()):
        raise ValueError(f"windows must end after they start, at most half a cell outside the {width} x {height} map")


def _code(samples: int | None) -> int:
    """``samples`` as the compiled loops take it."""
    from sppdet.ops.averaging_kernel import WHOLE_CELLS  # Numba takes long to load

    return WHOLE_CELLS if samples is None else samples


class _CompiledAverage(torch.autograd.Function):
    @staticmethod
    def forward(context, conv_map: torch.Tensor, windows: np.ndarray, levels: Sequence[int], samples: int | None):
        context.shape, context.arguments = conv_map.shape, (windows, levels, samples)
        channels_last = conv_map.detach().permute(1, 2, 0).contiguous().numpy()
        return torch.from_numpy(average_pool(channels_last, windows, levels, samples))

    @staticmethod
    def backward(context, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        from sppdet.ops.averaging_kernel import spread_gradient  # Numba takes long to load

        (channels, height, width), (windows, levels, samples) = context.shape, context.arguments
        windows, levels = np.ascontiguousarray(windows, np.float32), np.asarray(levels, np.int64)
        found, gradient = np.zeros((height, width, channels), np.float32), gradient.contiguous().numpy()

        def work(first: int) -> None:
            last = min(first + CHANNELS, channels)
            spread_gradient(windows, levels, _code(samples), gradient, first, last, found)

        share(work, range(0, channels, CHANNELS))
        return torch.from_numpy(found).permute(2, 0, 1), None, None, None
