"""The folder of a classifier: checkpoint, model, settings and measurements.

    RUN/checkpoint.safetensors                   while it trains
    RUN/classifier.json, classifier.safetensors  the model
    RUN/config.json, history.json                the settings of the training, and a record of every epoch
    RUN/metrics.json                             errors on the images of data.val

The key in classifier.json is a digest of all that the weights depend on: with an equal key training has nothing to do.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from sppdet import config
from sppdet.classification.classifier import Classifier, SPPClassifier, load_classifier, measure_classifier
from sppdet.classification.training import folder_batches, set_scale, train_classifier
from sppdet.config import ClassifierConfig
from sppdet.data import LabelledImages, read_folders
from sppdet.networks import Backbone, Cut, freeze
from sppdet.utils import (
    Checkpoint,
    Curves,
    SppdetError,
    fingerprint,
    read_json,
    require_writable,
    versions,
    write_json,
)

logger = logging.getLogger(__name__)

# Settings that the weights do not depend on, or that the key holds in another form.
_NOT_IN_KEY = ("test", "run", "device", "workers", "data", "backbone")
_PRETRAINED_TRUNK_RATE = 0.1  # share of the learning rate with which a pretrained trunk learns, unless trunk_rate says


def train_run(settings: ClassifierConfig, *, force: bool = False) -> dict[str, Any] | None:
    """Train the classifier of ``settings.run.dir`` unless it is trained already, then measure its errors.

    An interrupted training resumes.

    Args:
        settings: data, network and training.
        force: train anew although there is a trained classifier or a checkpoint.

    Returns:
        The metrics as of `evaluate_run`; None without images to measure on (``data.val=null``).

    Raises:
        SppdetError: the folder holds a detector or cannot be written, or the images do not suffice.
    """
    folder = Path(settings.run.dir)
    if (folder / "model.json").exists():
        raise SppdetError(f"{folder}: holds a detector; give another run.dir")
    require_writable("run.dir", folder)
    curves = Curves.of(folder, settings.run.curves)
    backbone = Backbone.create(
        settings.backbone.name, settings.backbone.weights, settings.device, settings.backbone.precision,
        settings.run.seed, Cut.of(settings.backbone),
    )  # fmt: skip
    images, held_out = _read(settings)  # every image is opened once, which takes minutes where there are many
    measured = len(held_out) if held_out else "none"
    logger.info(f"{len(images)} images of {len(images.classes)} classes, {measured} to measure on")
    checkpoint = Checkpoint(folder / "checkpoint.safetensors", _key(settings, images, backbone))
    if force:  # if it is interrupted it resumes as any other, without being forced again
        for path in (checkpoint.path, folder / "classifier.json"):
            path.unlink(missing_ok=True)
    if not _is_done(folder, checkpoint.key):
        (folder / "metrics.json").unlink(missing_ok=True)  # of another classifier
        classifier, history = _train(settings, images, held_out, backbone, checkpoint, curves)
        _write_config(settings)
        write_json(folder / "history.json", history)
        classifier.save(folder, checkpoint.key)
        checkpoint.path.unlink(missing_ok=True)
    else:
        logger.info(f"{folder}: trained already; --force begins anew")
        _store_settings(settings)
    return evaluate_run(settings, held_out) if held_out else None


def evaluate_run(settings: ClassifierConfig, held_out: LabelledImages | None = None) -> dict[str, Any]:
    """Measure the classifier in ``settings.run.dir`` with the views of ``settings.test``, and write metrics.json.

    Args:
        settings: of the run.
        held_out: images that the classifier did not learn from; None reads those of ``settings.data.val``.

    Returns:
        The metrics as of `measure_classifier`.

    Raises:
        SppdetError: there is no trained classifier, or no folder of images to measure on.
    """
    folder = Path(settings.run.dir)
    classifier = load_classifier(folder, settings.device)
    classifier.test = settings.tested
    if held_out is None:
        if settings.data.val is None:
            raise SppdetError("data.val: null; give a folder of class folders to measure on, data.val=FOLDER")
        held_out = read_folders(settings.data.place(settings.data.val), classifier.classes, settings.workers)
    metrics = measure_classifier(classifier, held_out, settings.workers)
    origin = {"config": config.to_dict(settings), "versions": versions()}
    write_json(folder / "metrics.json", metrics | origin, sealed=True)
    return metrics


def saved_settings(folder: str | Path) -> ClassifierConfig:
    """Read the settings that the run in ``folder`` was trained with.

    Raises:
        SppdetError: the folder holds no run.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise SppdetError(f"{folder}: no run here; sppdet classify train ROOT run.dir={folder} makes one")
    return config.in_folder(config.load(folder / "config.json", kind=ClassifierConfig), folder)


