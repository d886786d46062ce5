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
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from sppdet.config import load as load_config
from sppdet.data import Dataset, Sample, find_images, read_folder, read_image
from sppdet.detection import (
    BoxRegressors,
    Calibration,
    Detector,
    LinearSVMs,
    StoredClass,
    StoredModel,
    compact_regressors,
    load_detector,
    model_folder,
    replace_files,
    shipped_model,
)
from sppdet.features import FeatureSplit, open_split
from sppdet.training import bbox_regression, svm
from sppdet.training.bank import BANK_FILE, Bank, choose_windows, store_vectors, vectors_key
from sppdet.training.calibration import fit_class
from sppdet.training.held_out import HeldOut, detect_in_fold, draw_folds, join_folds
from sppdet.training.locations import pool_locations
from sppdet.training.mining import FixedRows, Miner
from sppdet.utils import Execution, SppdetError, read_json, temporary_folder, write_json

logger = logging.getLogger(__name__)

_MOST_NEW = 0.1  # share of the bank that the negatives of one call with images of background may take
_FLOAT16_MAX = float(np.finfo(np.float16).max)


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
    model, bank = _read(run, output)
    if bank.bbox.enabled and bank.bbox.kind == "joint":
        raise SppdetError(f"{run}: joint boxes are learned for all classes at once; train with bbox.kind=ridge")
    dataset = images if isinstance(images, Dataset) else read_folder(images).dataset()
    names = _new_names(model, dataset, classes, images)
    labels = [dataset.classes.index(name) for name in names]
    detector = _checked_detector(model, bank, device)
    execution = Execution(bank.seed, workers)
    with _filled_split(model.folder, dataset, detector, cache, workers, bank) as (split, mirrored):
        features, of_svms = detector.features, mirrored if bank.svm.flip else split
        vectors = bank.vectors.decoded(features)
        fixed = FixedRows(vectors, np.full((len(vectors), len(labels)), -1, np.int8))
        miner = Miner(of_svms, features, labels, bank.svm, bank.scales[0], execution, fixed)
        svms = miner.train()
        boxes = None
        if detector.regressors is not None:
            of_boxes = features if detector.regressors.of_head else features.pooled
            boxes = bbox_regression.train(
                mirrored if bank.bbox.flip else split, of_boxes, labels, bank.bbox, bank.scales[1], execution
            )
        curves: list[dict[str, Any] | None] = [None] * len(names)
        if detector.calibration is not None and bank.calibration.folds:
            new = _of_new_classes(detector, names, svms, boxes)
            held_out = _hold_out(of_svms, len(dataset), new, miner, vectors, bank, execution)
            curves = [_curve(one, detector.calibration) for one in held_out]
        limit = -(-2 * bank.limit * len(names) // (len(model.classes) + len(names)))
        locations, new_labels = choose_windows(of_svms, features, svms, miner, min(limit, bank.limit), execution)
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

    Args:
        run: folder of the model, with its bank.
        images: a folder of images, which need no annotations; or a data set, whose objects are not looked at.
        output, cache, device, workers: as for `add_classes`.

    Returns:
        The new detector. A class without hard negatives in the images keeps its weights, bit for bit.

    Raises:
        SppdetError: the model has no bank or one that does not fit, or an image cannot be read.
    """
    model, bank = _read(run, output)
    if bank.svm.solver != "dual":
        raise SppdetError("svm.solver: SVMs of liblinear cannot be fitted on; train with svm.solver=dual")
    detector = _checked_detector(model, bank, device)
    dataset = _without_objects(images, detector.classes)
    execution, features = Execution(bank.seed, workers), detector.features
    assert isinstance(detector.classifier, LinearSVMs)
    with _filled_split(model.folder, dataset, detector, cache, workers, bank) as (split, _):
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


def remove_classes(run: str | Path, names: Sequence[str], *, output: str | Path | None = None) -> None:
    """Take classes out of a model; all others stay as they are, bit for bit.

    Args:
        run: folder of the model.
        names: the classes.
        output: folder of the new model, which must not exist; by default the model is replaced.

    Raises:
        SppdetError: the model does not have a class, or would have none left.
    """
    model, bank = _read(run, output, needs_bank=False)
    _check_known(model, names)
    kept = [one for one in model.stored_classes() if one.name not in names]
    if not kept:
        raise SppdetError(f"{run}: no class would be left; leave one")
    _save(model.with_classes(kept), bank and bank.without(names), output)


def rename_class(run: str | Path, old: str, new: str, *, output: str | Path | None = None) -> None:
    """Give a class of a model another name.

    Args:
        run: folder of the model.
        old: the name that it has.
        new: the name that it gets.
        output: folder of the new model, which must not exist; by default the model is replaced.

    Raises:
        SppdetError: the model does not have the class, or has one of the new name.
    """
    model, bank = _read(run, output, needs_bank=False)
    _check_known(model, [old])
    if new in model.classes or not new.strip():
        raise SppdetError(f"{run}: has a class '{new}' already; give another name" if new.strip() else "NEW: is empty")
    classes = [replace(one, name=new if one.name == old else one.name) for one in model.stored_classes()]
    names = tuple(one.name for one in classes)
    _save(model.with_classes(classes), bank and replace(bank, classes=names, origin=""), output)


def join_models(run: str | Path, other: str | Path, output: str | Path) -> None:
    """Make one detector of two with different classes on the same network and settings.

    Args:
        run: folder of the model whose classes come first, and whose settings of detection hold.
        other: folder of the other model.
        output: folder of the new model, which must not exist.

    Raises:
        SppdetError: the models share a class, or differ in what they must share.
    """
    model, bank = _read(run, output, needs_bank=False)
    second, other_bank = _read(other, output, needs_bank=False)
    if both := [name for name in model.classes if name in second.classes]:
        raise SppdetError(f"{other}: has {', '.join(both)}, as {run} has; rename or remove it in one of them")
    if difference := model.difference(second):
        raise SppdetError(f"{other}: its {difference} is not that of {run}; train both with the same settings")
    joined = None
    if bank and other_bank:
        if replace(bank.svm, bank=0) != replace(other_bank.svm, bank=0):
            raise SppdetError(f"{other}: was trained with other settings svm.* than {run}; train both with the same")
        labels = np.full((len(other_bank), len(model.classes) + len(second.classes)), -1, np.int8)
        labels[:, len(model.classes) :] = other_bank.labels
        joined = bank.with_rows(other_bank.vectors, labels, [*model.classes, *second.classes])
    else:
        logger.warning("%s: without a bank, as one of the models has none; no class can be added to it", output)
    model, second = model.expanded(), second.expanded()
    _save(model.with_classes([*model.stored_classes(), *second.stored_classes()]), joined, output)


# The model's files


def _read(name: str | Path, output: str | Path | None, needs_bank: bool = True) -> tuple[StoredModel, Any]:
    """Read a model and its bank; None for a bank that is neither there nor needed."""
    folder = model_folder(name)
    if output is None and folder == shipped_model():
        raise SppdetError(f"{name}: is part of the package and stays as it is; give --output FOLDER for the new model")
    if output is not None and Path(output).exists():
        raise SppdetError(f"{output}: exists already; give another --output")
    model = StoredModel.read(folder)
    if not needs_bank and not (folder / BANK_FILE).is_file():
        return model, None
    bank = Bank.load(folder)
    if bank.classes != model.classes:
        raise SppdetError(f"{folder / BANK_FILE}: is of another model, with other classes; copy both together")
    return model, bank


def _save(model: StoredModel, bank: Bank | None, output: str | Path | None) -> None:
    """Write a model and its bank in place of the old files, or into a new folder."""

    def write(folder: Path) -> None:
        model.write(folder)
        if bank is not None:
            bank.save(folder / BANK_FILE)

    if output is None:
        replace_files(model.folder, write)
        return
    output = Path(output)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(output.parent) as temporary:
            unfinished = temporary / output.name
            unfinished.mkdir()
            write(unfinished)
            if (model.folder / "config.json").is_file():
                settings = read_json(model.folder / "config.json", run=dict)
                write_json(unfinished / "config.json", settings | {"run": settings["run"] | {"dir": str(output)}})
            unfinished.rename(output)
    except OSError as error:
        raise SppdetError(f"{output}: cannot be written ({error.strerror}); choose another folder") from None


def _saved(model: StoredModel, bank: Bank, output: str | Path | None, device: str) -> Detector:
    _save(model, bank, output)
    return load_detector(model.folder if output is None else output, device)


def _check_known(model: StoredModel, names: Sequence[str]) -> None:
    for name in names:
        if name not in model.classes:
            raise SppdetError(f"{model.folder}: has no class '{name}'; it has {', '.join(model.classes)}")


def _as_stored(model: StoredModel, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the rows of a class in the precision of the stored arrays, as far as they fit."""
    arrays = {key: np.asarray(row) for key, row in arrays.items()}
    if "bbox.step" in model.tensors and "bbox.weight" in arrays:
        packed = compact_regressors({"weight": arrays["bbox.weight"]})
        arrays |= {f"bbox.{name}": array for name, array in packed.items()}
    return {key: _in_precision(row, model.tensors[key].dtype) for key, row in arrays.items()}


def _in_precision(row: np.ndarray, dtype: np.dtype) -> np.ndarray:
    return row.astype(dtype) if dtype != np.float16 or np.abs(row).max(initial=0) < _FLOAT16_MAX else row


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


# The new images


def _new_names(
    model: StoredModel, dataset: Dataset, classes: Sequence[str] | None, images: str | Path | Dataset
) -> list[str]:
    """Return the classes to learn, checked."""
    where = "the images" if isinstance(images, Dataset) else str(images)
    present = {dataset.classes[label] for sample in dataset for label in sample.labels.tolist()}
    names = [*dict.fromkeys(classes or [name for name in dataset.classes if name in present])]
    new = [name for name in names if name not in model.classes]
    if classes is None:
        names = new
    if known := [name for name in names if name in model.classes]:
        raise SppdetError(f"{model.folder}: has a class '{known[0]}' already; remove or rename it, or give another")
    if missing := [name for name in names if name not in present]:
        shown = ", ".join(sorted(present)) or "none"
        raise SppdetError(f"{where}: has no object of class '{missing[0]}'; its classes are {shown}")
    if not names:
        shown = ", ".join(sorted(present)) or "none"
        raise SppdetError(f"{where}: has no object of a new class; its classes are {shown}, which the model has")
    return names


def _without_objects(images: str | Path | Dataset, classes: tuple[str, ...]) -> Dataset:
    """Return images as a data set without objects."""
    boxes, labels, difficult = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool)
    if isinstance(images, Dataset):
        samples = [replace(sample, boxes=boxes, labels=labels, difficult=difficult) for sample in images]
        return Dataset(classes, tuple(samples))
    samples = []
    for path in map(Path, find_images([str(images)])):
        height, width = read_image(path).shape[:2]
        samples.append(Sample(path.stem, path, width, height, boxes, labels, difficult))
    return Dataset(classes, tuple(samples))


