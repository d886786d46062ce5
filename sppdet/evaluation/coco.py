"""COCO's average precision of detections, and the files that its toolkit reads.

Names as in :mod:`sppdet.evaluation.voc`; boxes are ours (:mod:`sppdet.ops.boxes`), results are percentages.
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

from sppdet.detection import Detections
from sppdet.evaluation.voc import check_detections
from sppdet.ops import boxes as geometry
from sppdet.utils import write_lines

if TYPE_CHECKING:
    from sppdet.data import Dataset

FIGURES = {  # our name -> its place in COCOeval.stats
    "AP": 0,
    "AP50": 1,
    "AP75": 2,
    "AP_small": 3,
    "AP_medium": 4,
    "AP_large": 5,
    "AR_100": 8,
}


def evaluate_coco(dataset: Dataset, detections: Sequence[Detections]) -> dict[str, float | None]:
    """COCO's figures for boxes by pycocotools, in percent: its official numbers times 100.

    ``AP`` (mean over classes and IoU .50:.05:.95, precision sampled at 101 recalls), ``AP50``, ``AP75``,
    ``AP_small`` (objects below 32 x 32 pixels), ``AP_medium``, ``AP_large`` (above 96 x 96) and ``AR_100``.
    ``None`` where there is no object to find. At most the 100 surest detections of a class in an image are
    looked at.

    Difficult objects are marked ``iscrowd``: it is the one mark from which pycocotools takes what to ignore
    (it overwrites a field ``ignore``). They are not missed when not found, and detections on them are not
    wrong, as in VOC; but the IoU with a crowd is intersection over the area of the *detection*, so a small
    window inside of a difficult object is forgiven too, and VOC would not. COCO also prefers objects that
    count and are still free, where VOC takes the best overlap. With difficult or crowded objects the two
    therefore differ by more than the sampling.

    Raises:
        SppdetError: as :func:`sppdet.evaluation.evaluate_voc`.
    """
    from pycocotools.cocoeval import COCOeval  # loaded here: the rest of the module starts without

    check_detections(dataset, detections)
    if not dataset.classes:
        return dict.fromkeys(FIGURES)
    with contextlib.redirect_stdout(io.StringIO()):
        content = ground_truth(dataset)
        truth = _coco(content)
        # pycocotools takes 1.7 kB a detection, so it is given one class at a time.
        numbers = image_ids(dataset)
        curves = [_curves(truth, content, numbers, detections, label) for label in range(len(dataset.classes))]
        whole = COCOeval(truth, truth, "bbox")  # whose summary is of the classes' curves side by side
        whole.eval = {name: np.concatenate([own[name] for own in curves], axis=-3) for name in curves[0]}
        whole.summarize()
    # pycocotools says -1 for "no object".
    values = {name: float(whole.stats[place]) for name, place in FIGURES.items()}
    return {name: None if value < 0 else 100 * value for name, value in values.items()}


def _curves(truth, content: dict, numbers: list[int], detections: Sequence[Detections], label: int) -> dict:
    """What ``COCOeval.accumulate`` finds of one class, its axis the third from the last."""
    from pycocotools.cocoeval import COCOeval

    of_class = (own[own.labels == label] for own in detections)
    found = [result for number, own in zip(numbers, of_class) for result in _entries(number, own)]
    # What `loadRes` adds; it refuses an empty list, so it is not called.
    for number, result in enumerate(found, start=1):
        result.update(id=number, area=result["bbox"][2] * result["bbox"][3], iscrowd=0)
    evaluation = COCOeval(truth, _coco({**content, "annotations": found}), "bbox")
    evaluation.params.catIds = [label + 1]
    evaluation.evaluate()
    evaluation.accumulate()
    return {name: evaluation.eval[name] for name in ("precision", "recall")}


def _coco(content: dict):
    """A ``pycocotools.coco.COCO`` of a dict instead of a file."""
    from pycocotools.coco import COCO

    coco = COCO()
    coco.dataset = content
    coco.createIndex()
    return coco


def image_ids(dataset: Dataset) -> list[int]:
    """COCO's integer of each image: its id, if all ids are different numbers ("000005" is 5), else 1, 2 ...

    Numbers of 2**53 and more count as names: JSON readers that keep numbers as doubles would mix them up.
    """
    names = [sample.id for sample in dataset.samples]
    if all(name.isascii() and name.isdigit() for name in names):
        numbers = [int(name) for name in names]
        if len(set(numbers)) == len(numbers) and max(numbers, default=0) < 2**53:
            return numbers
    return list(range(1, len(names) + 1))


def _file_names(dataset: Dataset) -> list[str]:
    """Each image's file, relative to the deepest folder that holds them all."""
    paths = [Path(sample.path).absolute() for sample in dataset.samples]
    if not paths:
        return []
    root = os.path.commonpath([path.parent for path in paths])
    return [Path(os.path.relpath(path, root)).as_posix() for path in paths]


def ground_truth(dataset: Dataset) -> dict:
    """The dataset as the content of a COCO annotation file.

    Category ids are labels + 1, annotation ids start at 1 (pycocotools takes an annotation 0 for "no match"),
    boxes are left, top, width, height, and difficult objects are ``iscrowd`` (see :func:`evaluate_coco`).
    """
    images, annotations = [], []
    for number, name, sample in zip(image_ids(dataset), _file_names(dataset), dataset.samples):
        images.append({"id": number, "file_name": name, "width": int(sample.width), "height": int(sample.height)})
        rows = zip(geometry.to_xywh(sample.boxes).tolist(), sample.labels.tolist(), sample.difficult.tolist())
        for bbox, label, difficult in rows:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": label + 1,
                    "bbox": bbox,
                    "area": bbox[2] * bbox[3],
                    "iscrowd": int(difficult),
                }
            )
    categories = [{"id": k, "name": name, "supercategory": ""} for k, name in enumerate(dataset.classes, start=1)]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


def results(dataset: Dataset, detections: Sequence[Detections]) -> Iterator[dict]:
    """Detections as the entries of a COCO results file, with the ids of :func:`ground_truth`.

    Beside COCO's own fields each entry carries ``file_name``, so that a reader without the annotation file
    knows the image; ``loadRes`` keeps fields that it does not know.
    """
    for number, name, found in zip(image_ids(dataset), _file_names(dataset), detections):
        for entry in _entries(number, found):
            yield entry | {"file_name": name}


def _entries(number: int, found: Detections) -> Iterator[dict]:
    """COCO's own fields of one image's detections."""
    rows = zip(geometry.to_xywh(found.boxes).tolist(), found.labels.tolist(), found.scores.tolist())
    for bbox, label, score in rows:
        yield {"image_id": number, "category_id": label + 1, "bbox": bbox, "score": score}


def write_coco_ground_truth(path: str | os.PathLike, dataset: Dataset) -> None:
    """Write :func:`ground_truth` for ``pycocotools.coco.COCO(path)``.

    Raises:
        SppdetError: where the file cannot be written.
    """
    write_lines(path, [json.dumps(ground_truth(dataset))])


def write_coco_results(path: str | os.PathLike, dataset: Dataset, detections: Sequence[Detections]) -> None:
    """Write :func:`results`, one detection a line, for ``COCO.loadRes(path)``, which wants at least one.

    Numbers are exact: pycocotools finds in the two files what :func:`evaluate_coco` does.

    Raises:
        SppdetError: where detections do not fit the dataset, or the file cannot be written.
    """
    check_detections(dataset, detections)
    lines = map(json.dumps, results(dataset, detections))
    write_lines(path, chain(["["], islice(lines, 1), (f",{line}" for line in lines), ["]"]))
