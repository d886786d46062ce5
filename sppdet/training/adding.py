"""New classes and new background for a trained model, from new images and the model's bank alone.

A new class is learned as in training: its objects in the new images are positives, and negatives are mined in these
images. All vectors of the bank are negatives, too, in every fit. The other classes are not touched.

Images without any object of the classes are searched for hard negatives of every class. The SVM of a class that has
some is fitted on: its weights are the sum of what the vectors of the bank contribute and of a rest, which is what the
training images that are not in the bank have contributed. The rest stays as it is (`sppdet.training.svm.remainder`).
So the fit starts at the SVM itself, is done at once without new negatives, and otherwise is the training of the SVM on
all its windows, of which those outside the bank keep their dual variables.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sppdet.data import Dataset, read_folder
from sppdet.detection import (
    BoxRegressors,
    Calibration,
    Detector,
    LinearSVMs,
    StoredClass,
    StoredModel,
    as_half,
    compact_regressors,
    load_detector,
)
from sppdet.training import bbox_regression
from sppdet.training.bank import BANK_FILE, Bank, choose_windows, store_vectors, vectors_key
from sppdet.training.calibration import fit_class
from sppdet.training.held_out import HeldOut, calibration_folds, hold_out, join_folds
from sppdet.training.mining import FixedRows, Miner
from sppdet.training.model_and_bank import read_model, save_model
from sppdet.training.new_images import as_trained, filled_split, new_names, without_objects
from sppdet.utils import Execution, SppdetError

logger = logging.getLogger(__name__)

_MOST_NEW = 0.1  # share of the bank that the negatives of one call with images of background may take


def add_classes(
    run: str | Path,
    images: str | Path | Dataset,
    classes: Sequence[str] | None = None,
    *,
    output: str | Path | None = None,
    cache: str | Path | None = None,
    device: str = "auto",
    workers: int = 0,
) -> Detector:
    """Teach a trained model new classes, from labelled images of these alone.

    Args:
        run: folder of the model, with its bank; a run's folder, or a copy of the model's files.
        images: a folder of labelled images, in any format that training reads; or a data set. Objects of other classes
            in these images are negatives of the new ones.
        classes: names of the new classes; by default all classes of the images that the model does not have.
        output: folder of the new model, which must not exist; by default the model is replaced. The detector that is
            part of the package, ``voc07``, is never replaced.
        cache: folder where proposals and feature maps are kept; by default the run's, if it is there.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        workers: 0 is every core.

    Returns:
        The new detector. New classes come last; the numbers of the others stay, and so do their weights, bit for bit.

    Raises:
        SppdetError: the model has no bank or one that does not fit, a class exists, or the images show none of them.
            Nothing has been changed then.

    Examples:
        >>> detector = add_classes("runs/demo", "photos_of_zebras", ["zebra"])  # doctest: +SKIP
    """
    model, bank = read_model(run, output)
    if bank.bbox.enabled and bank.bbox.kind == "joint":
        raise SppdetError(f"{run}: joint boxes are learned for all classes at once; train with bbox.kind=ridge")
    dataset = images if isinstance(images, Dataset) else read_folder(images).dataset()
    names = new_names(model, dataset, classes, images)
    labels = [dataset.classes.index(name) for name in names]
    detector = _checked_detector(model, bank, device)
    dataset = as_trained(dataset, detector)
    execution = Execution(bank.seed, workers)
    with filled_split(model.folder, dataset, detector, cache, workers, bank) as (split, mirrored):
        features, of_svms = detector.features, mirrored if bank.svm.flip else split
        vectors = bank.vectors.decoded(features)
        fixed = FixedRows(vectors, np.full((len(vectors), len(labels)), -1, np.int8))
        miner = Miner(of_svms, features, labels, bank.svm, bank.scales[0], execution, fixed)
        svms = miner.train()
        boxes = None
        if detector.regressors is not None:
            boxes = bbox_regression.train(
                mirrored if bank.bbox.flip else split, features.pooled, labels, bank.bbox, bank.scales[1], execution
            )
            if detector.regressors.of_head:
                boxes = boxes.beside_fc7(features.dimension)
        curves: list[dict[str, Any] | None] = [None] * len(names)
        if detector.calibration is not None and bank.calibration.folds and len(dataset) > 1:
            folds = hold_out(
                of_svms, _of_new_classes(detector, names, svms, boxes), [miner.windows(k) for k in range(len(labels))],
                miner.problem, calibration_folds(dataset.samples, bank.calibration, execution.seed), execution,
                (vectors, miner.fixed_rows),
            )  # fmt: skip
            curves = [_curve(one, detector.calibration) for one in join_folds(folds, labels)]
        limit = -(-2 * bank.limit * len(names) // (len(model.classes) + len(names)))
        locations, new_labels = choose_windows(of_svms, svms, miner, min(limit, bank.limit), execution.seed)
        stored = store_vectors(of_svms, features, locations, execution)
    every = np.zeros((len(locations), len(model.classes) + len(names)), np.int8)  # others may not be annotated
    every[:, len(model.classes) :] = new_labels
    new_bank = bank.with_rows(stored, every, [*model.classes, *names])
    added = []
    for k, name in enumerate(names):
        arrays = {"classifier.weight": svms.weight[k], "classifier.bias": svms.bias[k]}
        # New images need not show where the class is absent: its SVM of whole images is 0, and lowers no window.
        arrays |= {key: np.zeros_like(rows[0]) for key, rows in model.tensors.items() if key.startswith("context.")}
        if boxes is not None:
            arrays |= {"bbox.weight": boxes.weight[k], "bbox.bias": boxes.bias[k]}
        added.append(StoredClass(name, _as_stored(model, arrays), curves[k]))
    return _saved(model.with_classes([*model.stored_classes(), *added]), new_bank, output, device)


def add_background(
    run: str | Path,
    images: str | Path | Dataset,
    *,
    output: str | Path | None = None,
    cache: str | Path | None = None,
    device: str = "auto",
    workers: int = 0,
) -> Detector:
    """Refit a trained model on images that hold none of its classes: what it finds in them was a false alarm.

    The arguments after ``images`` are those of `add_classes`.

    Args:
        run: folder of the model, with its bank.
        images: a folder of images, which need no annotations; or a data set, whose objects are not looked at.

    Returns:
        The new detector. A class without hard negatives in the images keeps its weights, bit for bit.

    Raises:
        SppdetError: the model has no bank or one that does not fit, or an image cannot be read.
    """
    model, bank = read_model(run, output)
    if bank.svm.solver != "dual":
        raise SppdetError("svm.solver: SVMs of liblinear cannot be fitted on; train with svm.solver=dual")
    detector = _checked_detector(model, bank, device)
    dataset = as_trained(without_objects(images, detector.classes), detector)
    execution, features = Execution(bank.seed, workers), detector.features
    assert isinstance(detector.classifier, LinearSVMs)
    with filled_split(model.folder, dataset, detector, cache, workers, bank) as (split, _):
        fixed = FixedRows(bank.vectors.decoded(features), bank.labels, detector.classifier)
        miner = Miner(split, features, range(len(model.classes)), bank.svm, bank.scales[0], execution, fixed)
        svms = miner.refine()
        held = np.flatnonzero(miner.cache.held.any(axis=1))
        order = np.argsort(-miner.cache.held[held].sum(axis=1), kind="stable")
        locations = miner.cache.locations[held[order[: round(_MOST_NEW * bank.limit)]]]
        stored = store_vectors(split, features, locations, execution)
    new_bank = bank.with_rows(stored, np.full((len(stored), len(model.classes)), -1, np.int8))
    old = detector.classifier
    changed = [k for k in range(len(old.bias)) if not np.array_equal(old.weight[k], svms.weight[k])]
    logger.info(
        "%d of %d classes had hard negatives%s", len(changed), len(model.classes),
        f": {', '.join(model.classes[k] for k in changed)}" if changed else "",
    )  # fmt: skip
    entries = model.stored_classes()
    for k in changed:
        arrays = {"classifier.weight": svms.weight[k], "classifier.bias": svms.bias[k]}
        entries[k] = replace(entries[k], arrays=entries[k].arrays | _as_stored(model, arrays))
    return _saved(model.with_classes(entries), new_bank, output, device)


def _saved(model: StoredModel, bank: Bank, output: str | Path | None, device: str) -> Detector:
    save_model(model, bank, output)
    return load_detector(model.folder if output is None else output, device)


def _as_stored(model: StoredModel, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the rows of a class in the precision of the stored arrays, as far as they fit."""
    arrays = {key: np.asarray(row) for key, row in arrays.items()}
    if "bbox.step" in model.tensors and "bbox.weight" in arrays:
        packed = compact_regressors({"weight": arrays["bbox.weight"]})
        arrays |= {f"bbox.{name}": array for name, array in packed.items()}
    dtypes = {key: model.tensors[key].dtype for key in arrays}
    return {key: as_half(row) if dtypes[key] == np.float16 else row.astype(dtypes[key]) for key, row in arrays.items()}


def _checked_detector(model: StoredModel, bank: Bank, device: str) -> Detector:
    """Load the detector, and check that the bank is of its features."""
    detector = load_detector(model.folder, device)
    key = vectors_key(detector.backbone, detector.features, detector.search, detector.head)
    if key != bank.key:
        raise SppdetError(
            f"{model.folder / BANK_FILE}: is of another network or other settings than the model; copy the file that "
            "was trained with it, or train again"
        )
    return detector


def _of_new_classes(
    detector: Detector, names: Sequence[str], svms: LinearSVMs, boxes: BoxRegressors | None
) -> Detector:
    return replace(
        detector, classes=tuple(names), classifier=svms, regressors=boxes, image_svms=None, calibration=None,
        detection=replace(detector.detection, context=0.0),
    )  # fmt: skip


def _curve(held_out: HeldOut, calibration: Calibration) -> dict[str, Any] | None:
    """Return the entry of model.json of a new class; None for the curve of all classes."""
    if not len(held_out.margins):
        return None
    curve, threshold = fit_class(held_out, calibration.shared, calibration.shared_threshold)
    one = Calibration((curve,), (threshold,), calibration.shared, calibration.shared_threshold)
    return one.description()["classes"][0]