def _read(settings: ClassifierConfig) -> tuple[LabelledImages, LabelledImages | None]:
    """Return the images for training, and those to measure on if there are any."""
    data = settings.data
    root = data.place(data.train)
    images = read_folders(root, workers=settings.workers)
    if len(images.classes) < 2:
        raise SppdetError(f"{root}: holds one class, '{images.classes[0]}'; a classifier needs two or more")
    if len(images) < settings.batch_size:
        raise SppdetError(
            f"batch_size: {settings.batch_size} is more than the {len(images)} images for training; give fewer, "
            f"such as batch_size={max(1, len(images) // 4)}"
        )
    if data.val is None:
        return images, None
    path = data.place(data.val)
    if not path.is_dir():
        raise SppdetError(f"{path}: no such folder; data.val=FOLDER gives another, data.val=null measures nothing")
    return images, read_folders(path, images.classes, settings.workers)


def _train(
    settings: ClassifierConfig,
    images: LabelledImages,
    held_out: LabelledImages | None,
    backbone: Backbone,
    checkpoint: Checkpoint,
    curves: Curves | None,
) -> tuple[Classifier, list[dict[str, Any]]]:
    """Return the trained classifier and the record of each epoch."""
    torch.manual_seed(settings.run.seed)
    network = SPPClassifier(
        backbone.trunk, backbone.channels, len(images.classes), settings.levels, settings.dropout, settings.units
    )
    network.for_training(backbone.device)
    freeze(network.trunk, settings.frozen_stride)
    batches = folder_batches(images, settings)
    set_scale(network, backbone, next(batches(0, settings.crop, 0))[0])
    rate = settings.trunk_rate
    if rate is None:
        rate = 1.0 if settings.backbone.weights == "random" else _PRETRAINED_TRUNK_RATE
    # After each epoch errors are measured on the centre crop, the quickest view, whatever `test` says.
    quick = replace(settings.tested, views="crop", view=settings.crop, side=settings.shorter_side)
    classifier = Classifier(images.classes, backbone, network, quick)

    def measure() -> dict[str, Any]:
        if held_out is None:
            return {}
        return {"top1_error": measure_classifier(classifier, held_out, settings.workers)["top1_error"]}

    history = train_classifier(
        network, backbone, batches, len(images) // settings.batch_size, settings,
        trunk_rate=rate, checkpoint=checkpoint, curves=curves, measure=measure,
    )  # fmt: skip
    return replace(classifier, test=settings.tested), history


def _key(settings: ClassifierConfig, images: LabelledImages, backbone: Backbone) -> str:
    """Return a digest of all that the weights depend on.

    An image counts by its name and its size in bytes: to read a million files takes hours.
    """
    root = settings.data.place(settings.data.train)
    files = [[str(path.relative_to(root)), path.stat().st_size] for path in images.paths]
    values = {name: value for name, value in asdict(settings).items() if name not in _NOT_IN_KEY}
    return fingerprint([values, settings.run.seed, files, images.labels.tolist(), backbone.settings()])


def _write_config(settings: ClassifierConfig) -> None:
    write_json(Path(settings.run.dir) / "config.json", config.to_dict(settings) | {"versions": versions()})


def _store_settings(settings: ClassifierConfig) -> None:
    """Store the settings with which a trained classifier stays as it is, such as the views of ``test``."""
    path = Path(settings.run.dir) / "classifier.json"
    write_json(path, read_json(path) | {"test": asdict(settings.tested)}, sealed=True)
    _write_config(settings)


def _is_done(folder: Path, key: str) -> bool:
    """Whether ``folder`` holds a classifier of this key."""
    path = folder / "classifier.json"
    return path.exists() and read_json(path).get("key") == key
