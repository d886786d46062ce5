"""Images as trunks see them: the normalisation of torchvision's networks."""

from __future__ import annotations

import numpy as np

MEAN = np.array([0.485, 0.456, 0.406], np.float32)  # of ImageNet's RGB values in 0..1
STD = np.array([0.229, 0.224, 0.225], np.float32)
_COLOURS = np.arange(256, dtype=np.uint8)[:, None, None].repeat(3, axis=2)
# The normalised value of each colour value, per channel.
_NORMALISED = (_COLOURS * (1 / 255 / STD) - MEAN / STD).astype(np.float32, copy=False)


def normalise(image: np.ndarray) -> np.ndarray:
    """Normalise an image: ``(image / 255 - MEAN) / STD`` per channel, so that 0 is the mean colour of ImageNet.

    Args:
        image: RGB uint8 ``(H, W, 3)``.

    Returns:
        float32 ``(H, W, 3)``.

    Examples:
        >>> print(normalise(np.full((1, 1, 3), 255, np.uint8)).round(3))
        [[[2.249 2.429 2.64 ]]]
    """
    import cv2

    return cv2.LUT(image, _NORMALISED)
