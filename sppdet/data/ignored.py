"""Regions of images of which nobody knows what they hold: boxes of classes that stand for this, as ``ignore``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sppdet.data.dataset import EVERY_CLASS, Dataset
from sppdet.utils import SppdetError


def with_ignored_classes(dataset: Dataset, names: Sequence[str]) -> Dataset:
    """Return a data set without some classes, whose boxes become regions that are ignored for all classes.

    Args:
        dataset: the images.
        names: the classes.

    Raises:
        SppdetError: a class is none of the data set's.

    Examples:
        >>> from pathlib import Path
        >>> from sppdet.data.dataset import Sample
        >>> boxes, labels = np.array([[0, 0, 9, 9], [5, 5, 7, 7]], np.float32), np.array([1, 0])
        >>> data = Dataset(("cat", "ignore"), (Sample("a", Path("a.jpg"), 10, 10, boxes, labels, labels > 1),))
        >>> data = with_ignored_classes(data, ["ignore"])
        >>> data.classes, data[0].boxes.tolist(), data[0].ignored.tolist()
        (('cat',), [[5.0, 5.0, 7.0, 7.0]], [[0.0, 0.0, 9.0, 9.0]])
    """
    if unknown := [name for name in names if name not in dataset.classes]:
        raise SppdetError(
            f"data.ignore_classes: no box is of class '{unknown[0]}'; they have {', '.join(dataset.classes)}; "
            "correct it, or give data.classes if only the test images have such boxes"
        )
    kept = [k for k, name in enumerate(dataset.classes) if name not in names]
    if len(kept) == len(dataset.classes):
        return dataset
    number = np.full(len(dataset.classes), EVERY_CLASS)
    number[kept] = np.arange(len(kept))
    samples = []
    for sample in dataset:
        labels = number[sample.labels]
        is_object = labels != EVERY_CLASS
        samples.append(
            replace(
                sample,
                boxes=sample.boxes[is_object],
                labels=labels[is_object],
                difficult=sample.difficult[is_object],
                ignored=np.concatenate([sample.ignored, sample.boxes[~is_object]]),
                ignored_labels=np.concatenate([number[sample.ignored_labels], labels[~is_object]]),
            )
        )
    return Dataset(tuple(dataset.classes[k] for k in kept), tuple(samples))
