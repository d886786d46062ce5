"""A trained detector: one network, and the linear layers that were trained on its features."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sppdet.config import DEFAULT_THRESHOLD, DetectionSettings
from sppdet.detection.calibration import Calibration
from sppdet.detection.candidates import Deltas, MarginsAt, WindowScores
from sppdet.detection.linear_layers import BoxRegressors, LinearSVMs, Softmax
from sppdet.detection.predictor import Predictor
from sppdet.detection.tiles import TrainedOn
from sppdet.features import CropFeatures, PyramidFeatures, WindowFeatures, Windows
from sppdet.networks import Backbone
from sppdet.ops import Array, Products, like, on_host
from sppdet.ops import boxes as geometry
from sppdet.proposals import SelectiveSearch
from sppdet.utils import SppdetError

if TYPE_CHECKING:  # the fc layers need torch
    from sppdet.networks import Head

_MIRROR = np.array([-1, 1, 1, 1], np.float32)  # takes a box regression dx, dy, dw, dh to the mirror image


@dataclass(frozen=True, eq=False, repr=False)
class Detector(Predictor):
    """A trained detector.

    `sppdet.load` reads one from a run's folder; `predict` detects objects in images; `with_detection`
    makes a copy with other settings. Detectors cannot be modified.

    Attributes:
        classes: K names.
        backbone: the network that computes feature maps.
        features: how the windows of an image become vectors of D features.
        search: computes the proposals.
        classifier: scores the vectors.
        regressors: box regression; None if none was trained.
        detection: settings of the steps from scored windows to detections.
        head: the fc layers whose output the classifier sees; None if it sees the pooled features.
        image_svms: SVMs of whole images, see `sppdet.training.image_svms`; None if none were trained.
        calibration: the probabilities of margins; None if they are not known.
        trained_on: what is known of the training images; None for models of earlier versions.

    Raises:
        SppdetError: if ``detection.context`` is above 0 and there are no SVMs of whole images, or ``detection.rescore``
            with R-CNN's crops.

    Examples:
        >>> import sppdet
        >>> detector = sppdet.load("runs/demo")  # doctest: +SKIP
        >>> for detection in detector.predict("street.jpg", threshold=0):  # doctest: +SKIP
        ...     print(detection.name, detection.score, detection.xyxy)
        >>> strict = detector.with_detection(nms=0.2)  # doctest: +SKIP
    """

    classes: tuple[str, ...]
    backbone: Backbone
    features: WindowFeatures
    search: SelectiveSearch
    classifier: LinearSVMs | Softmax
    regressors: BoxRegressors | None
    detection: DetectionSettings
    head: Head | None = None
    image_svms: LinearSVMs | None = None
    calibration: Calibration | None = None
    trained_on: TrainedOn | None = None

    def __post_init__(self) -> None:
        if self.detection.context and self.image_svms is None:
            raise SppdetError("detection.context: this model has no SVMs of whole images; train with it to have them")
        if self.detection.rescore and self.features.needs_windows:
            raise SppdetError(
                "detection.rescore: this model reads crops of the proposals, not moved boxes; set it to 0"
            )

    def __repr__(self) -> str:
        lines = [f"Detector of {class_list(self.classes)}", describe_features(self), describe_detection(self)]
        return "\n  ".join(lines)

    @property
    def parts(self) -> tuple[Detector, ...]:
        return (self,)

    @property
    def part_weights(self) -> tuple[float, ...]:
        return (1.0,)

    @property
    def calibrated(self) -> Calibration | None:
        log_odds = isinstance(self.classifier, Softmax) and not self.detection.context
        if self.calibration is None and log_odds:
            return Calibration.of_log_odds(len(self.classes), DEFAULT_THRESHOLD)
        return self.calibration

    def with_detection(self, settings: DetectionSettings | None = None, **changes: Any) -> Detector:
        return replace(self, detection=replace(settings or self.detection, **changes))

    @cached_property
    def regresses_all_windows(self) -> bool:
        """Whether the box regressions of all windows are computed together with the margins.

        Vectors behind fc layers are short, but computing them twice takes long; with voting most windows are
        candidates.
        """
        if self.regressors is None:
            return False
        return self.regressors.of_head or (self.features.head is None and self.detection.vote > 0)

    @cached_property
    def window_weights(self) -> Products:
        """The weights that all windows are multiplied by: the classifier's and, if ``regresses_all_windows``, the box
        regressors'. The latter need not be exact: half a percent of a regression does not matter."""
        rough = None
        if self.regressors is not None and self.regresses_all_windows:
            rough = self.regressors.weight.reshape(-1, self.features.dimension)
        return Products(self.classifier.weight, rough, self.features.half)

    @cached_property
    def margin_weights(self) -> Products:
        """The classifier's weights, for windows whose box regression is not asked for."""
        if not self.regresses_all_windows:
            return self.window_weights
        return Products(self.classifier.weight, half=self.features.half)

    @cached_property
    def image_weights(self) -> Products:
        """The weights of the SVMs of whole images."""
        return Products(self._image_svms.weight, half=self.features.half)

    @property
    def _image_svms(self) -> LinearSVMs:
        assert self.image_svms is not None  # checked on construction where they are used
        return self.image_svms

    def score(self, maps: Any, proposals: np.ndarray, size: tuple[int, int], mirrored: bool = False) -> WindowScores:
        """Score the proposals of an image.

        Args:
            maps: what ``features.read`` returned for the image, or for its mirror image.
            proposals: ``(N, 4)`` pixel edges in the image itself, N at least 1.
            size: ``(width, height)`` of the image in pixels.
            mirrored: whether ``maps`` are those of the mirror image.

        Returns:
            Margins, and box regressions in the frame of the image itself.
        """
        windows = self._windows(maps, proposals, size, mirrored)
        products, shifts = self._multiply(self.features, maps, windows, self.window_weights)
        context = None
        if self.detection.context:
            context = self.detection.context * self._image_margins(maps, size).clip(max=0)
        margins = self._margins(products, windows, context)
        margins_at = self._margins_at(maps, size, mirrored, context) if self.detection.rescore else None
        if self.regressors is None:
            return WindowScores(margins, None, margins_at)
        if self.regresses_all_windows:
            deltas = self._deltas_of_all(self.regressors, windows, shifts)
        else:
            deltas = self._deltas_of_some(self.regressors, maps, windows)
        mirror = like(_MIRROR, margins)
        return WindowScores(margins, (lambda *chosen: deltas(*chosen) * mirror) if mirrored else deltas, margins_at)

    def _windows(self, maps: Any, boxes: np.ndarray, size: tuple[int, int], mirrored: bool) -> Windows:
        """Return where boxes of an image lie on ``maps``, which are its own or those of the mirror image."""
        return self.features.windows(geometry.mirror(boxes, size[0]) if mirrored else boxes, size, maps)

    def _margins(self, products: Array, windows: Windows, context: Array | None) -> Array:
        """Return the margins ``(N, K)`` of windows from the products of their vectors and the classifier's weights.

        ``context`` ``(K,)`` is added, where the margins of the whole image count.
        """
        of_groups = self.classifier.margins(products + like(self.classifier.bias, products))
        margins = of_groups[like(windows.group, products)]
        if context is not None:
            margins += context
        return margins

    def _margins_at(self, maps: Any, size: tuple[int, int], mirrored: bool, context: Array | None) -> MarginsAt:
        """Return the function `WindowScores.margins_at`."""

        def margins_at(boxes: np.ndarray) -> Array:
            windows = self._windows(maps, boxes, size, mirrored)
            products, _ = self._multiply(self.features, maps, windows, self.margin_weights)
            return self._margins(products, windows, context)

        return margins_at

    def _multiply(
        self, features: WindowFeatures, maps: Any, windows: Windows, weights: Products, rows: np.ndarray | None = None
    ) -> tuple[Array, Array]:
        """Return the products of `WindowFeatures.products`, which stay on the device where there is one."""
        multiply = features.products_on_device if features.device else features.products
        return multiply(maps, windows, weights, rows)

    def _image_margins(self, maps: Any, size: tuple[int, int]) -> Array:
        """Return the margins ``(K,)`` of the whole image: does it hold an object of the class?"""
        image = self.features.whole(maps, size)
        products, _ = self._multiply(self.features, maps, image, self.image_weights)
        return products[0] + like(self._image_svms.bias, products)

    def _deltas_of_all(self, regressors: BoxRegressors, windows: Windows, shifts: Array) -> Deltas:
        """Return the function `WindowScores.deltas` where the products of all windows are known."""
        all_deltas = shifts.reshape(-1, *regressors.bias.shape) + like(regressors.bias, shifts)
        group = like(windows.group, shifts)
        return lambda rows, labels: all_deltas[group[rows], labels]

    def _deltas_of_some(self, regressors: BoxRegressors, maps: Any, windows: Windows) -> Deltas:
        """Return the function `WindowScores.deltas` that pools the windows it is asked for once more."""

        def deltas(rows: Array, labels: Array) -> Array:
            group = windows.group[on_host(rows)]
            present, column = np.unique(on_host(labels), return_inverse=True)
            weight = regressors.weight[present].reshape(4 * len(present), -1)
            weights = Products(weight[:0], weight, self.features.half)
            _, shifts = self._multiply(self.features.pooled, maps, windows, weights, np.unique(group))
            all_deltas = shifts.reshape(-1, len(present), 4) + like(regressors.bias[present], shifts)
            return all_deltas[like(group, shifts), like(column, shifts)]

        return deltas

    def save(self, folder: str | Path) -> None:
        """Write ``model.json`` and ``model.safetensors`` into ``folder``; `sppdet.load` reads them."""
        from sppdet.detection.saved_model import save_detector

        save_detector(self, Path(folder))