@contextmanager
def _filled_split(
    folder: Path, dataset: Dataset, detector: Detector, cache: str | Path | None, workers: int, bank: Bank
) -> Iterator[tuple[FeatureSplit, FeatureSplit]]:
    """Provide the images with their proposals and maps, and with their mirror images where they are learned from."""
    with TemporaryDirectory(prefix="sppdet-") as temporary:
        store = str(cache or _cache_of_run(folder) or temporary)
        split = open_split(dataset, store, detector.search, detector.backbone, detector.features.pooled)
        mirrored = split.with_mirror_images() if bank.svm.flip or bank.bbox.flip else split
        split.fill_proposals(detector.search, workers)
        mirrored.fill_maps(detector.backbone, workers)
        yield split, mirrored


def _cache_of_run(folder: Path) -> str | None:
    """Return the cache of a run that can be written."""
    path = folder / "config.json"
    cache = load_config(path).run.cache if path.is_file() else None
    return cache if cache and os.path.isdir(cache) and os.access(cache, os.W_OK) else None


# Calibration of new classes


def _of_new_classes(
    detector: Detector, names: Sequence[str], svms: LinearSVMs, boxes: BoxRegressors | None
) -> Detector:
    if boxes is not None and detector.regressors is not None:
        boxes = replace(boxes, of_head=detector.regressors.of_head)
    return replace(
        detector, classes=tuple(names), classifier=svms, regressors=boxes, image_svms=None, calibration=None,
        detection=replace(detector.detection, context=0.0),
    )  # fmt: skip


