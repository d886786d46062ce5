"""RoIAlign at several levels: each bin is the mean of bilinear samples of a window that is not rounded to cells.

RoIAlign is He et al. 2017 (arXiv 1703.06870, section 3). The bins of a level are equal and do not overlap. With the one
level 7 this is RoIAlign as published, with levels 6, 3, 2, 1 a pyramid of it. Names and the order of a vector are those
of `sppdet.ops.pooling`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def pyramid_roi_align(
    feature_map: torch.Tensor, windows: np.ndarray, levels: Sequence[int], samples: int = 0
) -> torch.Tensor:
    """Average every bin of every window; differentiable with respect to the feature map.

    Args:
        feature_map: ``(C, H, W)``, float32 or float64, on any device.
        windows: float32 ``(N, 4)`` edges ``x1, y1, x2, y2`` in cells, where cell i reaches from i to i + 1; at most
            half a cell outside the map.
        levels: bins per side of each level.
        samples: sample points per side of each bin; 0 takes as many as the bin is cells long, rounded up.

    Returns:
        ``(N, M, C)``, level by level, rows, then columns, on the map's device and of its type.

    Raises:
        ValueError: a window is empty, or more than half a cell outside the map, where torchvision would read zeros.

    Examples:
        >>> import torch
        >>> rising = torch.arange(4.0).expand(1, 3, 4)  # the value in the middle of column x (at x + 1/2) is x
        >>> window = np.array([[0.5, 1, 2.5, 2]], np.float32)
        >>> pyramid_roi_align(rising, window, (2, 1)).flatten().tolist()
        [0.5, 1.5, 0.5, 1.5, 1.0]
    """
    import torch
    from torchvision.ops import roi_align  # takes longer to import than torch

    windows = np.asarray(windows, np.float32)
    _check_edges(windows, feature_map.shape[2], feature_map.shape[1])
    batch, edges = feature_map[None].contiguous(), [torch.from_numpy(windows).to(feature_map)]
    pooled = [roi_align(batch, edges, n, sampling_ratio=samples or -1, aligned=True).flatten(2) for n in levels]
    return torch.cat(pooled, dim=2).transpose(1, 2)


def _check_edges(windows: np.ndarray, width: int, height: int) -> None:
    """Refuse windows ``(N, 4)`` of which torchvision would read nothing."""
    ordered = (windows[:, :2] < windows[:, 2:]).all()
    if not (ordered and (windows >= -0.5).all() and (windows <= np.array([width, height] * 2) + 0.5).all()):
        raise ValueError(f"windows must end after they start, at most half a cell outside the {width} x {height} map")