def class_list(classes: tuple[str, ...]) -> str:
    """Return how many classes there are, and the names of the first ones.

    Examples:
        >>> class_list(("cat", "dog"))
        '2 classes: cat, dog'
    """
    shown = ", ".join(classes[:6]) + (", ..." if len(classes) > 6 else "")
    return f"{len(classes)} class{'es' if len(classes) != 1 else ''}: {shown}"


def describe_features(detector: Detector) -> str:
    """Return one line on a detector's network and features."""
    features, layer = detector.features, detector.head.layer if detector.head else "pool5"
    words = [f"{detector.backbone.name} ({detector.backbone.precision})", layer]
    if isinstance(features, PyramidFeatures):
        words += [f"{features.kind} pooling {_pyramids(features)}", f"scales {_numbers(features.scales)}"]
    if isinstance(features, CropFeatures):
        words += [f"max pooling {_pyramids(features)}", f"{features.crop.kind} crops of {features.crop.size}"]
    return ", ".join([*words, f"{detector.search.mode} selective search"])


def describe_detection(detector: Detector) -> str:
    """Return one line on a detector's classifier and the settings from scored windows to detections."""
    settings = detector.detection
    words = [
        "softmax" if isinstance(detector.classifier, Softmax) else "SVMs",
        "no box regression" if detector.regressors is None else "box regression",
        f"nms={settings.nms:g}",
        f"min_margin={settings.min_margin:g}",
    ]
    words += [
        f"{name}={getattr(settings, name):g}"
        for name in ("vote", "rescore", "move_penalty", "context")
        if getattr(settings, name)
    ]
    return ", ".join(words + (["flip"] if settings.flip else []))


def _pyramids(features: WindowFeatures) -> str:
    """Return the levels of each layer's pyramid."""
    return " and ".join(_numbers(pyramid.levels) for pyramid in features.pyramids)


def _numbers(values: tuple[int, ...]) -> str:
    return " ".join(map(str, values))
