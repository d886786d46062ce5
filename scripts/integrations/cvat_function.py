"""A detection function for CVAT's auto-annotation: boxes of a trained detector in the images of a task.

    pip install cvat-sdk cvat-cli
    cvat-cli --server-host HOST task auto-annotate TASK --function-file scripts/integrations/cvat_function.py \
        -p run=str:runs/mydata --allow-unmatched-labels

The classes of the detector are matched with the labels of the task by their names.
"""

from __future__ import annotations

from pathlib import Path

import cvat_sdk.auto_annotation as cvataa
from cvat_sdk.models import LabeledShapeRequest
from PIL import Image

import sppdet


class DetectionFunction:
    """What CVAT calls, image by image.

    Args:
        run: the folder of the detector.

    Attributes:
        spec: the labels that the function knows, by number: the classes of the detector.
    """

    def __init__(self, run: str | Path):
        self._detector = sppdet.load(run)
        labels = [cvataa.label_spec(name, k, type="rectangle") for k, name in enumerate(self._detector.classes)]
        self.spec = cvataa.DetectionFunctionSpec(labels=labels)

    def detect(self, context: cvataa.DetectionFunctionContext, image: Image.Image) -> list[LabeledShapeRequest]:
        """Return the detections in an image as rectangles; without a threshold of the user, those of `predict`."""
        if context.conf_threshold is None:
            detections = self._detector.predict(image)
        else:
            detections = self._detector.predict(image, threshold=None)
            detections = detections[detections.confidence >= context.conf_threshold]
        rows = zip(detections.labels.tolist(), detections.xyxy.tolist())
        return [cvataa.rectangle(label, box) for label, box in rows]


create = DetectionFunction  # the name that cvat-cli looks for, called with the values of -p
