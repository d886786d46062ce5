"""Backbones: a trunk of conv layers (`sppdet.networks.trunks`) with its weights, run once per image and scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from sppdet.data import scaled_size
from sppdet.networks.cell_grid import CellGrid, cell_grid
from sppdet.networks.cut import WHOLE, Cut, layer_channels
from sppdet.networks.normalisation import Normalisation
from sppdet.networks.trunks import build_trunk, normalisation_of
from sppdet.networks.weights import load_weights, weights_digest
from sppdet.utils import SppdetError

_MIN_INPUT = 64  # pixels per side; smaller images are padded, or the pools of a trunk would have nothing left


def resolve_device(device: str) -> torch.device:
    """Return the device of a name; ``auto`` is CUDA where this machine has it, else the CPU.

    Raises:
        SppdetError: an unknown name, or CUDA on a machine without it.

    Examples:
        >>> resolve_device("cpu")
        device(type='cpu')
    """
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
    """Return ``float32`` or ``bfloat16``; ``auto`` is bfloat16 where the device multiplies it natively.

    Examples:
        >>> resolve_precision("bfloat16", torch.device("cpu"))
        'bfloat16'
    """
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    return "bfloat16" if _native_on_cpu() else "float32"


def _native_on_cpu() -> bool:
    """Whether the CPU multiplies bfloat16 natively; PyTorch emulates it on other CPUs."""
    native = (getattr(torch.cpu, f"_is_{name}_supported", lambda: False) for name in ("amx_tile", "avx512_bf16"))
    return any(supported() for supported in native)


@dataclass
class Backbone:
    """A trunk ready to be run on images.

    Attributes:
        name: the network, see `sppdet.networks.trunks.NETWORKS`.
        trunk: the conv layers with their weights, in evaluation mode on ``device``.
        grid: where the cells of a feature map lie in the trunk's input.
        layer_channels: channels of a feature map, those of each layer of ``cut``.
        device: where the trunk runs.
        precision: ``float32`` or ``bfloat16``.
        cut: where the trunk ends.

    Examples:
        >>> backbone = Backbone.create("small", "random", device="cpu", precision="float32")
        >>> backbone(np.zeros((96, 128, 3), np.uint8), factor=1.0).shape  # (H, W, C), a cell per 16 pixels
        (6, 8, 128)
    """

    name: str
    trunk: nn.Module
    grid: CellGrid
    layer_channels: tuple[int, ...]
    device: torch.device
    precision: str
    cut: Cut = WHOLE

    @classmethod
    def create(
        cls, name: str, weights: str, device: str = "auto", precision: str = "auto", seed: int = 0, cut: Cut = WHOLE
    ) -> Backbone:
        """Build a network and load its weights.

        Args:
            name: the network.
            weights: ``imagenet``, ``random`` or a file, see `sppdet.networks.weights.load_weights`.
            device: ``auto``, ``cpu`` or ``cuda``.
            precision: ``auto``, ``float32`` or ``bfloat16``.
            seed: of random weights.
            cut: where the trunk ends.

        Raises:
            SppdetError: an unknown network, layer or device, or weights that do not fit.
        """
        trunk = build_trunk(name, seed, cut)
        load_weights(trunk, name, weights)
        return cls.wrap(name, trunk, device, precision, cut)

    @classmethod
    def wrap(
        cls, name: str, trunk: nn.Module, device: str = "auto", precision: str = "auto", cut: Cut = WHOLE
    ) -> Backbone:
        """Make a trunk ready: move it to the device, fix its weights, and measure its cells and channels."""
        target = resolve_device(device)
        grid = cell_grid(trunk)
        trunk = trunk.eval().requires_grad_(False).to(target)
        trunk = trunk.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in its signature
        with torch.inference_mode():
            x = torch.zeros(1, 3, _MIN_INPUT, _MIN_INPUT, device=target)
            channels = layer_channels(trunk, x) if len(cut.layers) > 1 else (trunk(x).shape[1],)
        return cls(name, trunk, grid, channels, target, resolve_precision(precision, target), cut)

    @property
    def channels(self) -> int:
        """C of a feature map."""
        return sum(self.layer_channels)

    @property
    def normalisation(self) -> Normalisation:
        """The normalisation of the trunk's input."""
        return normalisation_of(self.name)

    @property
    def half(self) -> bool:
        """Whether the trunk multiplies in bfloat16."""
        return self.precision == "bfloat16"

    @property
    def bfloat16_on_cpu(self) -> bool:
        """Whether the CPU, which works on the feature maps wherever the trunk runs, is to multiply in bfloat16, too."""
        return self.half and _native_on_cpu()

    def settings(self) -> dict[str, Any]:
        """Return what a feature map depends on, apart from the image and the scale; for keys."""
        return {
            "backbone": self.name,
            "weights": weights_digest(self.trunk),
            "precision": self.precision,
            "format": 1,
            **self.cut.description(),
        }

    def description(self) -> dict[str, Any]:
        """Return what a model file holds of the backbone beside its weights."""
        return {"name": self.name, "precision": self.precision, **self.cut.description()}

    def __call__(self, image: np.ndarray, factor: float) -> np.ndarray:
        """Compute the feature map of an enlarged image.

        Args:
            image: RGB uint8 ``(H, W, 3)``.
            factor: enlargement.

        Returns:
            float32 ``(H, W, C)`` with the map's H and W, contiguous.
        """
        x = self.pixels(image, factor).to(self.device, memory_format=torch.channels_last)
        return self.run(x)[0].permute(1, 2, 0).float().cpu().contiguous().numpy()

    def pixels(self, image: np.ndarray, factor: float) -> torch.Tensor:
        """Enlarge and normalise an image for the trunk.

        Args:
            image: RGB uint8 ``(H, W, 3)``.
            factor: enlargement.

        Returns:
            float32 ``(1, 3, H, W)`` of the enlarged image; small images are padded to 64 pixels per side.
        """
        import cv2

        height, width = image.shape[:2]
        size = scaled_size(width, height, factor)
        # Bilinear without antialiasing enlarges as the original programs do; shrinking by area spares large
        # photographs the aliasing that bilinear would bring.
        how = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
        scaled = image if factor == 1 else cv2.resize(image, size, interpolation=how)
        x = torch.from_numpy(self.normalisation.normalise(scaled)).permute(2, 0, 1)[None]
        return nn.functional.pad(x, (0, max(0, _MIN_INPUT - size[0]), 0, max(0, _MIN_INPUT - size[1])))

    def run(self, x: torch.Tensor) -> torch.Tensor:
        """Run the trunk on pixels ``(B, 3, H, W)`` that are on its device; returns ``(B, C, H, W)`` of the map.

        Raises:
            SppdetError: the GPU has too little memory.
        """
        try:
            with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
                return self.trunk(x)
        except torch.cuda.OutOfMemoryError:
            raise SppdetError(
                f"device: no GPU memory left for {len(x)} x {x.shape[3]} x {x.shape[2]} pixels; "
                "use fewer or smaller regions.scales, a smaller regions.max_side, or device=cpu"
            ) from None
