"""SPP-net as a classifier (He et al. 2014, section 3): the network, the views it is tested on, and the saved model.

Names: B images, K classes, C channels, D features of the pyramid, n views.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any, TypeVar, overload

import cv2
import numpy as np
import torch
from torch import nn

from sppdet.config import ClassifierConfig, ViewSettings
from sppdet.data import ImageLike, LabelledImages, read_image, scaled_size, to_rgb
from sppdet.features import project, scale_factor
from sppdet.networks import Backbone, Cut, Head, build_trunk
from sppdet.ops import SpatialPyramidPooling
from sppdet.utils import SppdetError, errors_naming, parallel_map, read_json, read_tensors, write_json, write_tensors

_FORMAT = 1
_UNBOUNDED = 10**9  # pixels: no limit to the longer side

ImageT = TypeVar("ImageT", bound=ImageLike)  # a list of strings is a list of images


class SPPClassifier(nn.Module):
    """A network that classifies images of any size: trunk, pyramid, optional fc6 and fc7, and one linear layer.

    Args:
        trunk: the conv layers.
        channels: C, of the trunk's output.
        classes: K.
        levels: bins per side of each level of the pyramid.
        dropout: share of the inputs of the linear layer, or of the outputs of fc6 and fc7, that training drops.
        units: outputs of fc6 and of fc7; 0 leaves both out.

    Attributes:
        scale: factor of the pyramid's vector, which training sets so that one learning rate fits every backbone.
    """

    scale: torch.Tensor

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

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the logits ``(B, K)`` of images ``(B, 3, H, W)`` of any size."""
        return self.score(self.pool(self.trunk(pixels)))

    def train(self, mode: bool = True) -> SPPClassifier:
        """Switch dropout and batch norm; batch norm with fixed weights keeps its statistics in training too."""
        super().train(mode)
        for layer in self.trunk.modules():
            if isinstance(layer, nn.BatchNorm2d) and not layer.weight.requires_grad:
                layer.eval()
        return self

    def for_training(self, device: torch.device) -> SPPClassifier:
        """Let all parameters learn, and move them to ``device``, in the memory order that is quickest there."""
        self.requires_grad_(True)
        return self.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def score(self, pooled: torch.Tensor) -> torch.Tensor:
        """Return the logits ``(B, K)`` of the pyramid's vectors ``(B, D)``."""
        return self.classifier(self.head(pooled * self.scale))


