"""From images to detections: which images there are, in which tiles they are read, and which detections are returned.

Names: K classes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from io import IOBase
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

import numpy as np

from sppdet.config import DEFAULT_THRESHOLD, DetectionSettings
from sppdet.data import ImageLike, Pixels, open_pixels, to_rgb
from sppdet.detection.calibration import Calibration
from sppdet.detection.detections import Detections
from sppdet.detection.tiles import TilePlan, TrainedOn, detect_in_tiles, plan_tiles
from sppdet.detection.window_detector import WindowDetector
from sppdet.utils import SppdetError

if TYPE_CHECKING:
    from sahi.models.base import DetectionModel

Threshold = float | Literal["auto"] | None  # of `Predictor.predict`
TileSide = int | Literal["auto"] | None  # of `Predictor.predict`
ImageT = TypeVar("ImageT", bound=ImageLike)  # a list of strings is a list of images


class Predictor(WindowDetector):
    """A trained model that turns images into detections.

    Attributes:
        trained_on: what is known of the training images; None for models of earlier versions.
    """

    if TYPE_CHECKING:  # a field or property of subclasses

        @property
        def trained_on(self) -> TrainedOn | None: ...

    @property
    @abstractmethod
    def calibrated(self) -> Calibration | None:
        """The probabilities of margins: learned, or those of a softmax; None if they are not known."""

    @abstractmethod
    def with_detection(self, settings: DetectionSettings | None = None, **changes: Any) -> Predictor:
        """Return a copy with other settings of detection.

        Args:
            settings: the new settings; None for the present ones.
            changes: fields of `sppdet.config.DetectionSettings` to change, such as ``nms=0.4``.

        Raises:
            SppdetError: if a value is out of its limits, or ``context`` is above 0 and the model has no SVMs of whole
                images.
        """

    @overload
    def predict(
        self,
        images: ImageLike,
        threshold: Threshold = "auto",
        bgr: bool = False,
        margin: float | None = None,
        tiles: TileSide = None,
    ) -> Detections: ...

    @overload
    def predict(
        self,
        images: list[ImageT] | tuple[ImageT, ...],
        threshold: Threshold = "auto",
        bgr: bool = False,
        margin: float | None = None,
        tiles: TileSide = None,
    ) -> list[Detections]: ...

    @overload
    def predict(
        self, images: Iterator[ImageLike], threshold: Threshold = "auto", bgr: bool = False, margin: float | None = None
    ) -> Iterator[Detections]: ...

    def predict(
        self,
        images: ImageLike | list[ImageT] | tuple[ImageT, ...] | Iterator[ImageLike],
        threshold: Threshold = "auto",
        bgr: bool = False,
        margin: float | None = None,
        tiles: TileSide = None,
    ) -> Detections | list[Detections] | Iterator[Detections]:
        """Detect objects in one or several images.

        Args:
            images: an image, a list or tuple of images, or an iterator over images. An image is a path; the bytes of an
                image file; a PIL image; a uint8 array: grey ``(H, W)``, RGB ``(H, W, 3)`` or RGBA ``(H, W, 4)``; or a
                tensor ``(3, H, W)``, uint8 or floating point from 0 to 1.
            threshold: lowest probability of the detections, 0 to 1; or ``auto``, where F1 of each class was best in
                images that its SVM had not seen. For models without probabilities it is the lowest score, and ``auto``
                is -0.5. None returns all detections above ``detection.min_margin``.
            bgr: whether the channels of arrays and tensors are blue, green, red, as in OpenCV's images.
            margin: lowest score of the detections, in place of ``threshold``.
            tiles: pixels per side of the overlapping tiles in which larger images are read (`sppdet.detection.tiles`);
                ``auto`` chooses by the training images; 0 reads whole images. None is ``auto`` for models that were
                trained on tiles, and 0 for all others.

        A lowest score below ``detection.min_margin`` replaces it for this call.

        Returns:
            The detections of an image, those of the highest probability first; for a list or tuple of images a list;
            for an iterator a generator that reads an image when its detections are asked for.

        Raises:
            SppdetError: if an image cannot be read or is none of the above, or for a threshold that is no probability.
        """
        self.check_threshold(threshold)
        if isinstance(images, (list, tuple)):
            return [self._predict_one(image, threshold, bgr, margin, tiles) for image in images]
        if isinstance(images, IOBase):  # an iterator over its lines
            raise SppdetError("an image cannot be an open file: give its path, or its bytes by read()")
        if isinstance(images, Iterator):
            return (self._predict_one(image, threshold, bgr, margin, tiles) for image in images)
        return self._predict_one(images, threshold, bgr, margin, tiles)

    def to_sahi(self, confidence: float = 0.3) -> DetectionModel:
        """Return the detector as a detection model of SAHI, for ``sahi.predict.get_sliced_prediction``.

        Args:
            confidence: lowest `Detections.confidence`, SAHI's ``confidence_threshold``.

        Raises:
            SppdetError: the package sahi is not installed.
        """
        from sppdet.detection.interchange import sahi_model

        return sahi_model(self, confidence)

    def check_threshold(self, threshold: Threshold) -> None:
        """Refuse a threshold that `predict` cannot use.

        Raises:
            SppdetError: another word than ``auto``, or no probability where the model has them.
        """
        if isinstance(threshold, str):
            if threshold != "auto":
                raise SppdetError(f"threshold: expected a number or auto, found {threshold!r}")
        elif threshold is not None and self.calibrated is not None and not 0 <= threshold <= 1:
            raise SppdetError(f"threshold: {threshold:g} is no probability; give 0 to 1, or a margin as margin")

    def lowest_margins(self, threshold: Threshold, margin: float | None = None) -> np.ndarray:
        """Return the lowest margin ``(K,)`` that `predict` returns of each class for these arguments.

        For a probability it is ``detection.min_margin``, as a margin does not tell it alone.
        """
        classes, calibration = len(self.classes), self.calibrated
        if margin is None and threshold == "auto":
            return np.array(
                [DEFAULT_THRESHOLD] * classes if calibration is None else calibration.thresholds, np.float32
            )
        lowest = margin
        if lowest is None and threshold is not None and calibration is None:
            lowest = float(threshold)
        return np.full(classes, self.detection.min_margin if lowest is None else lowest, np.float32)

    def _predict_one(
        self, image: ImageLike, threshold: Threshold, bgr: bool, margin: float | None, tiles: TileSide
    ) -> Detections:
        if not self.tile_side(tiles):
            return self._predict_whole(to_rgb(image, bgr), threshold, margin)
        return self.predict_pixels(open_pixels(image, bgr), threshold, margin, tiles)

    def predict_pixels(
        self, pixels: Pixels, threshold: Threshold = "auto", margin: float | None = None, tiles: TileSide = None
    ) -> Detections:
        """Detect objects in an image of which parts can be read; arguments as for `predict`."""
        size = pixels.width, pixels.height
        plan = self.plan_tiles(size, tiles)
        if plan is None:
            return self._predict_whole(pixels.read((0, 0, *size)), threshold, margin)
        return detect_in_tiles(
            lambda part: self._predict_whole(part, threshold, margin), pixels, plan, self.detection.nms
        )

    def plan_tiles(self, size: tuple[int, int], tiles: TileSide = None) -> TilePlan | None:
        """Return how `predict` reads an image of ``size`` (width, height); None as a whole."""
        return plan_tiles(self.trained_on, self.search.max_side, size, self.tile_side(tiles))

    def tile_side(self, tiles: TileSide) -> int | str:
        """Return the side of tiles that `predict` takes for its argument ``tiles``; 0 for whole images."""
        if tiles is None:
            return "auto" if self.trained_on and self.trained_on.tiles else 0
        return tiles

    def _predict_whole(self, pixels: np.ndarray, threshold: Threshold, margin: float | None) -> Detections:
        margins = self.lowest_margins(threshold, margin)
        lowest = min(float(margins.min()), self.detection.min_margin)
        maps, mirrored, proposals = self.read_and_search(pixels)
        size = (pixels.shape[1], pixels.shape[0])
        detections = self.with_probabilities(self.detect(maps, proposals, size, mirrored, lowest))
        return self.select(detections, threshold, margin)

    def select(self, detections: Detections, threshold: Threshold, margin: float | None = None) -> Detections:
        """Return those of the detections of an image that `predict` returns for these arguments."""
        if margin is None and threshold is None:
            return detections
        detections = detections[detections.scores >= self.lowest_margins(threshold, margin)[detections.labels]]
        is_probability = margin is None and threshold != "auto" and detections.probabilities is not None
        return detections.above(float(threshold)) if is_probability else detections  # type: ignore[arg-type]

    def with_probabilities(self, detections: Detections) -> Detections:
        """Return detections with their probabilities, the highest first; unchanged if the model does not tell them."""
        if self.calibrated is None:
            return detections
        probabilities = self.calibrated.probabilities(detections.labels, detections.scores)
        order = np.argsort(-probabilities, kind="stable")
        return replace(detections, probabilities=probabilities)[order]
