"""Result files of the VOC development kit (devkit): written, and read back."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sppdet.data import NO_FILE_NAME, Dataset, fits_file_names
from sppdet.detection import Detections
from sppdet.evaluation.voc import check_detections
from sppdet.ops import boxes as geometry
from sppdet.utils import SppdetError, write_lines


def check_names(dataset: Dataset, split: str) -> None:
    """Refuse names that the devkit's files cannot hold.

    Raises:
        SppdetError: if the split or a class cannot stand in a file name, or an image's id holds white space; names the
            first of them.
    """
    for name in (split, *dataset.classes):
        if not fits_file_names(name):
            raise SppdetError(f"{name!r}: {NO_FILE_NAME}; rename that class or split")
    for sample in dataset.samples:
        if len(sample.id.split()) != 1 or sample.id != sample.id.strip():
            raise SppdetError(f"image {sample.id!r}: white space would break the devkit's lines; rename the file")


def write_devkit_results(
    folder: str | os.PathLike, dataset: Dataset, detections: Sequence[Detections], split: str
) -> None:
    """Write ``comp4_det_<split>_<class>.txt`` for the VOC devkit, one file per class.

    A line is ``id score x1 y1 x2 y2`` with VOC's 1-based inclusive corners. A class without detections has an empty
    file.

    Scores have nine digits, which tell any two float32 apart: with the three digits of some programs many are equal,
    and the order that AP depends on is lost. Corners have ten, one more for the 1 that is added: a rounded corner may
    take the IoU of a detection over 0.5, which for a detection of a high score is points of AP.

    Args:
        folder: where the files go; created if needed.
        dataset: P samples of K classes.
        detections: P entries, in the order of ``dataset.samples``.
        split: such as ``test``.

    Raises:
        SppdetError: if a file cannot be written, and as `check_names` and
            `sppdet.evaluation.voc.check_detections`.
    """
    check_detections(dataset, detections)
    check_names(dataset, split)
    lines: list[list[str]] = [[] for _ in dataset.classes]
    for sample, entry in zip(dataset.samples, detections):
        rows = zip(geometry.to_voc(entry.boxes).tolist(), entry.labels.tolist(), entry.scores.tolist())
        for (x1, y1, x2, y2), label, score in rows:
            lines[label].append(f"{sample.id} {score:.9g} {x1:.10g} {y1:.10g} {x2:.10g} {y2:.10g}")
    for name, content in zip(dataset.classes, lines):
        write_lines(_devkit_file(folder, split, name), content)


def read_devkit_results(folder: str | os.PathLike, dataset: Dataset, split: str) -> list[Detections]:
    """Read the files of `write_devkit_results`.

    Returns:
        An entry for each sample of ``dataset``, highest score first.

    Raises:
        SppdetError: if the file of a class is missing or cannot be read, a line is not of the devkit's form, or an
            image is not in the data set.
    """
    numbers = {sample.id: i for i, sample in enumerate(dataset.samples)}
    images, labels, values = np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 5))
    for label, name in enumerate(dataset.classes):
        path = _devkit_file(folder, split, name)
        try:
            lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
            class_values = np.array([line[1:] for line in lines], np.float64).reshape(len(lines), 5)
            class_images = np.array([numbers[line[0]] for line in lines], np.int64)
        except OSError as error:
            raise SppdetError(
                f"{path}: cannot be read ({error.strerror}); python -m sppdet.evaluate writes it"
            ) from None
        except ValueError:
            raise SppdetError(
                f"{path}: a line is not `id score x1 y1 x2 y2`; write it again: python -m sppdet.evaluate RUN --force"
            ) from None
        except KeyError as error:
            raise SppdetError(f"{path}: image {error} is not in split {split}; evaluate on the same split") from None
        images = np.concatenate([images, class_images])
        labels = np.concatenate([labels, np.full(len(lines), label)])
        values = np.concatenate([values, class_values])
    order = np.lexsort((-values[:, 0], images))
    cuts = np.searchsorted(images[order], np.arange(1, len(dataset.samples)))
    return [
        Detections(
            geometry.from_voc(values[rows, 1:]), labels[rows], values[rows, 0].astype(np.float32), dataset.classes
        )
        for rows in np.split(order, cuts)[: len(dataset.samples)]
    ]


def _devkit_file(folder: str | os.PathLike, split: str, name: str) -> Path:
    """Return the path of the file of class ``name``."""
    return Path(folder) / f"comp4_det_{split}_{name}.txt"