@dataclass
class Classifier:
    """A trained classifier.

    Attributes:
        classes: K names.
        backbone: runs the trunk of ``network``.
        network: the trained network.
        test: which views of an image are classified, with a number for every setting: ``crop``, the central ``view`` x
            ``view`` pixels of the image at ``side``; ``full``, all of the image at ``side``; ``multi``, the mean over
            the views of the feature maps at all ``scales`` (`view_windows`).
    """

    classes: tuple[str, ...]
    backbone: Backbone
    network: SPPClassifier
    test: ViewSettings

    @overload
    def predict(self, images: ImageLike, bgr: bool = False) -> np.ndarray: ...

    @overload
    def predict(self, images: list[ImageT] | tuple[ImageT, ...], bgr: bool = False) -> list[np.ndarray]: ...

    @overload
    def predict(self, images: Iterator[ImageLike], bgr: bool = False) -> Iterator[np.ndarray]: ...

    def predict(
        self, images: ImageLike | list[ImageT] | tuple[ImageT, ...] | Iterator[ImageLike], bgr: bool = False
    ) -> np.ndarray | list[np.ndarray] | Iterator[np.ndarray]:
        """Compute the probability of each class in one or several images.

        Args:
            images: an image, a list or tuple of images, or an iterator over images. An image is what
                `sppdet.data.to_rgb` takes: a path, a Pillow image, an array and others.
            bgr: whether the channels of arrays and tensors are blue, green, red, as in OpenCV's images.

        Returns:
            float32 ``(K,)``, whose sum is 1; for a list or tuple of images a list; for an iterator a generator that
            reads an image when its probabilities are asked for.

        Raises:
            SppdetError: an image cannot be read, or is none of the above.
        """
        if isinstance(images, list | tuple):
            return [self._predict(to_rgb(image, bgr)) for image in images]
        if isinstance(images, Iterator):
            return (self._predict(to_rgb(image, bgr)) for image in images)
        return self._predict(to_rgb(images, bgr))

    def _predict(self, image: np.ndarray) -> np.ndarray:
        """Return the probabilities ``(K,)`` for an RGB image: the mean over the views."""
        pooled = np.concatenate(list(self._pooled(image)))
        with torch.inference_mode():
            logits = self.network.score(torch.from_numpy(pooled).to(self.backbone.device))
            return logits.float().softmax(1).mean(0).cpu().numpy()

    def _pooled(self, image: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the pyramids ``(n, D)`` of the views, one feature map at a time."""
        view, side, scales = self.test.view, self.test.side, self.test.scales
        if view is None or side is None or scales is None:
            raise SppdetError("Classifier.test: view, side or scales is None; ClassifierConfig.tested has numbers")
        if self.test.views == "crop":
            yield self._windows(centre(resized(image, side), view))
        elif self.test.views == "full":
            yield self._windows(resized(image, side))
        else:
            for scale in scales:
                scaled = resized(image, scale)
                windows = view_windows(scaled.shape[1], scaled.shape[0], view)
                for mirrored_or_not in (scaled, np.ascontiguousarray(scaled[:, ::-1])):
                    yield self._windows(mirrored_or_not, windows)

    def _windows(self, image: np.ndarray, windows: np.ndarray | None = None) -> np.ndarray:
        """Return the pyramids ``(n, D)`` of windows ``(n, 4)`` of one feature map, or ``(1, D)`` of the whole map."""
        # Views are not padded to a least size as images of a detector are: training does not do it either.
        pixels = torch.from_numpy(self.backbone.normalisation.normalise(image)).permute(2, 0, 1)[None]
        pixels = pixels.to(self.backbone.device, memory_format=torch.channels_last)
        x = self.backbone.run(pixels).float().cpu()
        height, width = x.shape[2:]
        cells = np.array([[0, 0, width, height]])
        if windows is not None:
            # A view's cells are those whose centres lie in it (appendix A): as many as a crop's map has, or one off.
            grid = self.backbone.grid
            size = (image.shape[1], image.shape[0])
            cells = project(windows, size, 1.0, grid, (width, height), shrink=(grid.stride - 1) / 2)
        return torch.cat([self.network.pool(x[..., y1:y2, x1:x2]) for x1, y1, x2, y2 in cells]).numpy()

    def save(self, folder: str | Path, key: str = "") -> None:
        """Write ``classifier.json`` and ``classifier.safetensors`` into ``folder``.

        Args:
            folder: is created where it does not exist.
            key: digest of all that the weights depend on, see `sppdet.classification.run`.
        """
        folder = Path(folder)
        head = self.network.head
        description = {
            "format": _FORMAT,
            "key": key,
            "classes": list(self.classes),
            "backbone": self.backbone.description(),
            "levels": list(self.network.pool.levels),
            "units": head.units if isinstance(head, Head) else 0,
            "test": asdict(self.test),
        }
        tensors = {name: value.cpu().contiguous() for name, value in self.network.state_dict().items()}
        write_tensors(folder / "classifier.safetensors", tensors)
        write_json(folder / "classifier.json", description, sealed=True)


def load_classifier(folder: str | Path, device: str = "auto") -> Classifier:
    """Load the classifier that was saved in a run's folder.

    Args:
        folder: such as ``runs/classifier``.
        device: ``auto``, ``cpu`` or ``cuda``.

    Raises:
        SppdetError: the folder holds no classifier, one of another format, or damaged files.
    """
    folder = Path(folder)
    if not (folder / "classifier.json").is_file():
        raise SppdetError(f"{folder}: no classifier (classifier.json) here; sppdet classify train makes one")
    description = read_json(folder / "classifier.json")
    if description.get("format") != _FORMAT:
        raise SppdetError(
            f"{folder}/classifier.json: format {description.get('format')}, this version reads {_FORMAT}; train again"
        )
    note = folder / "classifier.json"
    description = read_json(note, classes=list, backbone=dict, levels=list, units=int, test=dict)
    path = folder / "classifier.safetensors"
    tensors = read_tensors(path, "train again, or copy the folder again")
    classes = description["classes"]
    with errors_naming(note, "train again, or copy the folder again"):
        name, precision = description["backbone"]["name"], description["backbone"]["precision"]
        cut = Cut.restore(description["backbone"])
        trunk = build_trunk(name, cut=cut)
        settings = ClassifierConfig(
            levels=description["levels"], units=description["units"], test=ViewSettings(**description["test"])
        )
        if not all(isinstance(entry, str) for entry in classes):
            raise TypeError("the names of classes are text")
    # bfloat16 only if this machine multiplies it natively: elsewhere it would be slower than float32.
    backbone = Backbone.wrap(name, trunk, device, "auto" if precision == "bfloat16" else precision, cut)
    network = SPPClassifier(backbone.trunk, backbone.channels, len(classes), settings.levels, units=settings.units)
    try:
        network.load_state_dict(tensors)
    except RuntimeError:
        raise SppdetError(f"{path}: its weights do not fit this version's {name}; train again") from None
    network.eval().requires_grad_(False).to(backbone.device)
    return Classifier(tuple(classes), backbone, network, settings.test)


def resized(image: np.ndarray, side: int) -> np.ndarray:
    """Return the image ``(H, W, 3)`` with a shorter side of ``side`` pixels."""
    height, width = image.shape[:2]
    factor = scale_factor(width, height, side, _UNBOUNDED)
    interpolation = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR  # as Backbone.pixels
    size = scaled_size(width, height, factor)
    return image if factor == 1 else cv2.resize(image, size, interpolation=interpolation)


def centre(image: np.ndarray, view: int) -> np.ndarray:
    """Return the central ``view`` x ``view`` pixels of an image."""
    top, left = ((length - view) // 2 for length in image.shape[:2])
    return np.ascontiguousarray(image[top : top + view, left : left + view])


def view_windows(width: int, height: int, view: int) -> np.ndarray:
    """Return the views of section 3.1.5: squares in the centre, the corners and the middles of the sides.

    There are nine, or three where one side of the image equals ``view``.

    Args:
        width: of the image, in pixels.
        height: of the image, in pixels.
        view: side of the squares, in pixels.

    Returns:
        float32 boxes ``(n, 4)``, top to bottom, then left to right.

    Examples:
        >>> view_windows(300, 224, 224).tolist()
        [[0.0, 0.0, 224.0, 224.0], [38.0, 0.0, 262.0, 224.0], [76.0, 0.0, 300.0, 224.0]]
    """
    across, down = (sorted({0, (length - view) // 2, length - view}) for length in (width, height))
    return np.array([[x, y, x + view, y + view] for y, x in product(down, across)], np.float32)


def measure_classifier(classifier: Classifier, images: LabelledImages, workers: int) -> dict[str, Any]:
    """Measure the errors of a classifier on images of known classes.

    Args:
        classifier: with the views to test in ``classifier.test``.
        images: the images and their classes.
        workers: threads; 0 is every core.

    Returns:
        ``pictures`` (the number of images), ``test`` (the views), ``top1_error`` and ``top5_error`` in percent of all
        images, so that a class with more images weighs more, and ``error``, the top-1 error of each class in percent,
        None for a class without images.
    """

    def rank(i: int) -> int:
        """Return how many classes are more probable than the right one."""
        probabilities = classifier.predict(read_image(images.paths[i]))
        return int((probabilities > probabilities[images.labels[i]]).sum())

    ranks = np.array(list(parallel_map(rank, range(len(images)), workers, "measuring", threads=True)))
    errors: dict[str, float | None] = {}
    for k, name in enumerate(images.classes):
        of_class = ranks[images.labels == k]
        errors[name] = _percent(of_class > 0) if len(of_class) else None
    return {
        "pictures": len(ranks),
        "test": asdict(classifier.test),
        "top1_error": _percent(ranks > 0),
        "top5_error": _percent(ranks > 4),
        "error": errors,
    }


def _percent(wrong: np.ndarray) -> float:
    """Return the share of true values, in percent."""
    return round(100 * float(wrong.mean()), 2)
