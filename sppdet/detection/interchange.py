"""Detections in the forms of other tools: supervision, SAHI, transformers and MegaDetector.

Boxes here are pixel edges from 0 (`sppdet.ops.boxes`), as in supervision, SAHI and transformers, so that their corners
are the same numbers.
"""

from __future__ import annotations

import importlib
from datetime import datetime
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from sppdet.utils import SppdetError

if TYPE_CHECKING:
    from sahi.models.base import DetectionModel

    from sppdet.detection.detections import Detections
    from sppdet.detection.predictor import Predictor

_MEGADETECTOR_VERSION = "1.6"


def to_supervision(detections: Detections) -> Any:
    """Return what `sppdet.Detections.to_supervision` returns."""
    supervision = _import("supervision")
    return supervision.Detections(
        xyxy=detections.xyxy.copy(),
        confidence=detections.confidence,
        class_id=detections.labels.astype(int),
        data={"class_name": detections.names.astype(str), "margin": detections.scores.copy()},
    )


def sahi_model(predictor: Predictor, confidence: float) -> DetectionModel:
    """Return what `sppdet.Detector.to_sahi` returns."""
    base, prediction = _import("sahi.models.base"), _import("sahi.prediction")

    class SahiModel(base.DetectionModel):  # type: ignore[name-defined]
        """A detector as SAHI calls it; images are RGB."""

        def set_model(self, model: Predictor, **_: Any) -> None:
            self.model = model
            self.category_mapping = {str(k): name for k, name in enumerate(model.classes)}

        has_mask = False

        @property
        def num_categories(self) -> int:
            return len(self.model.classes)

        @property
        def category_names(self) -> list[str]:
            return list(self.model.classes)

        def perform_inference(self, image: np.ndarray) -> None:
            self._original_predictions = self.model.predict(image, threshold=None)

        def _create_object_prediction_list_from_original_predictions(
            self, shift_amount_list: Any = None, full_shape_list: Any = None
        ) -> None:
            detections = self._original_predictions
            rows = zip(detections.xyxy.tolist(), detections.labels.tolist(), detections.confidence.tolist())
            self._object_prediction_list_per_image = [
                [
                    prediction.ObjectPrediction(
                        bbox=box,
                        category_id=label,
                        category_name=self.model.classes[label],
                        score=confidence,
                        shift_amount=_only(shift_amount_list, [0, 0]),
                        full_shape=_only(full_shape_list, None),
                    )
                    for box, label, confidence in rows
                    if confidence >= self.confidence_threshold
                ]
            ]

    return SahiModel(model=predictor, device="cpu", confidence_threshold=confidence)


def _only(values: Any, default: Any) -> Any:
    """Return the pair of an image from SAHI's list of one pair, or from the pair itself."""
    return default if not values else values[0] if isinstance(values[0], (list, tuple)) else values


def to_transformers(detections: Detections) -> list[dict]:
    """Return what `sppdet.Detections.to_transformers` returns."""
    rows = zip(detections.confidence.tolist(), detections.names.tolist(), np.rint(detections.xyxy).astype(int).tolist())
    return [
        {"score": score, "label": str(label), "box": dict(zip(("xmin", "ymin", "xmax", "ymax"), box))}
        for score, label, box in rows
    ]


def to_megadetector(detections: Detections, size: tuple[int, int]) -> list[dict]:
    """Return what `sppdet.Detections.to_megadetector` returns."""
    x1, y1, x2, y2 = (detections.xyxy.astype(float) / [*size, *size]).T
    boxes = np.stack([x1, y1, x2 - x1, y2 - y1], axis=1).round(5).tolist()
    rows = zip(detections.labels.tolist(), detections.confidence.tolist(), boxes)
    return [{"category": str(label + 1), "conf": round(value, 5), "bbox": box} for label, value, box in rows]


def megadetector_document(images: list[dict], classes: tuple[str, ...], detector: str) -> dict:
    """Return a document in the form of MegaDetector's batch output.

    Args:
        images: an entry per image: ``file``, and ``detections`` (see `to_megadetector`) or, for an image that could not
            be read, ``failure`` and ``detections`` None.
        classes: names of all classes.
        detector: name of the model.
    """
    info = {"format_version": _MEGADETECTOR_VERSION, "detector": detector}
    info["detection_completion_time"] = datetime.now().strftime("%Y-%m-%d %H:%M:%S")
    categories = {str(k): name for k, name in enumerate(classes, start=1)}
    return {"info": info, "detection_categories": categories, "images": images}


def _import(module: str) -> ModuleType:
    """Import a module of an optional package.

    Raises:
        SppdetError: the package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        raise SppdetError(f"{package} cannot be imported ({error}); install it as docs/other-tools.md says") from None
