"""SPP-net as a classifier (He et al. 2014, section 3): the network, the views it is tested on, and the saved model.

Names: B images, K classes, C channels, D features of the pyramid, n views.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import cv2
import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from sppdet.config import ViewSettings
from sppdet.data import LabelledImages, read_image, scaled_size, to_rgb
from sppdet.features import project, scale_factor
from sppdet.networks import Backbone, Head, build_trunk
from sppdet.ops import SpatialPyramidPooling
from sppdet.utils import SppdetError, atomic_write, parallel_map, read_json, write_json

_FORMAT = 1
_UNBOUNDED = 10**9  # no limit to the longer side


class SPPClassifier(nn.Module):
    """Trunk, pyramid, fc6 and fc7 where there are ``units`` of them, and one linear layer.

    The pyramid's vector is multiplied by the buffer ``scale``, which training sets so that one learning rate fits
    every backbone.
    """

    def __init__(
        self,
        trunk: nn.Module,
        channels: int,
        classes: int,
        levels: Sequence[int],
        dropout: float = 0.3,
        units: int = 0,
    ):
        super().__init__()
        self.trunk = trunk
        self.pool = SpatialPyramidPooling(levels)
        inputs = self.pool.output_dim(channels)
        self.register_buffer("scale", torch.ones(()))
        self.head = Head(inputs, units, "fc7", dropout=dropout) if units else nn.Dropout(dropout)
        self.classifier = nn.Linear(units or inputs, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images ``(B, 3, H, W)`` of any size -> ``(B, K)`` logits."""
        return self.score(self.pool(self.trunk(x)))

    def train(self, mode: bool = True) -> SPPClassifier:
        """Batch norm whose weights are fixed keeps its statistics too."""
        super().train(mode)
        for layer in self.trunk.modules():
            if isinstance(layer, nn.BatchNorm2d) and not layer.weight.requires_grad:
                layer.eval()
        return self

    def score(self, pooled: torch.Tensor) -> torch.Tensor:
        """Vectors of the pyramid ``(B, D)`` -> ``(B, K)`` logits."""
        return self.classifier(self.head(pooled * self.scale))


@dataclass
class Classifier:
    """A trained classifier.

    Attributes:
        classes: K names.
        backbone: runs the trunk of ``network``.
        test: what of an image is looked at, with a number for every setting: ``crop``, the central ``view`` x
            ``view`` pixels of the image at ``side``; ``full``, all of it at ``side``; ``multi``, the mean over the
            views of the maps of all ``scales`` (:func:`view_windows`).
    """

    classes: tuple[str, ...]
    backbone: Backbone
    network: SPPClassifier
    test: ViewSettings

    def predict(self, image) -> np.ndarray:
        """``(K,)`` probabilities of an image: a path, a Pillow image, or an RGB uint8 array ``(H, W, 3)``."""
        image = to_rgb(image)
        pooled = np.concatenate(list(self._pooled(image)))
        with torch.inference_mode():
            logits = self.network.score(torch.from_numpy(pooled).to(self.backbone.device))
            return logits.float().softmax(1).mean(0).cpu().numpy()

    def _pooled(self, image: np.ndarray) -> Iterator[np.ndarray]:
        """Pyramids ``(n, D)`` of the views, map by map."""
        if self.test.views == "crop":
            yield self._windows(centre(resized(image, self.test.side), self.test.view))
        elif self.test.views == "full":
            yield self._windows(resized(image, self.test.side))
        else:
            for scale in self.test.scales:
                scaled = resized(image, scale)
                windows = view_windows(scaled.shape[1], scaled.shape[0], self.test.view)
                for turned in (scaled, np.ascontiguousarray(scaled[:, ::-1])):
                    yield self._windows(turned, windows)

    def _windows(self, image: np.ndarray, windows: np.ndarray | None = None) -> np.ndarray:
        """Pyramids ``(n, D)`` of windows ``(n, 4)`` of an image, or ``(1, D)`` of the whole, from one conv map."""
        conv_map = self.backbone(image, 1.0)
        height, width = conv_map.shape[:2]
        cells = np.array([[0, 0, width, height]])
        if windows is not None:
            # A view's cells are those whose centres lie in it (appendix A): as many as a crop's map has, or one off.
            grid = self.backbone.grid
            size = (image.shape[1], image.shape[0])
            cells = project(windows, size, 1.0, grid, (width, height), shrink=(grid.stride - 1) / 2)
        x = torch.from_numpy(conv_map).permute(2, 0, 1)[None]
        return torch.cat([self.network.pool(x[..., y1:y2, x1:x2]) for x1, y1, x2, y2 in cells]).numpy()

    def save(self, folder: str | Path, key: str = "") -> None:
        """Write ``classifier.json`` and ``classifier.safetensors`` into ``folder``; ``key`` says what made it."""
        folder = Path(folder)
        head = self.network.head
        description = {
            "format": _FORMAT,
            "key": key,
            "classes": list(self.classes),
            "backbone": {"name": self.backbone.name, "precision": self.backbone.precision},
            "levels": list(self.network.pool.levels),
            "units": head.units if isinstance(head, Head) else 0,
            "test": asdict(self.test),
        }
        tensors = {name: value.cpu().contiguous() for name, value in self.network.state_dict().items()}
        atomic_write(folder / "classifier.safetensors", lambda path: save_file(tensors, path))
        write_json(folder / "classifier.json", description)


