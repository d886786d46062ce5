"""Backbones: a trunk of conv layers (:mod:`sppdet.trunks`) with its weights, run once per picture and scale.

Stride and first-cell centre are derived from the layers by :func:`cell_grid`, so that another network or cut needs no
table.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import fx, nn

from sppdet.errors import SppdetError
from sppdet.regions import CellGrid, scaled_size
from sppdet.trunks import build_trunk

MEAN = np.array([0.485, 0.456, 0.406], np.float32)  # torchvision's, RGB in 0..1
STD = np.array([0.229, 0.224, 0.225], np.float32)
_COLOURS = np.arange(256, dtype=np.uint8)[:, None, None].repeat(3, axis=2)
# What each level of each channel becomes.
_NORMALISED = (_COLOURS * (1 / 255 / STD) - MEAN / STD).astype(np.float32, copy=False)
_MIN_INPUT = 64  # pixels a side; smaller pictures are padded, or the pools of a trunk would have nothing left


def load_weights(trunk: nn.Module, name: str, weights: str) -> None:
    """Fill ``trunk`` from ``imagenet``, ``random`` (leaves it), or a file of a state_dict (.pth or .safetensors).

    The file may hold the whole torchvision network or the trunk alone.
    """
    if weights == "random":
        return
    state = network_state(name, weights)
    wanted = trunk.state_dict()
    misfits = [key for key in wanted if key not in state or state[key].shape != wanted[key].shape]
    misfits = [key for key in misfits if not key.endswith("num_batches_tracked")]
    if misfits:
        raise SppdetError(
            f"backbone.weights: {weights} does not fit {name}: {len(misfits)} of {len(wanted)} tensors are missing "
            f"or of another shape (first: {misfits[0]}); give weights of {name} or set backbone.name"
        )
    trunk.load_state_dict({key: state.get(key, wanted[key]) for key in wanted})


def network_state(name: str, weights: str) -> dict[str, torch.Tensor]:
    """The state_dict that ``imagenet`` or a file stands for: of the whole network, or what of it a file holds."""
    return _imagenet_state(name) if weights == "imagenet" else _file_state(Path(weights))


def _imagenet_state(name: str) -> dict:
    if name == "small":
        raise SppdetError("backbone.weights: there are no imagenet weights of 'small'; use pretrain, random or a file")
    from torchvision.models import get_model_weights  # takes longer to import than torch

    try:
        return get_model_weights(name).DEFAULT.get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError) as error:
        raise SppdetError(
            f"backbone.weights: the download of torchvision's {name} weights failed ({error}); "
            "give a file: backbone.weights=PATH"
        ) from None


def _file_state(path: Path) -> dict:
    if not path.is_file():
        raise SppdetError(f"backbone.weights: {path} does not exist; give a file, imagenet or random")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise many kinds; all mean the same to the user
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise SppdetError(f"backbone.weights: {path} cannot be read as a state_dict ({reason})") from None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise SppdetError(f"backbone.weights: {path} is not a state_dict (names to tensors)")
    return state


def weights_digest(trunk: nn.Module) -> str:
    """16 hexadecimal digits of all weights, for the key of what they compute."""
    digest = hashlib.blake2b(digest_size=8)
    for key, value in sorted(trunk.state_dict().items()):
        if not key.endswith("num_batches_tracked"):
            digest.update(key.encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def cell_grid(trunk: nn.Module) -> CellGrid:
    """Stride and first-cell centre of a trunk's output, from its conv and pool layers.

    Each layer of kernel k, stride s, padding p and dilation d moves the first centre by ((k - 1) d / 2 - p) strides
    of its input and multiplies the stride by s. Branches that meet (residual sums, Fire's concatenation) must agree.
    """
    return list(_cell_grids(trunk).values())[-1]


def _cell_grids(trunk: nn.Module) -> dict[str, CellGrid]:
    """The output cells of every step of a trunk, in the order they run; a layer's step is called by its name."""
    grids: dict[fx.Node, CellGrid] = {}
    traced = fx.symbolic_trace(trunk)
    modules = dict(traced.named_modules())
    for node in traced.graph.nodes:
        inputs = {grids[parent] for parent in node.all_input_nodes} or {CellGrid(1, 0.0)}
        if len(inputs) != 1:
            raise ValueError(f"branches of different stride or centre meet at {node.name}: {inputs}")
        grid = inputs.pop()
        stride, centre = grid.stride, grid.centre
        layer = modules.get(node.target) if node.op == "call_module" else None
        if isinstance(layer, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)):
            kernel, step, padding, dilation = (
                value[0] if isinstance(value, tuple) else value
                for value in (layer.kernel_size, layer.stride, layer.padding, getattr(layer, "dilation", 1))
            )
            centre += stride * ((kernel - 1) * dilation / 2 - padding)
            stride *= step
        grids[node] = CellGrid(stride, centre)
    return {str(node.target): grid for node, grid in grids.items()}


def freeze(trunk: nn.Module, stride: int) -> None:
    """Let the layers train whose output cells are more than ``stride`` pixels apart, and fix those before them.

    Fast R-CNN (arXiv 1504.08083, section 4.5) fixes conv1 and conv2 of VGG16, its layers up to stride 2, and
    learns nearly as well as with conv2. 0 trains every layer.
    """
    grids = _cell_grids(trunk)
    for name, layer in trunk.named_modules():
        for parameter in layer.parameters(recurse=False):
            parameter.requires_grad_(grids[name].stride > stride)


def normalise(image: np.ndarray) -> np.ndarray:
    """An RGB uint8 picture as trunks see it: float32 ``(H, W, 3)``, in which 0 is the mean colour of ImageNet."""
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
    """A trunk ready to be run on pictures."""

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
    def half_behind(self) -> bool:
        """Whether those of what follows its maps are, too: that is the processor's work, wherever the network runs."""
        return self.half and _native_on_cpu()

    def settings(self) -> dict:
        """What a map depends on, apart from the picture and the scale."""
        return {
            "backbone": self.name,
            "weights": weights_digest(self.trunk),
            "precision": self.precision,
            "format": 1,
        }

    def __call__(self, image: np.ndarray, factor: float) -> np.ndarray:
        """The conv map of an RGB uint8 picture enlarged by ``factor``: float32 ``(H, W, C)``, contiguous."""
        x = self.pixels(image, factor).to(self.device, memory_format=torch.channels_last)
        return self.run(x)[0].permute(1, 2, 0).float().cpu().contiguous().numpy()

    def pixels(self, image: np.ndarray, factor: float) -> torch.Tensor:
        """What the trunk sees of an RGB uint8 picture enlarged by ``factor``: float32 ``(1, 3, H, W)``."""
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
