"""COCO's average precision, and the files that its toolkit (pycocotools) reads.

Names as in `sppdet.evaluation.voc`. Boxes are xyxy pixel edges (`sppdet.ops.boxes`); results are percentages.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sppdet.data import Dataset, coco_mark
from sppdet.detection import Detections
from sppdet.evaluation.voc import check_detections
from sppdet.ops import boxes as geometry
from sppdet.utils import write_lines

if TYPE_CHECKING:
    from pycocotools.coco import COCO

FIGURES = {  # name here -> position in COCOeval.stats
    "AP": 0,
    "AP50": 1,
    "AP75": 2,
    "AP_small": 3,
    "AP_medium": 4,
    "AP_large": 5,
    "AR_100": 8,
}


def evaluate_coco(dataset: Dataset, detections: Sequence[Detections]) -> dict[str, float | None]:
    """Compute COCO's figures for boxes with pycocotools: its official numbers times 100.

    Regions that are ignored are crowds. So are difficult objects: ``iscrowd`` is the only mark from which pycocotools
    takes what to ignore (it overwrites a field ``ignore``). As in VOC, they need not be found and a detection on one is
    not wrong. The rules still differ from VOC's where there are difficult or crowded objects, by more than the sampling
    of the curve:

    - The overlap with a crowd is the intersection over the area of the *detection*. A small box inside a difficult
      object is therefore ignored by COCO and wrong by VOC.
    - COCO prefers objects that count and have no detection yet; VOC takes the object of the highest overlap.

    Args:
        dataset: P samples of K classes.
        detections: P entries, in the order of ``dataset.samples``. Per class and image the 100 of the highest scores
            count.

    Returns:
        ``AP`` (mean over classes and IoU .50:.05:.95, precision sampled at 101 recalls), ``AP50``, ``AP75``,
        ``AP_small`` (objects below 32 x 32 pixels), ``AP_medium``, ``AP_large`` (above 96 x 96) and ``AR_100``;
        ``None`` where there is no object to find.

    Raises:
        SppdetError: as `sppdet.evaluation.voc.check_detections`.
    """
    from pycocotools.cocoeval import COCOeval  # imported late: the rest of the module works without it

    check_detections(dataset, detections)
    if not dataset.classes:
        return dict.fromkeys(FIGURES)
    with contextlib.redirect_stdout(io.StringIO()):
        content = ground_truth(dataset)
        truth = _coco(content)
        # pycocotools takes 1.7 kB per detection, so it gets the detections of one class at a time.
        numbers = image_ids(dataset)
        class_curves = [_curves(truth, content, numbers, detections, label) for label in range(len(dataset.classes))]
        whole = COCOeval(truth, truth, "bbox")  # used only to summarise the curves of all classes side by side
        whole.eval = {
            name: np.concatenate([curves[name] for curves in class_curves], axis=-3) for name in class_curves[0]
        }
        whole.summarize()
    values = {name: float(whole.stats[position]) for name, position in FIGURES.items()}
    return {name: None if value < 0 else 100 * value for name, value in values.items()}  # -1: there is no object


def _curves(
    truth: COCO, content: dict, numbers: list[int], detections: Sequence[Detections], label: int
) -> dict[str, np.ndarray]:
    """Return ``precision`` and ``recall`` of ``COCOeval.accumulate`` for one class (the third axis from the end)."""
    from pycocotools.cocoeval import COCOeval

    of_class = (entry[entry.labels == label] for entry in detections)
    annotations = [fields for number, entry in zip(numbers, of_class) for fields in _result_fields(number, entry)]
    # The fields that `loadRes` adds. It is not called, because it refuses an empty list.
    for number, fields in enumerate(annotations, start=1):
        fields.update(id=number, area=fields["bbox"][2] * fields["bbox"][3], iscrowd=0)
    evaluation = COCOeval(truth, _coco({**content, "annotations": annotations}), "bbox")
    evaluation.params.catIds = [label + 1]
    evaluation.evaluate()
    evaluation.accumulate()
    return {name: evaluation.eval[name] for name in ("precision", "recall")}


def _coco(content: dict) -> COCO:
    """Make a ``pycocotools.coco.COCO`` of a dict instead of a file."""
    from pycocotools.coco import COCO

    coco = COCO()
    coco.dataset = content
    coco.createIndex()
    return coco


def image_ids(dataset: Dataset) -> list[int]:
    """Return COCO's integer of each image.

    It is the image's id where all ids are different numbers ("000005" is 5), else 1, 2 ... Ids of 2**53 and more do not
    count as numbers: JSON readers that keep numbers as doubles would mix them up.

    Examples:
        >>> from pathlib import Path
        >>> from sppdet.data.dataset import Sample
        >>> empty = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool)
        >>> image_ids(Dataset((), tuple(Sample(name, Path(name), 1, 1, *empty) for name in ("000005", "000012"))))
        [5, 12]
        >>> image_ids(Dataset((), tuple(Sample(name, Path(name), 1, 1, *empty) for name in ("a5", "a12"))))
        [1, 2]
    """
    names = [sample.id for sample in dataset.samples]
    if all(name.isascii() and name.isdigit() for name in names):
        numbers = [int(name) for name in names]
        if len(set(numbers)) == len(numbers) and max(numbers, default=0) < 2**53:
            return numbers
    return list(range(1, len(names) + 1))


def file_names(dataset: Dataset) -> list[str]:
    """Return the file of each image, relative to the deepest folder that holds them all."""
    paths = [Path(sample.path).absolute() for sample in dataset.samples]
    if not paths:
        return []
    root = os.path.commonpath([path.parent for path in paths])
    return [Path(os.path.relpath(path, root)).as_posix() for path in paths]


def ground_truth(dataset: Dataset) -> dict:
    """Return the data set as the content of a COCO annotation file.

    Category ids are labels + 1, annotation ids start at 1 (pycocotools takes an annotation 0 for "no match"), boxes are
    (left, top, width, height). Difficult objects and regions that are ignored are ``iscrowd`` (see `evaluate_coco`); a
    region that is ignored for every class is a crowd of each.
    """
    images: list[dict] = []
    annotations: list[dict] = []
    for number, name, sample in zip(image_ids(dataset), file_names(dataset), dataset.samples):
        images.append({"id": number, "file_name": name, "width": int(sample.width), "height": int(sample.height)})
        marks = [coco_mark(difficult) for difficult in sample.difficult.tolist()]
        rows = [*zip(geometry.to_xywh(sample.boxes).tolist(), sample.labels.tolist(), marks)]
        for label in range(len(dataset.classes)):
            crowds = geometry.to_xywh(sample.ignored_of(label)).tolist()
            rows += [(bbox, label, coco_mark(ignored=True)) for bbox in crowds]
        for bbox, label, mark in rows:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": label + 1,
                    "bbox": bbox,
                    "area": bbox[2] * bbox[3],
                    **mark,
                }
            )
    categories = [{"id": k, "name": name, "supercategory": ""} for k, name in enumerate(dataset.classes, start=1)]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


def results(dataset: Dataset, detections: Sequence[Detections]) -> Iterator[dict]:
    """Yield the entries of a COCO results file, with the ids of `ground_truth`.

    Besides COCO's own fields each entry has ``file_name``, so that a reader without the annotation file knows the
    image; ``loadRes`` keeps fields that it does not know.
    """
    for number, name, entry in zip(image_ids(dataset), file_names(dataset), detections):
        for fields in _result_fields(number, entry):
            yield fields | {"file_name": name}


def _result_fields(number: int, entry: Detections) -> Iterator[dict]:
    """Yield COCO's fields of each detection in image ``number``."""
    rows = zip(geometry.to_xywh(entry.boxes).tolist(), entry.labels.tolist(), entry.scores.tolist())
    for bbox, label, score in rows:
        yield {"image_id": number, "category_id": label + 1, "bbox": bbox, "score": score}


def write_coco_ground_truth(path: str | os.PathLike, dataset: Dataset) -> None:
    """Write the data set as a COCO annotation file, for ``pycocotools.coco.COCO(path)``.

    Raises:
        SppdetError: if the file cannot be written.
    """
    write_lines(path, [json.dumps(ground_truth(dataset))])


def write_coco_results(path: str | os.PathLike, dataset: Dataset, detections: Sequence[Detections]) -> None:
    """Write a COCO results file, one detection per line, for ``COCO.loadRes(path)``, which wants at least one.

    Numbers are exact: pycocotools computes from the files the figures that `evaluate_coco` returns.

    Raises:
        SppdetError: if the file cannot be written, and as `sppdet.evaluation.voc.check_detections`.
    """
    check_detections(dataset, detections)
    lines = map(json.dumps, results(dataset, detections))
    write_lines(path, chain(["["], islice(lines, 1), (f",{line}" for line in lines), ["]"]))
