"""The VOC development kit's result files: written, and read back."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sppdet.data import Dataset
from sppdet.detection import Detections
from sppdet.evaluation.voc import check_detections
from sppdet.ops import boxes as geometry
from sppdet.utils import SppdetError, write_lines


def check_names(dataset: Dataset, split: str) -> None:
    """Refuse what the devkit's files cannot hold: white space in an image's id, classes or a split that are no names.

    Raises:
        SppdetError: naming the first of them.
    """
    for part in (split, *dataset.classes):
        if not part or set(part) & set('/\\:*?"<>|\0\n\r'):
            raise SppdetError(f"{part!r}: cannot be part of a devkit file's name; rename that class or split")
        if len(part.encode()) > 100:
            raise SppdetError(f"{part!r}: is too long for a devkit file's name; rename that class or split")
    for sample in dataset.samples:
        if len(sample.id.split()) != 1 or sample.id != sample.id.strip():
            raise SppdetError(f"image {sample.id!r}: white space would break the devkit's lines; rename the file")


def write_devkit_results(
    folder: str | os.PathLike, dataset: Dataset, detections: Sequence[Detections], split: str
) -> None:
    """Write ``comp4_det_<split>_<class>.txt`` for the VOC devkit, one file for each class.

    A line is ``id score x1 y1 x2 y2`` with VOC's 1-based inclusive corners. Scores have the nine digits that
    tell any two float32 apart: with the three of some programs many are equal, and the order that AP depends
    on is lost. So do corners, one more for the 1 that is added: a rounded corner may take the IoU of a detection
    over 0.5, and where it is among the surest that is points of AP. A class without detections has an empty file.

    Raises:
        SppdetError: where detections do not fit the dataset, an image's id holds white space, the split or a
            class cannot be part of a file name, or a file cannot be written.
    """
    check_detections(dataset, detections)
    check_names(dataset, split)
    lines: list[list[str]] = [[] for _ in dataset.classes]
    for sample, found in zip(dataset.samples, detections):
        rows = zip(geometry.to_voc(found.boxes).tolist(), found.labels.tolist(), found.scores.tolist())
        for (x1, y1, x2, y2), label, score in rows:
            lines[label].append(f"{sample.id} {score:.9g} {x1:.10g} {y1:.10g} {x2:.10g} {y2:.10g}")
    for name, content in zip(dataset.classes, lines):
        write_lines(_devkit_file(folder, split, name), content)


def read_devkit_results(folder: str | os.PathLike, dataset: Dataset, split: str) -> list[Detections]:
    """What :func:`write_devkit_results` wrote, an entry for each sample, best first.

    Raises:
        SppdetError: a class's file is missing or cannot be read, a line is none of the devkit's, or an image is
            none of the dataset's.
    """
    numbers = {sample.id: i for i, sample in enumerate(dataset.samples)}
    images, labels, values = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros((0, 5))]
    for label, name in enumerate(dataset.classes):
        path = _devkit_file(folder, split, name)
        try:
            lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
            values.append(np.array([line[1:] for line in lines], np.float64).reshape(len(lines), 5))
            images.append(np.array([numbers[line[0]] for line in lines], np.int64))
        except OSError as error:
            raise SppdetError(
                f"{path}: cannot be read ({error.strerror}); python -m sppdet.evaluate writes it"
            ) from None
        except ValueError:
            raise SppdetError(
                f"{path}: a line is not `id score x1 y1 x2 y2`; python -m sppdet.evaluate RUN --force"
            ) from None
        except KeyError as error:
            raise SppdetError(f"{path}: image {error} is none of split {split}; evaluate on the same split") from None
        labels.append(np.full(len(lines), label))
    images, labels, values = map(np.concatenate, (images, labels, values))
    order = np.lexsort((-values[:, 0], images))
    cuts = np.searchsorted(images[order], np.arange(1, len(dataset.samples)))
    return [
        Detections(
            geometry.from_voc(values[rows, 1:]), labels[rows], values[rows, 0].astype(np.float32), dataset.classes
        )
        for rows in np.split(order, cuts)[: len(dataset.samples)]
    ]


def _devkit_file(folder: str | os.PathLike, split: str, name: str) -> Path:
    return Path(folder) / f"comp4_det_{split}_{name}.txt"
