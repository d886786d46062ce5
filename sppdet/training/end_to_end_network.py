"""The network that end-to-end training learns: trunk, fc layers, classifier and box regression.

Names: n windows, f of them foreground, K classes, D features of the pooled vector.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from sppdet.networks import Backbone, Head

# Standard deviations of the initial weights (Fast R-CNN, arXiv 1504.08083, section 3.1).
_CLASSIFY_DEVIATION, _MOVE_DEVIATION = 0.01, 0.001


class EndToEndNetwork(nn.Module):
    """Trunk, head, and two linear layers on fc7: ``classify`` (K + 1 logits) and ``move`` (4 K shifts).

    In training ``move`` learns whitened shifts, ``(shift - mean) / deviation``; `unwhiten` changes its weights so
    that it returns plain shifts.

    Args:
        trunk: the conv layers.
        head: fc6 and fc7.
        classes: K.

    Attributes:
        mean: mean of the shifts of each class ``(K, 4)``.
        deviation: standard deviation of the shifts of each class ``(K, 4)``.
    """

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, trunk: nn.Module, head: Head, classes: int):
        super().__init__()
        self.trunk, self.head = trunk, head
        self.classify = nn.Linear(head.units, classes + 1)
        self.move = nn.Linear(head.units, 4 * classes)
        self.register_buffer("mean", torch.zeros(classes, 4))
        self.register_buffer("deviation", torch.ones(classes, 4))
        for layer, deviation in ((self.classify, _CLASSIFY_DEVIATION), (self.move, _MOVE_DEVIATION)):
            nn.init.normal_(layer.weight, std=deviation)
            nn.init.zeros_(layer.bias)

    def train(self, mode: bool = True) -> EndToEndNetwork:
        """Switch dropout on or off; the trunk's batch norm keeps its statistics, as a batch has too few images."""
        super().train(mode)
        self.trunk.eval()
        return self

    def maps(self, backbone: Backbone, pixels: torch.Tensor) -> torch.Tensor:
        """Return the trunk's feature maps, times the head's scale.

        The maps are scaled rather than the pooled vectors because they have fewer numbers.

        Args:
            backbone: says device and precision; its trunk is not used.
            pixels: float32 ``(B, 3, H, W)``.

        Returns:
            float32 ``(B, C, H', W')``.
        """
        with torch.autocast(backbone.device.type, torch.bfloat16, enabled=backbone.half_in_training):
            return trunk_maps(self.trunk, backbone, pixels) * self.head.scale

    def forward(self, pooled: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits ``(n, K + 1)`` and shifts ``(n, K, 4)`` of vectors ``(n, D)`` pooled from `maps`."""
        hidden = self.head.of_scaled(pooled)
        return self.classify(hidden).float(), self.move(hidden).float().unflatten(1, (-1, 4))

    def whitened(self, targets: np.ndarray, labels: torch.Tensor) -> torch.Tensor:
        """Return shifts ``(f, 4)`` as ``move`` learns them, from plain ones and the windows' classes ``(f,)``."""
        return (torch.from_numpy(targets).to(self.mean) - self.mean[labels]) / self.deviation[labels]

    @torch.no_grad()
    def unwhiten(self) -> None:
        """Change the weights of ``move`` so that it returns plain shifts."""
        self.move.weight.mul_(self.deviation.flatten()[:, None])
        self.move.bias.mul_(self.deviation.flatten()).add_(self.mean.flatten())
        self.mean.zero_()
        self.deviation.fill_(1)


def trunk_maps(trunk: nn.Module, backbone: Backbone, pixels: torch.Tensor) -> torch.Tensor:
    """Return the float32 output of ``trunk`` on ``pixels``, on the device of ``backbone``."""
    return trunk(pixels.to(backbone.device, memory_format=torch.channels_last)).float()
