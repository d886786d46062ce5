"""Images as trunks see them: each network's normalisation of colour values."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class Normalisation:
    """How a network's input is made from RGB values: ``(value / divisor - mean) / std`` per channel.

    Attributes:
        mean: mean of the divided values, per channel; the network sees this colour as 0.
        std: standard deviation of the divided values, per channel.
        divisor: of the values 0..255.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    divisor: int

    @cached_property
    def _table(self) -> np.ndarray:
        """The normalised value of each colour value, per channel: float32 ``(256, 1, 3)``."""
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        colours = np.arange(256, dtype=np.uint8)[:, None, None].repeat(3, axis=2)
        return (colours * (1 / self.divisor / std) - mean / std).astype(np.float32, copy=False)

    def normalise(self, images: np.ndarray) -> np.ndarray:
        """Normalise an image or a batch of images.

        Args:
            images: RGB uint8 ``(..., H, W, 3)``.

        Returns:
            float32 of the same shape.

        Examples:
            >>> print(IMAGENET.normalise(np.full((1, 1, 3), 255, np.uint8)).round(3))
            [[[2.249 2.429 2.64 ]]]
            >>> print(LITE.normalise(np.full((1, 1, 3), 255, np.uint8)))
            [[[1. 1. 1.]]]
        """
        import cv2

        rows = images.reshape(-1, *images.shape[-2:])
        return cv2.LUT(rows, self._table).reshape(images.shape)


# Torchvision's networks: mean and deviation of ImageNet's RGB values in 0..1.
IMAGENET = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), divisor=255)
# EfficientNet-Lite: (value - 127) / 128.
LITE = Normalisation((127, 127, 127), (128, 128, 128), divisor=1)
