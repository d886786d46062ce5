"""The folder of a classifier: checkpoint, model, settings and measurements.

    RUN/checkpoint.safetensors                   while it trains
    RUN/classifier.json, classifier.safetensors  the model
    RUN/config.json, history.json                what it was trained with, and a record of every epoch
    RUN/metrics.json                             errors on the images of data.val

The key in classifier.json stands for all that the weights depend on: the same command has nothing to do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch

from sppdet import config
from sppdet.classification.classifier import Classifier, SPPClassifier, load_classifier, measure_classifier
from sppdet.classification.training import Checkpoint, folder_batches, set_scale, train_network
from sppdet.config import ClassifierConfig
from sppdet.data import LabelledImages, read_folders
from sppdet.networks import Backbone, freeze
from sppdet.utils import SppdetError, fingerprint, read_json, require_writable, versions, write_json

# What changes neither the weights nor how they come about.
_APART = ("test", "run", "device", "workers")


def train_run(settings: ClassifierConfig, log: Callable[[str], None], force: bool = False) -> dict | None:
    """Train, or go on training, or do nothing if it is done; then measure. ``force`` begins anew.

    Returns what :func:`evaluate_run` does, None without images to measure on.
    """
    folder = Path(settings.run.dir)
    if (folder / "model.json").exists():
        raise SppdetError(f"{folder}: holds a detector; give another run.dir")
    require_writable("run.dir", folder)
    images, held = _read(settings)
    log(f"{len(images)} images of {len(images.classes)} classes, {len(held) if held else 'none'} to measure on")
    backbone = Backbone.create(
        settings.backbone.name, settings.backbone.weights, settings.device, settings.backbone.precision,
        settings.run.seed,
    )  # fmt: skip
    checkpoint = Checkpoint(folder / "checkpoint.safetensors", _key(settings, images, backbone))
    if force:
        checkpoint.path.unlink(missing_ok=True)
    if force or not _is_done(folder, checkpoint.key):
        classifier, history = _train(settings, images, held, backbone, checkpoint, log)
        write_json(folder / "config.json", config.to_dict(settings) | {"versions": versions()})
        write_json(folder / "history.json", history)
        classifier.save(folder, checkpoint.key)
        checkpoint.path.unlink(missing_ok=True)
    else:
        log(f"{folder}: trained already; --force begins anew")
    return evaluate_run(settings, held) if held else None


def evaluate_run(settings: ClassifierConfig, held: LabelledImages | None = None) -> dict:
    """Measure the classifier in ``settings.run.dir`` by ``settings.test``, and write metrics.json."""
    folder = Path(settings.run.dir)
    classifier = load_classifier(folder, settings.device)
    classifier.test = settings.tested
    if held is None:
        if settings.data.val is None:
            raise SppdetError("data.val: null; give a folder of class folders to measure on, data.val=FOLDER")
        held = read_folders(settings.data.place(settings.data.val), classifier.classes, settings.workers)
    metrics = measure_classifier(classifier, held, settings.workers)
    write_json(folder / "metrics.json", metrics | {"config": config.to_dict(settings), "versions": versions()})
    return metrics


def saved_settings(folder: str | Path) -> ClassifierConfig:
    """The settings that the run in ``folder`` was trained with."""
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise SppdetError(f"{folder}: no run here; sppdet classify train ROOT run.dir={folder} makes one")
    return config.in_folder(config.load(folder / "config.json", kind=ClassifierConfig), folder)


def _read(settings: ClassifierConfig) -> tuple[LabelledImages, LabelledImages | None]:
    """The images for training, and those to measure on if there are any."""
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
    held: LabelledImages | None,
    backbone: Backbone,
    checkpoint: Checkpoint,
    log: Callable[[str], None],
) -> tuple[Classifier, list[dict]]:
    torch.manual_seed(settings.run.seed)
    network = SPPClassifier(
        backbone.trunk, backbone.channels, len(images.classes), settings.levels, settings.dropout, settings.units
    )
    network.requires_grad_(True).to(backbone.device, memory_format=torch.channels_last)
    freeze(network.trunk, settings.frozen_stride)
    batches = folder_batches(images, settings)
    set_scale(network, backbone, next(batches(0, settings.crop, 0))[0])
    quick = replace(settings.tested, views="crop", view=settings.crop, side=settings.shorter_side)
    classifier = Classifier(images.classes, backbone, network, quick)
    rate = settings.trunk_rate
    if rate is None:
        rate = 1.0 if settings.backbone.weights == "random" else 0.1

    def measured() -> dict:
        """After each epoch, by the centre crop, whatever the finished classifier is measured by."""
        return {"top1_error": measure_classifier(classifier, held, settings.workers)["top1_error"]} if held else {}

    history = train_network(
        network, backbone, batches, len(images) // settings.batch_size, settings, log,
        trunk_rate=rate, checkpoint=checkpoint, measured=measured,
    )  # fmt: skip
    return replace(classifier, test=settings.tested), history


def _key(settings: ClassifierConfig, images: LabelledImages, backbone: Backbone) -> str:
    """What the weights depend on. Of an image its name and size in bytes: to read a million takes hours."""
    root = settings.data.place(settings.data.train)
    files = [[str(path.relative_to(root)), path.stat().st_size] for path in images.paths]
    values = {name: value for name, value in asdict(settings).items() if name not in (*_APART, "data", "backbone")}
    return fingerprint([values, settings.run.seed, files, images.labels.tolist(), backbone.settings()])


def _is_done(folder: Path, key: str) -> bool:
    path = folder / "classifier.json"
    return path.exists() and read_json(path).get("key") == key
