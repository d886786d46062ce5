"""Evaluate detections, and detectors, without a run's folder or cache."""

from __future__ import annotations

from collections.abc import Sequence

from sppdet.data import Dataset
from sppdet.detection import Detections, Predictor
from sppdet.evaluation.coco import evaluate_coco
from sppdet.evaluation.voc import check_detections, evaluate_voc, only_looked_for
from sppdet.utils import SppdetError, parallel_map


def evaluate_detections(dataset: Dataset, detections: Sequence[Detections], iou_threshold: float = 0.5) -> dict:
    """Compute VOC's and COCO's figures of detections, in percent.

    Args:
        dataset: P samples of K classes, such as `sppdet.data.read_voc` returns.
        detections: P entries, in the order of the data set; labels are those of its classes.
        iou_threshold: lowest IoU with which a detection finds an object, in (0, 1], for VOC's figures. COCO's have
            thresholds of their own.

    Returns:
        ``mAP`` (VOC's 11-point rule), ``mAP_area`` (VOC's area rule); ``AP``, ``AP_area`` and ``recall``, each a dict
        by class name (see `sppdet.evaluation.voc.evaluate_voc`); ``coco``, a dict of ``AP``, ``AP50``, ``AP75``,
        ``AP_small``, ``AP_medium``, ``AP_large`` and ``AR_100`` (see `sppdet.evaluation.coco.evaluate_coco`).
        ``None`` where there is no object to find.

    Raises:
        SppdetError: if the detections do not fit the data set or hold a number that is not finite.

    An image with one cat, found by a box that covers four fifths of it:

    Examples:
        >>> import numpy as np
        >>> from pathlib import Path
        >>> from sppdet.data.dataset import Dataset, Sample
        >>> from sppdet.detection import Detections
        >>> box, label = np.array([[0, 0, 40, 40]], np.float32), np.array([0])
        >>> image = Sample("1", Path("1.jpg"), 640, 480, box, label, difficult=np.array([False]))
        >>> detections = Detections(np.array([[0, 0, 40, 32]], np.float32), label, np.array([1.5], np.float32))
        >>> result = evaluate_detections(Dataset(("cat",), (image,)), [detections])
        >>> result["mAP"], result["recall"], round(result["coco"]["AP"], 1)  # COCO: 7 of 10 thresholds
        (100.0, {'cat': 100.0}, 70.0)
    """
    check_detections(dataset, detections)
    detections = only_looked_for(dataset, detections)
    return {
        **evaluate_voc(dataset, detections, iou_threshold),
        "coco": evaluate_coco(dataset, detections),
    }


def evaluate_detector(detector: Predictor, dataset: Dataset, iou_threshold: float = 0.5, workers: int = 0) -> dict:
    """Run a detector on every image of a data set and compute VOC's and COCO's figures.

    Every detection above the detector's ``detection.min_margin`` counts. Images are read and searched one by one,
    several at a time, and nothing is stored.

    Args:
        detector: as `sppdet.load` returns it.
        dataset: images with ground truth of the detector's classes, in the detector's order.
        iou_threshold: as in `evaluate_detections`.
        workers: number of images at a time; 0 for one per core.

    Returns:
        The figures of `evaluate_detections`.

    Raises:
        SppdetError: if the classes of the data set are not those of the detector, or an image cannot be read.

    Examples:
        >>> import sppdet  # doctest: +SKIP
        >>> detector = sppdet.load("runs/demo")  # doctest: +SKIP
        >>> dataset = sppdet.data.read_voc("VOCdevkit", "test", classes=detector.classes)  # doctest: +SKIP
        >>> evaluate_detector(detector, dataset)["mAP"]  # doctest: +SKIP
    """
    if dataset.classes != tuple(detector.classes):
        raise SppdetError(
            f"the data set's classes ({', '.join(dataset.classes)}) are not the detector's "
            f"({', '.join(detector.classes)}); read it with classes=detector.classes"
        )

    def detect(i: int) -> Detections:
        return detector.predict_pixels(dataset[i].open(), threshold=None)  # mAP counts low scores too

    detections = list(parallel_map(detect, range(len(dataset)), workers, "detecting", threads=True))
    return evaluate_detections(dataset, detections, iou_threshold)
