"""Backbones: a trunk of conv layers (`sppdet.networks.trunks`) with its weights, run once per image and scale.

A frozen trunk runs in PyTorch or in ONNX Runtime (`sppdet.networks.onnx_trunk`). Their float32 feature maps agree
within float rounding, far within the half precision or the 8 bits of the store of maps, so the engine is part of no
key. The precision is: a map in bfloat16 or computed in 8-bit integers (ONNX Runtime alone,
`sppdet.networks.onnx_int8`) differs from one in float32 by several percent.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from sppdet.data import scaled_size
from sppdet.networks.normalisation import Normalisation
from sppdet.networks.onnx_trunk import OnnxTrunk, has_onnxruntime
from sppdet.networks.trunk_output import WHOLE, CellGrid, Cut
from sppdet.networks.weights import load_weights, weights_digest
from sppdet.utils import SppdetError, multiplies_bfloat16

if TYPE_CHECKING:  # a trunk in ONNX Runtime runs without torch
    import torch
    from torch import nn

_MIN_INPUT = 64  # pixels per side; smaller images are padded, or the pools of a trunk would have nothing left


def resolve_device(device: str) -> torch.device:
    """Return the device of a name; ``auto`` is CUDA where this machine has it, else the CPU.

    Raises:
        SppdetError: an unknown name, or CUDA on a machine without it.

    Examples:
        >>> resolve_device("cpu")
        device(type='cpu')
    """
    import torch

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
    """Return ``float32``, ``bfloat16`` or ``int8``; ``auto`` is bfloat16 where the device multiplies it natively.

    Examples:
        >>> resolve_precision("bfloat16", resolve_device("cpu"))
        'bfloat16'
    """
    if precision != "auto":
        return precision
    if device.type == "cuda":
        import torch

        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    return "bfloat16" if multiplies_bfloat16() else "float32"


def _suits_onnxruntime(trunk: nn.Module, device: torch.device, precision: str) -> bool:
    """Whether engine ``auto`` is ONNX Runtime for a trunk."""
    if device.type != "cpu" or not has_onnxruntime():
        return False
    return (
        precision == "int8"
        or resolve_precision(precision, device) == "float32"
        or (precision == "auto" and _has_depthwise(trunk))
    )


def precision_of_fixed(name: str, weights: str, device: str, precision: str, engine: str) -> str:
    """Return the precision in which a trunk is to run that is not trained, or not any more.

    That is what was asked for, but ``int8`` in place of ``auto`` where both was measured: for EfficientNet-Lite with
    its ImageNet weights, or trained end to end from them, on an x86 CPU. There it is as accurate as float32 and takes
    0.4 to 0.6 of the time (docs/experiments/engines.md).

    Args:
        name: the network.
        weights: the weights that it has, or that its training began with.
        device: ``auto``, ``cpu`` or ``cuda``.
        precision: ``auto``, ``float32``, ``bfloat16`` or ``int8``.
        engine: ``auto``, ``torch`` or ``onnxruntime``.
    """
    if (weights, precision, engine) != ("imagenet", "auto", "auto") or not name.startswith("efficientnet_lite"):
        return precision
    on_x86 = platform.machine() in ("x86_64", "AMD64")
    return "int8" if on_x86 and has_onnxruntime() and is_cpu(device) else precision


def _has_depthwise(trunk: nn.Module) -> bool:
    """Whether a trunk has depthwise convolutions, or others of several groups."""
    from torch import nn

    return any(isinstance(layer, nn.Conv2d) and layer.groups > 1 for layer in trunk.modules())


def is_cpu(device: str) -> bool:
    """Whether `resolve_device` would return the CPU; loads torch only where there may be a GPU.

    Examples:
        >>> is_cpu("cpu"), is_cpu("cuda")
        (True, False)
    """
    if device == "auto":
        return not _may_have_gpu() or resolve_device(device).type == "cpu"
    return device == "cpu"


def _may_have_gpu() -> bool:
    """Whether this machine has a driver that torch might use: NVIDIA's library, or AMD's device file."""
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return os.path.exists("/dev/kfd")
    return True


def _ready(trunk: nn.Module, device: torch.device) -> nn.Module:
    """Return a trunk in evaluation mode on a device, with fixed weights."""
    import torch

    trunk = trunk.eval().requires_grad_(False).to(device)
    return trunk.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in its signature


@dataclass
class Backbone:
    """A trunk ready to be run on images.

    Attributes:
        name: the network, see `sppdet.networks.trunks.NETWORKS`.
        make_trunk: returns the conv layers with their weights, in evaluation mode on the device.
        grid: where the cells of a feature map lie in the trunk's input.
        layer_channels: channels of a feature map, those of each layer of ``cut``.
        device_name: where the trunk runs, as torch names it.
        precision: ``float32``, ``bfloat16`` or ``int8``.
        cut: where the trunk ends.
        onnx: the trunk in ONNX Runtime, which then computes the feature maps; None where PyTorch does.

    Examples:
        >>> backbone = Backbone.create("small", "random", device="cpu", precision="float32")
        >>> backbone(np.zeros((96, 128, 3), np.uint8), factor=1.0).shape  # (H, W, C), a cell per 16 pixels
        (6, 8, 128)
    """

    name: str
    make_trunk: Callable[[], nn.Module]
    grid: CellGrid
    layer_channels: tuple[int, ...]
    device_name: str
    precision: str
    cut: Cut = WHOLE
    onnx: OnnxTrunk | None = None

    @classmethod
    def create(
        cls,
        name: str,
        weights: str,
        device: str = "auto",
        precision: str = "auto",
        seed: int = 0,
        cut: Cut = WHOLE,
        engine: str = "torch",
    ) -> Backbone:
        """Build a network and load its weights.

        Args:
            name: the network.
            weights: ``imagenet``, ``random`` or a file, see `sppdet.networks.weights.load_weights`.
            device: ``auto``, ``cpu`` or ``cuda``.
            precision: ``auto``, ``float32``, ``bfloat16`` or ``int8``; for ``auto`` see `precision_of_fixed`, then
                `resolve_precision`.
            seed: of random weights.
            cut: where the trunk ends.
            engine: ``torch``, ``onnxruntime``, or ``auto``, see `wrap`.

        Raises:
            SppdetError: an unknown network, layer or device, or weights that do not fit.
        """
        from sppdet.networks.trunks import build_trunk

        trunk = build_trunk(name, seed, cut)
        load_weights(trunk, name, weights)
        precision = precision_of_fixed(name, weights, device, precision, engine)
        return cls.wrap(name, trunk, device, precision, cut, engine)

    @classmethod
    def wrap(
        cls,
        name: str,
        trunk: nn.Module,
        device: str = "auto",
        precision: str = "auto",
        cut: Cut = WHOLE,
        engine: str = "torch",
    ) -> Backbone:
        """Make a trunk ready: move it to the device, fix its weights, and measure its cells and channels.

        Args:
            name: the network.
            trunk: the conv layers with their weights.
            device: ``auto``, ``cpu`` or ``cuda``.
            precision: ``auto``, ``float32``, ``bfloat16`` or ``int8``.
            cut: where the trunk ends.
            engine: ``torch``, ``onnxruntime``, or ``auto``: ONNX Runtime on a CPU where it is installed, knows the
                layers and is not slower, which is wherever the trunk would multiply in float32, and on all CPUs for
                trunks of depthwise convolutions (docs/experiments/engines.md). A trunk that is to be
                trained needs ``torch``.

        Raises:
            SppdetError: an unknown device, ``onnxruntime`` for a trunk that it does not run, or ``int8`` for one that
                has no form in 8-bit integers, or without ONNX Runtime.
        """
        import torch

        from sppdet.networks.cell_grid import cell_grid
        from sppdet.networks.cut import layer_channels

        target = resolve_device("cpu" if engine == "onnxruntime" and device == "auto" else device)
        grid = cell_grid(trunk)
        trunk = _ready(trunk, target)
        with torch.inference_mode():
            x = torch.zeros(1, 3, _MIN_INPUT, _MIN_INPUT, device=target)
            channels = layer_channels(trunk, x) if len(cut.layers) > 1 else (trunk(x).shape[1],)
        backbone = cls(name, lambda: trunk, grid, channels, str(target), resolve_precision(precision, target), cut)
        if engine == "onnxruntime" or (engine == "auto" and _suits_onnxruntime(trunk, target, precision)):
            from sppdet.networks.onnx_export import UnsupportedLayer

            in_onnx = replace(backbone, precision="int8" if precision == "int8" else "float32")
            try:
                return replace(in_onnx, onnx=OnnxTrunk(in_onnx.to_onnx()))
            except UnsupportedLayer as error:
                if precision == "int8":
                    raise SppdetError(f"backbone.precision: {name} in int8: {error}; use auto") from None
                if engine == "onnxruntime":
                    raise SppdetError(f"backbone.engine: {name} in onnxruntime: {error}; use auto or torch") from None
        if precision == "int8":
            raise SppdetError(
                "backbone.precision: int8 is computed by ONNX Runtime on the CPU alone; run 'pip install onnxruntime' "
                "and use device=cpu and backbone.engine=auto, or use backbone.precision=auto"
            )
        return backbone

    @classmethod
    def of_onnx(cls, onnx: OnnxTrunk, restore_trunk: Callable[[], nn.Module]) -> Backbone:
        """Make a backbone of a trunk in ONNX Runtime, without torch.

        Args:
            onnx: the trunk.
            restore_trunk: returns the trunk in torch, if it is ever asked for.
        """

        def make_trunk() -> nn.Module:
            return _ready(restore_trunk(), resolve_device("cpu"))

        return cls(onnx.name, make_trunk, onnx.grid, onnx.layer_channels, "cpu", onnx.precision, onnx.cut, onnx)

    @property
    def channels(self) -> int:
        """C of a feature map."""
        return sum(self.layer_channels)

    @cached_property
    def trunk(self) -> nn.Module:
        """The conv layers with their weights, in evaluation mode on ``device``."""
        return self.make_trunk()

    @cached_property
    def device(self) -> torch.device:
        """Where the trunk runs."""
        return resolve_device(self.device_name)

    @property
    def normalisation(self) -> Normalisation:
        """The normalisation of the trunk's input."""
        if self.onnx:
            return self.onnx.normalisation
        from sppdet.networks.trunks import normalisation_of

        return normalisation_of(self.name)

    def to_onnx(self) -> bytes:
        """Return the trunk as an ONNX model, from which `OnnxTrunk` reads all that this class knows of a trunk."""
        description = {
            "name": self.name,
            "weights": weights_digest(self.trunk),
            "grid": asdict(self.grid),
            "layer_channels": self.layer_channels,
            "cut": self.cut.description(),
            "normalisation": asdict(self.normalisation),
        }
        if self.precision == "int8":
            from sppdet.networks.onnx_int8 import int8_model

            return int8_model(self.trunk, description | {"precision": "int8"})
        from sppdet.networks.onnx_export import onnx_model

        return onnx_model(self.trunk, description)

    @property
    def half(self) -> bool:
        """Whether the trunk multiplies in bfloat16."""
        return self.precision == "bfloat16"

    @cached_property
    def half_in_training(self) -> bool:
        """Whether the trunk is to be trained in bfloat16.

        On a CPU the gradients of depthwise convolutions take twice as long in bfloat16 as in float32
        (docs/experiments/best.md). Results of earlier versions, which were learned in bfloat16 there, stay valid.
        """
        return self.half and not (self.device.type == "cpu" and _has_depthwise(self.trunk))

    @property
    def bfloat16_on_cpu(self) -> bool:
        """Whether the CPU, which works on the feature maps wherever the trunk runs, is to multiply in bfloat16, too."""
        return self.half and multiplies_bfloat16()

    @property
    def device_off_cpu(self) -> str:
        """The name of the device on which feature maps are worked on; empty if it is the CPU."""
        return "" if self.device_name == "cpu" else self.device_name

    def settings(self) -> dict[str, Any]:
        """Return what a feature map depends on, apart from the image and the scale; for keys."""
        return {
            "backbone": self.name,
            "weights": self.onnx.weights if self.onnx else weights_digest(self.trunk),
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
        if self.onnx:
            pixels = self._pixels(image, factor).transpose(2, 0, 1)[None]
            return np.ascontiguousarray(self.onnx(pixels)[0].transpose(1, 2, 0))
        return self.on_device(image, factor).cpu().contiguous().numpy()

    def on_device(self, image: np.ndarray, factor: float) -> torch.Tensor:
        """Compute what a call computes in PyTorch, as a tensor ``(H, W, C)`` on the trunk's device."""
        import torch

        x = self.pixels(image, factor).to(self.device, memory_format=torch.channels_last)
        return self.run(x)[0].permute(1, 2, 0).float()

    def pixels(self, image: np.ndarray, factor: float) -> torch.Tensor:
        """Enlarge and normalise an image for the trunk.

        Args:
            image: RGB uint8 ``(H, W, 3)``.
            factor: enlargement.

        Returns:
            float32 ``(1, 3, H, W)`` of the enlarged image; small images are padded to 64 pixels per side.
        """
        import torch

        return torch.from_numpy(self._pixels(image, factor)).permute(2, 0, 1)[None]

    def _pixels(self, image: np.ndarray, factor: float) -> np.ndarray:
        """Return what `pixels` does as an array ``(H, W, 3)``."""
        import cv2

        height, width = image.shape[:2]
        size = scaled_size(width, height, factor)
        # Bilinear without antialiasing enlarges as the original programs do; shrinking by area spares large
        # photographs the aliasing that bilinear would bring.
        how = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
        scaled = image if factor == 1 else cv2.resize(image, size, interpolation=how)
        normalised = self.normalisation.normalise(scaled)
        missing = [max(0, _MIN_INPUT - side) for side in normalised.shape[:2]]
        return np.pad(normalised, ((0, missing[0]), (0, missing[1]), (0, 0))) if any(missing) else normalised

    def run(self, x: torch.Tensor) -> torch.Tensor:
        """Run the trunk on pixels ``(B, 3, H, W)`` that are on its device; returns ``(B, C, H, W)`` of the map.

        Raises:
            SppdetError: the GPU has too little memory.
        """
        import torch

        if self.onnx:
            return torch.from_numpy(self.onnx(x.numpy()))
        try:
            with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
                return self.trunk(x)
        except torch.cuda.OutOfMemoryError:
            raise SppdetError(
                f"device: no GPU memory left for {len(x)} x {x.shape[3]} x {x.shape[2]} pixels; "
                "use fewer or smaller regions.scales, a smaller regions.max_side, or device=cpu"
            ) from None