def _hold_out(
    split: FeatureSplit,
    images: int,
    detector: Detector,
    miner: Miner,
    bank_vectors: np.ndarray,
    bank: Bank,
    execution: Execution,
) -> list[HeldOut]:
    """Detect the new classes in the new images, each time with SVMs that were fitted without a fold of these."""
    if images < 2:
        return [HeldOut(np.zeros(0, np.float32), np.zeros(0, bool), np.zeros(0, np.int64), 0)] * len(detector.classes)
    folds = draw_folds(images, bank.calibration, execution.seed)
    fits: list[list[svm.Fit]] = [[] for _ in folds]
    for k in range(len(detector.classes)):
        windows, more = miner.windows(k), miner.fixed_rows[k]
        own = pool_locations(split, detector.features, windows.locations, execution.workers)
        vectors = np.concatenate([own, bank_vectors])
        for fold, of_fold in zip(folds, fits):
            keep = np.flatnonzero(~np.isin(windows.locations["image"] % images, fold))
            index = np.concatenate([keep, len(own) + more.rows])
            labels = np.concatenate([windows.labels[keep], more.labels])
            alpha = np.concatenate([windows.alpha[keep], more.alpha])
            known = (labels > 0).any()
            of_fold.append(svm.fit(vectors, index, labels, miner.problem, alpha) if known else svm.never(own.shape[1]))
    of_folds = [
        detect_in_fold(split, replace(detector, classifier=svm.stack(of_fold)), fold, execution)
        for fold, of_fold in zip(folds, fits)
    ]
    return join_folds(of_folds, miner.labels)


def _curve(held_out: HeldOut, calibration: Calibration) -> dict[str, Any] | None:
    """Return the entry of model.json of a new class; None for the curve of all classes."""
    if not len(held_out.margins):
        return None
    curve, threshold = fit_class(held_out, calibration.shared, calibration.shared_threshold)
    one = Calibration((curve,), (threshold,), calibration.shared, calibration.shared_threshold)
    return one.description()["classes"][0]
