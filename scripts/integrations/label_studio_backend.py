"""An ML backend for Label Studio: boxes of a trained detector as predictions, which a person accepts or corrects.

    pip install label-studio-ml
    SPPDET_RUN=runs/mydata label-studio-ml start FOLDER      # FOLDER holds this file as model.py

The project's labelling configuration has an Image and RectangleLabels, with the names of the detector's classes.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

from label_studio_ml.model import LabelStudioMLBase

import sppdet
from sppdet.data import Prelabelled, label_studio_prediction, read_image


@cache
def detector() -> sppdet.Detector | sppdet.Ensemble:
    """Load the detector of the run that the environment variable SPPDET_RUN names."""
    run = os.environ.get("SPPDET_RUN")
    if not run:
        raise sppdet.SppdetError("SPPDET_RUN: not set; set it to the folder of a run, such as runs/mydata")
    return sppdet.load(run)


class Backend(LabelStudioMLBase):
    """What Label Studio calls with the tasks that a person opens."""

    def predict(self, tasks: list[dict], context: dict | None = None, **_: Any) -> list[dict]:
        """Return a prediction per task."""
        from_name, to_name, key = self._names()
        return [self._predict_one(task["data"][key], from_name, to_name) for task in tasks]

    def _predict_one(self, url: str, from_name: str, to_name: str) -> dict:
        """Return the prediction for the image at a URL."""
        path = Path(self.get_local_path(url))
        pixels = read_image(path)
        detections = detector().predict(pixels)
        names, confidence = detections.names.tolist(), detections.confidence.tolist()
        image = Prelabelled(path, (pixels.shape[1], pixels.shape[0]), names, detections.xyxy, confidence)
        return label_studio_prediction(image, from_name, to_name)

    def _names(self) -> tuple[str, str, str]:
        """Return the names of the control and of the image in the labelling configuration, and of the image's URL."""
        for name, control in self.parsed_label_config.items():
            if control["type"] == "RectangleLabels":
                return name, control["to_name"][0], control["inputs"][0]["value"]
        raise ValueError("the labelling configuration has no RectangleLabels; add <RectangleLabels ... toName='image'>")
