"""From images to detections: what a single detector and an ensemble have in common.

Names: N proposals, K classes, n candidates.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

import numpy as np

from sppdet.config import DEFAULT_THRESHOLD, DetectionSettings
from sppdet.data import ImageLike, Pixels, open_pixels, to_rgb
from sppdet.detection.calibration import Calibration
from sppdet.detection.detections import Detections
from sppdet.detection.tiles import TilePlan, TrainedOn, detect_in_tiles, plan_tiles
from sppdet.ops import boxes as geometry
from sppdet.ops import nms, vote
from sppdet.proposals import SelectiveSearch
from sppdet.utils import SppdetError, set_thread_count, thread_count

if TYPE_CHECKING:
    from sahi.models.base import DetectionModel

    from sppdet.detection.detector import Detector

Threshold = float | Literal["auto"] | None  # of `Predictor.predict`
TileSide = int | Literal["auto"] | None  # of `Predictor.predict`
ImageT = TypeVar("ImageT", bound=ImageLike)  # a list of strings is a list of images


@dataclass(frozen=True, eq=False)
class WindowScores:
    """The scores of an image's proposals by one detector, read in the image or in its mirror image.

    Attributes:
        margins: ``(N, K)``.
        deltas: ``deltas(rows, labels)`` computes the box regression ``(n, 4)`` (dx, dy, dw, dh, see
            `sppdet.ops.boxes.decode`) of the proposals ``rows`` ``(n,)``, each by the regressor of its label
            ``(n,)``; None without box regression. In the frame of the image, also where the mirror image was read.
    """

    margins: np.ndarray
    deltas: Callable[[np.ndarray, np.ndarray], np.ndarray] | None


@dataclass(frozen=True, eq=False)
class Candidates:
    """Windows that may become detections.

    Attributes:
        rows: ``(n,)`` index of each among the proposals.
        labels: ``(n,)``.
        scores: ``(n,)``.
        boxes: ``(n, 4)`` pixel edges.
    """

    rows: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray

    def __getitem__(self, chosen: np.ndarray) -> Candidates:
        return Candidates(self.rows[chosen], self.labels[chosen], self.scores[chosen], self.boxes[chosen])


class Predictor(ABC):
    """A trained model that turns images into detections.

    Attributes:
        classes: K names.
        search: computes the proposals.
        trained_on: what is known of the training images; None for models of earlier versions.
        detection: settings of the steps from scored windows to detections.
    """

    detection: DetectionSettings

    if TYPE_CHECKING:  # the fields or properties of subclasses

        @property
        def classes(self) -> tuple[str, ...]: ...

        @property
        def search(self) -> SelectiveSearch: ...

        @property
        def trained_on(self) -> TrainedOn | None: ...

    @property
    @abstractmethod
    def calibrated(self) -> Calibration | None:
        """The probabilities of margins: learned, or those of a softmax; None if they are not known."""

    @property
    @abstractmethod
    def parts(self) -> tuple[Detector, ...]:
        """The detectors, each with its network, that score the windows."""

    @property
    @abstractmethod
    def part_weights(self) -> tuple[float, ...]:
        """The weight of each of ``parts`` in the means of margins and box regressions; the sum is 1."""

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

    @property
    def needs_windows(self) -> bool:
        """Whether `read` has to know the proposals, as R-CNN does."""
        return any(part.features.needs_windows for part in self.parts)

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
        maps, mirrored, proposals = self._read_and_search(pixels)
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

    def _read_and_search(self, image: np.ndarray) -> tuple[list[Any], list[Any] | None, np.ndarray]:
        """Return what `read` and `read_mirror_image` return for an image, and its proposals."""
        threads = thread_count()
        # With one thread this is one of many workers, and the other cores are busy. The native search uses all cores.
        if threads == 1 or self.needs_windows or self.search.engine == "native":
            proposals = self.search(image)
            return self.read(image, proposals), self.read_mirror_image(image, proposals), proposals
        with ThreadPoolExecutor(1) as helper:
            search = helper.submit(self.search, image)
            # The threads of a layer wait for each other: one that shared its core with the search would delay them all.
            set_thread_count(threads - 1)
            try:
                maps, mirrored = self.read(image), self.read_mirror_image(image)
            finally:
                set_thread_count(threads)
            return maps, mirrored, search.result()

    def read(self, image: np.ndarray, proposals: np.ndarray | None = None) -> list[Any]:
        """Run the network of each of ``parts`` on an image.

        Args:
            image: RGB uint8 ``(H, W, 3)``.
            proposals: ``(N, 4)`` pixel edges; only needed if ``needs_windows``.

        Returns:
            For each part what its ``features.read`` returns: feature maps, or with R-CNN the vectors of the proposals.
        """
        return [part.features.read(part.backbone, image, proposals) for part in self.parts]

    def read_mirror_image(self, image: np.ndarray, proposals: np.ndarray | None = None) -> list[Any] | None:
        """Run the networks on the mirror image of an image.

        Args:
            image: RGB uint8 ``(H, W, 3)``, not mirrored.
            proposals: ``(N, 4)`` pixel edges in the image itself; only needed if ``needs_windows``.

        Returns:
            What `read` returns for the mirror image; None unless ``detection.flip`` is set.
        """
        if not self.detection.flip:
            return None
        mirrored = None if proposals is None else geometry.mirror(proposals, image.shape[1])
        return self.read(np.ascontiguousarray(image[:, ::-1]), mirrored)

    def window_scores(
        self, maps: Sequence[Any], proposals: np.ndarray, size: tuple[int, int], mirrored: Sequence[Any] | None = None
    ) -> list[tuple[float, WindowScores]]:
        """Score the proposals of an image with every one of ``parts``.

        Args:
            maps: what `read` returned for the image.
            proposals: ``(N, 4)`` pixel edges.
            size: ``(width, height)`` of the image in pixels.
            mirrored: what `read` returned for the mirror image; None leaves it out.

        Returns:
            (weight, scores) pairs; the weights sum to 1. Empty without proposals.
        """
        if not len(proposals):
            return []
        scores = []
        for n, (part, weight) in enumerate(zip(self.parts, self.part_weights)):
            if mirrored is None:
                scores.append((weight, part.score(maps[n], proposals, size)))
            else:
                scores.append((0.5 * weight, part.score(maps[n], proposals, size)))
                scores.append((0.5 * weight, part.score(mirrored[n], proposals, size, mirrored=True)))
        return scores

    def detect(
        self,
        maps: Sequence[Any],
        proposals: np.ndarray,
        size: tuple[int, int],
        mirrored: Sequence[Any] | None = None,
        min_margin: float | None = None,
    ) -> Detections:
        """Detect objects among the proposals of an image that the networks have read.

        Args:
            maps: what `read` returned for the image.
            proposals: ``(N, 4)`` pixel edges.
            size: ``(width, height)`` of the image in pixels.
            mirrored: what `read_mirror_image` returned for the image. Margins and box regressions are then the
                means of those in the image and in its mirror image.
            min_margin: in place of ``detection.min_margin``.

        Returns:
            Detections after box regression, where the model has it.
        """
        scores = self.window_scores(maps, proposals, size, mirrored)
        candidates = self._candidates(scores, proposals, min_margin)
        regressed = self._regress(scores, candidates, size)
        return self._suppress_and_vote(candidates) if regressed is None else regressed

    def detect_both(
        self, maps: Sequence[Any], proposals: np.ndarray, size: tuple[int, int], mirrored: Sequence[Any] | None = None
    ) -> tuple[Detections, Detections]:
        """Detect objects before and after box regression.

        With ``detection.vote`` 0, as in the original systems, regression moves the boxes that survived suppression,
        leaves their scores, and is followed by a second suppression. Otherwise, as in Fast R-CNN, all candidates are
        moved before suppression; those around a survivor then vote on its box (`sppdet.ops.vote`), both before
        and after box regression.

        Args:
            maps, proposals, size, mirrored: as for `detect`.

        Returns:
            Detections before and after box regression; one and the same object twice if the model has none.
        """
        scores = self.window_scores(maps, proposals, size, mirrored)
        candidates = self._candidates(scores, proposals)
        plain, regressed = self._suppress_and_vote(candidates), self._regress(scores, candidates, size)
        return plain, plain if regressed is None else regressed

    def _candidates(
        self, scores: list[tuple[float, WindowScores]], proposals: np.ndarray, min_margin: float | None = None
    ) -> Candidates:
        """Return each class's best windows above ``min_margin``, or else ``detection.min_margin``."""
        if not scores:
            return Candidates(*(np.zeros(0, np.int64),) * 2, np.zeros(0, np.float32), np.zeros((0, 4), np.float32))
        min_margin = self.detection.min_margin if min_margin is None else min_margin
        zero = np.zeros_like(scores[0][1].margins)
        margins = sum((weight * score.margins for weight, score in scores), zero)
        rows_of_classes, labels_of_classes = [], []
        for k in range(margins.shape[1]):
            above = np.flatnonzero(margins[:, k] > min_margin)
            best = above[np.argsort(-margins[above, k], kind="stable")[: self.detection.max_candidates]]
            rows_of_classes.append(best)
            labels_of_classes.append(np.full(len(best), k, np.int64))
        rows, labels = np.concatenate(rows_of_classes), np.concatenate(labels_of_classes)
        return Candidates(rows, labels, margins[rows, labels], proposals[rows])

    def _regress(
        self, scores: list[tuple[float, WindowScores]], candidates: Candidates, size: tuple[int, int]
    ) -> Detections | None:
        """Return the detections among candidates after box regression; None if the model has none."""
        regressors = [(weight, score.deltas) for weight, score in scores if score.deltas is not None]
        if not regressors:
            return None
        if not self.detection.vote:
            candidates = candidates[self._suppress(candidates)]
        if not len(candidates.rows):
            return self._suppress_and_vote(candidates)
        total = sum(weight for weight, _ in regressors)  # some parts of an ensemble may have no box regression
        deltas = np.zeros((len(candidates.rows), 4), np.float32)
        for weight, compute in regressors:
            deltas += compute(candidates.rows, candidates.labels) * (weight / total)
        boxes = geometry.clip(geometry.decode(candidates.boxes, deltas), *size)
        return self._suppress_and_vote(replace(candidates, boxes=boxes))

    def _suppress_and_vote(self, candidates: Candidates) -> Detections:
        """Return the candidates that survive suppression, voted on if ``detection.vote`` is set; best first."""
        kept, overlap = self._suppress(candidates), self.detection.vote
        if overlap:
            boxes = vote(candidates.boxes, candidates.scores, candidates.labels, kept, overlap)
        else:
            boxes = candidates.boxes[kept]
        order = np.argsort(-candidates.scores[kept], kind="stable")
        kept = kept[order]
        return Detections(boxes[order], candidates.labels[kept], candidates.scores[kept], self.classes)

    def _suppress(self, candidates: Candidates) -> np.ndarray:
        """Return the rows of the candidates that survive suppression, class by class."""
        kept = []
        for k in np.unique(candidates.labels):
            rows = np.flatnonzero(candidates.labels == k)
            survivors = nms(candidates.boxes[rows], candidates.scores[rows], self.detection.nms)
            kept.append(rows[survivors[: self.detection.max_per_class]])
        return np.concatenate([np.zeros(0, np.int64), *kept])
