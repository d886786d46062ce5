"""Several detectors that score the same windows (SPP-net, section 4.4).

The paper runs suppression over the union of both models' windows and scores. Here all models score the same windows,
so that a window's margin and its box regression are weighted means; docs/best.md compares the two. As in the paper the
conv layers must differ, and a class's margins must mean the same in all models: SVMs and a softmax are not mixed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from sppdet.config import DetectionSettings
from sppdet.detection.calibration import Calibration
from sppdet.detection.detector import Detector, class_list, describe_detection, describe_features
from sppdet.detection.predictor import Predictor
from sppdet.detection.tiles import TrainedOn
from sppdet.proposals import SelectiveSearch
from sppdet.utils import SppdetError


@dataclass(frozen=True, eq=False, repr=False)
class Ensemble(Predictor):
    """Detectors of the same classes, whose margins and box regressions are averaged.

    `sppdet.load` reads one from the folder that ``sppdet combine`` wrote. Ensembles cannot be modified.

    Attributes:
        detectors: at least one. The first one computes the proposals.
        weights: the weight of each detector in the means; the sum is 1.
        detection: settings of the steps from scored windows to detections, in place of the detectors'. ``context``
            holds for the detectors that have SVMs of whole images.

    Raises:
        SppdetError: if ``detection.context`` is above 0 and no detector has SVMs of whole images, or
            ``detection.rescore`` and one of them is R-CNN.
    """

    detectors: tuple[Detector, ...]
    weights: tuple[float, ...]
    detection: DetectionSettings

    def __post_init__(self) -> None:
        if self.detection.context and all(detector.image_svms is None for detector in self.detectors):
            raise SppdetError("detection.context: none of these models has SVMs of whole images")
        if self.detection.rescore and any(detector.features.needs_windows for detector in self.detectors):
            raise SppdetError("detection.rescore: one of these models reads crops, not moved boxes; set it to 0")

    def __repr__(self) -> str:
        weights = ", ".join(f"{weight:.2g}" for weight in self.weights)
        lines = [
            f"Ensemble of {len(self.detectors)} detectors (weights {weights}) of {class_list(self.classes)}",
            "; ".join(map(describe_features, self.detectors)),
            describe_detection(self.parts[0]),
        ]
        return "\n  ".join(lines)

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the K classes."""
        return self.detectors[0].classes

    @property
    def search(self) -> SelectiveSearch:
        """Computes the proposals."""
        return self.detectors[0].search

    @property
    def trained_on(self) -> TrainedOn | None:
        """What is known of the first detector's training images."""
        return self.detectors[0].trained_on

    @cached_property
    def parts(self) -> tuple[Detector, ...]:
        """The detectors with the settings of the ensemble."""
        without_context = replace(self.detection, context=0.0)
        return tuple(
            detector.with_detection(without_context if detector.image_svms is None else self.detection)
            for detector in self.detectors
        )

    @property
    def part_weights(self) -> tuple[float, ...]:
        return self.weights

    @property
    def calibrated(self) -> Calibration | None:
        return None  # the curves of the detectors do not hold for means of their margins

    def with_detection(self, settings: DetectionSettings | None = None, **changes: Any) -> Ensemble:
        return replace(self, detection=replace(settings or self.detection, **changes))