def load_classifier(folder: str | Path, device: str = "auto") -> Classifier:
    """The classifier saved in ``folder``, such as ``runs/classifier``."""
    folder = Path(folder)
    if not (folder / "classifier.json").is_file():
        raise SppdetError(f"{folder}: no classifier (classifier.json) here; sppdet classify train makes one")
    description = read_json(folder / "classifier.json")
    if description.get("format") != _FORMAT:
        raise SppdetError(f"{folder}/classifier.json: format {description.get('format')}, this version reads {_FORMAT}")
    path = folder / "classifier.safetensors"
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise SppdetError(f"{path}: cannot be read ({error}); train again") from None
    name, precision = description["backbone"]["name"], description["backbone"]["precision"]
    # bfloat16 only if this machine multiplies it natively: elsewhere it would be slower than float32.
    backbone = Backbone.wrap(name, build_trunk(name), device, "auto" if precision == "bfloat16" else precision)
    classes, levels, units = description["classes"], description["levels"], description["units"]
    network = SPPClassifier(backbone.trunk, backbone.channels, len(classes), levels, units=units)
    try:
        network.load_state_dict(tensors)
    except RuntimeError:
        raise SppdetError(f"{path}: its weights do not fit this version's {name}; train again") from None
    network.eval().requires_grad_(False).to(backbone.device)
    return Classifier(tuple(classes), backbone, network, ViewSettings(**description["test"]))


def resized(image: np.ndarray, side: int) -> np.ndarray:
    """The image ``(H, W, 3)`` with a shorter side of ``side`` pixels."""
    height, width = image.shape[:2]
    factor = scale_factor(width, height, side, _UNBOUNDED)
    how = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR  # as Backbone.pixels
    return image if factor == 1 else cv2.resize(image, scaled_size(width, height, factor), interpolation=how)


def centre(image: np.ndarray, view: int) -> np.ndarray:
    """The central ``view`` x ``view`` pixels."""
    top, left = ((length - view) // 2 for length in image.shape[:2])
    return np.ascontiguousarray(image[top : top + view, left : left + view])


def view_windows(width: int, height: int, view: int) -> np.ndarray:
    """``(n, 4)`` float32: the views of section 3.1.5, in the centre, the corners and the middles of the sides.

    Nine, or three where one side of the image is ``view``; with the mirror image's 18 and 6.
    """
    across, down = (sorted({0, (length - view) // 2, length - view}) for length in (width, height))
    return np.array([[x, y, x + view, y + view] for y, x in product(down, across)], np.float32)


def measure_classifier(classifier: Classifier, images: LabelledImages, workers: int) -> dict:
    """Errors on images of known classes, in percent: ``top1_error``, ``top5_error`` and ``error`` by class.

    Images of a class are counted as they are: a class with more images weighs more in the first two.
    """

    def one(i: int) -> int:
        """How many classes are found likelier than the right one."""
        probabilities = classifier.predict(read_image(images.paths[i]))
        return int((probabilities > probabilities[images.labels[i]]).sum())

    places = np.array(list(parallel_map(one, range(len(images)), workers, "measuring", threads=True)))
    by_class = {}
    for k, name in enumerate(images.classes):
        own = places[images.labels == k]
        by_class[name] = round(100 * float((own > 0).mean()), 2) if len(own) else None
    return {
        "pictures": len(places),
        "test": asdict(classifier.test),
        "top1_error": round(100 * float((places > 0).mean()), 2),
        "top5_error": round(100 * float((places > 4).mean()), 2),
        "error": by_class,
    }
