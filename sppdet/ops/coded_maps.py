"""Feature maps of codes: a byte per number, and for each channel of a map what a code stands for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CODES = {"uint8": 256, "uint6": 64}  # how many there are, by the setting pooling.map_type


@dataclass(frozen=True, eq=False)
class CodedMap:
    """A feature map of codes; a code of channel c stands for ``offset[c] + scale[c] * code``.

    Larger codes stand for larger numbers, so codes may be compared in place of numbers.

    Attributes:
        codes: uint8 ``(H, W, C)``, contiguous.
        scale: float32 ``(C,)``, 0 for a channel of one value.
        offset: float32 ``(C,)``.
    """

    codes: NDArray[np.uint8]
    scale: NDArray[np.float32]
    offset: NDArray[np.float32]

    @property
    def shape(self) -> tuple[int, ...]:
        """H, W and C."""
        return self.codes.shape

    def decoded(self) -> NDArray[np.float32]:
        """Return the numbers that the codes stand for: float32 ``(H, W, C)``."""
        return self.codes * self.scale + self.offset

    def part(self, channels: slice, weight: float = 1.0) -> CodedMap:
        """Return some channels, with numbers multiplied by a positive ``weight``."""
        factor = np.float32(weight)
        codes = np.ascontiguousarray(self.codes[..., channels])
        return CodedMap(codes, self.scale[channels] * factor, self.offset[channels] * factor)


def round_map(feature_map: NDArray[np.float32], map_type: str) -> NDArray[np.float32] | CodedMap:
    """Return a feature map ``(H, W, C)`` as ``pooling.map_type`` wants it: of codes, or as it is for ``float16``."""
    return encode_map(feature_map, CODES[map_type]) if map_type in CODES else feature_map


def encode_map(feature_map: NDArray[np.float32], codes: int = 256) -> CodedMap:
    """Round the numbers of a feature map to codes; a channel's codes span its lowest to highest number.

    Args:
        feature_map: ``(H, W, C)``.
        codes: how many codes a channel has, at most 256.

    Examples:
        >>> coded_map = encode_map(np.array([[[-1.0, 5.0], [0.25, 5.0], [1.55, 5.0]]], np.float32))
        >>> coded_map.codes[..., 0].tolist()
        [[0, 125, 255]]
        >>> coded_map.decoded()[..., 1].tolist()
        [[5.0, 5.0, 5.0]]
    """
    lowest, highest = feature_map.min(axis=(0, 1)), feature_map.max(axis=(0, 1))
    scale = (highest - lowest) / np.float32(codes - 1)
    steps = (feature_map - lowest) / np.where(scale > 0, scale, np.float32(1))
    # Rounding of the quotient may exceed the highest code.
    return CodedMap(np.minimum(np.rint(steps), codes - 1).astype(np.uint8), scale, lowest)
