"""Backbones: a trunk of conv layers (:mod:`sppdet.networks.trunks`) with its weights, run once per image and scale.

Stride and first-cell centre are derived from the layers by :func:`cell_grid`, so that another network or cut needs no
table.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from sppdet.data import scaled_size
from sppdet.networks.cell_grid import CellGrid, cell_grid
from sppdet.networks.trunks import build_trunk
from sppdet.networks.weights import load_weights, weights_digest
from sppdet.utils import SppdetError

MEAN = np.array([0.485, 0.456, 0.406], np.float32)  # torchvision's, RGB in 0..1
STD = np.array([0.229, 0.224, 0.225], np.float32)
_COLOURS = np.arange(256, dtype=np.uint8)[:, None, None].repeat(3, axis=2)
# What each level of each channel becomes.
_NORMALISED = (_COLOURS * (1 / 255 / STD) - MEAN / STD).astype(np.float32, copy=False)
_MIN_INPUT = 64  # pixels a side; smaller images are padded, or the pools of a trunk would have nothing left


def normalise(image: np.ndarray) -> np.ndarray:
    """An RGB uint8 image as trunks see it: float32 ``(H, W, 3)``, in which 0 is the mean colour of ImageNet."""
    import cv2

    return cv2.LUT(image, _NORMALISED)


def resolve_device(device: str) -> torch.device:
    """``auto`` is CUDA when there, else the CPU."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError:
        raise SppdetError(f"device: '{device}' is unknown; use auto, cpu or cuda") from None
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise SppdetError(f"device: '{device}' was asked for, but this machine has no usable CUDA; use device=cpu")
    return resolved


def resolve_precision(precision: str, device: torch.device) -> str:
    """``auto`` is bfloat16 where the processor multiplies it natively, else float32."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    return "bfloat16" if _native_on_cpu() else "float32"


def _native_on_cpu() -> bool:
    """Whether the processor multiplies bfloat16, rather than having it emulated."""
    native = (getattr(torch.cpu, f"_is_{name}_supported", lambda: False) for name in ("amx_tile", "avx512_bf16"))
    return any(supported() for supported in native)


@dataclass
class Backbone:
    """A trunk ready to be run on images."""

    name: str
    trunk: nn.Module
    grid: CellGrid
    channels: int
    device: torch.device
    precision: str

    @classmethod
    def create(cls, name: str, weights: str, device: str = "auto", precision: str = "auto", seed: int = 0):
        trunk = build_trunk(name, seed)
        load_weights(trunk, name, weights)
        return cls.wrap(name, trunk, device, precision)

    @classmethod
    def wrap(cls, name: str, trunk: nn.Module, device: str = "auto", precision: str = "auto"):
        place = resolve_device(device)
        grid = cell_grid(trunk)
        trunk = trunk.eval().requires_grad_(False).to(place, memory_format=torch.channels_last)
        with torch.inference_mode():
            channels = trunk(torch.zeros(1, 3, _MIN_INPUT, _MIN_INPUT, device=place)).shape[1]
        return cls(name, trunk, grid, channels, place, resolve_precision(precision, place))

    @property
    def half(self) -> bool:
        """Whether its products are of bfloat16."""
        return self.precision == "bfloat16"

    @property
    def bfloat16_on_cpu(self) -> bool:
        """Whether those of what follows its maps are, too: that is the processor's work, wherever the network runs."""
        return self.half and _native_on_cpu()

    def settings(self) -> dict:
        """What a map depends on, apart from the image and the scale."""
        return {
            "backbone": self.name,
            "weights": weights_digest(self.trunk),
            "precision": self.precision,
            "format": 1,
        }

    def __call__(self, image: np.ndarray, factor: float) -> np.ndarray:
        """The conv map of an RGB uint8 image enlarged by ``factor``: float32 ``(H, W, C)``, contiguous."""
        x = self.pixels(image, factor).to(self.device, memory_format=torch.channels_last)
        return self.run(x)[0].permute(1, 2, 0).float().cpu().contiguous().numpy()

    def pixels(self, image: np.ndarray, factor: float) -> torch.Tensor:
        """What the trunk sees of an RGB uint8 image enlarged by ``factor``: float32 ``(1, 3, H, W)``."""
        import cv2

        height, width = image.shape[:2]
        size = scaled_size(width, height, factor)
        # Bilinear without antialiasing enlarges as the originals do; shrinking by area spares large photographs
        # the aliasing that it would bring.
        how = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
        scaled = image if factor == 1 else cv2.resize(image, size, interpolation=how)
        x = torch.from_numpy(normalise(scaled)).permute(2, 0, 1)[None]
        return nn.functional.pad(x, (0, max(0, _MIN_INPUT - size[0]), 0, max(0, _MIN_INPUT - size[1])))

    def run(self, x: torch.Tensor) -> torch.Tensor:
        """The trunk's output ``(B, C, H, W)`` on pixels ``(B, 3, H, W)`` of its device."""
        try:
            with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
                return self.trunk(x)
        except torch.cuda.OutOfMemoryError:
            raise SppdetError(
                f"device: no GPU memory left for {len(x)} x {x.shape[3]} x {x.shape[2]} pixels; "
                "use fewer or smaller regions.scales, a smaller regions.max_side, or device=cpu"
            ) from None
