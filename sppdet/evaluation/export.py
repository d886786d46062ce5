"""A run's evaluation as a COCO data set with detections, which FiftyOne and other tools open."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable

from sppdet.evaluation.coco import file_names, write_coco_ground_truth, write_coco_results
from sppdet.evaluation.run import read_last_evaluation
from sppdet.utils import new_folder


def export_run(folder: str | os.PathLike, output: str | os.PathLike, overrides: Iterable[str] = ()) -> str:
    """Write the last evaluation of a run as a folder in the layout that FiftyOne has for COCO data sets.

    The folder holds ``data/``, copies of the test images; ``labels.json``, their objects as COCO's ground truth; and
    ``detections.json``, COCO's results, whose scores are margins.

    Args:
        folder: the run's folder.
        output: the new folder.
        overrides: ``key=value`` settings for files that have moved since, such as ``data.root=...``.

    Returns:
        What was written, in one line.

    Raises:
        SppdetError: the run was not evaluated, or the new folder exists already or cannot be written.
    """
    last = read_last_evaluation(folder, overrides)
    with new_folder(output) as unfinished:
        for name, sample in zip(file_names(last.dataset), last.dataset):
            copy = unfinished / "data" / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(sample.path, copy)
        write_coco_ground_truth(unfinished / "labels.json", last.dataset)
        write_coco_results(unfinished / "detections.json", last.dataset, last.detections)
    return f"{output}: {len(last.dataset)} images with their objects and {sum(map(len, last.detections))} detections"
