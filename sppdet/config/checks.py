"""Checks of settings that depend on each other: wrong combinations are refused before anything runs."""

from __future__ import annotations

from functools import singledispatch
from pathlib import Path

from sppdet.config.settings import FOREGROUND_IOU, MIN_CROP, ClassifierConfig, Config, ViewSettings
from sppdet.utils import SppdetError


@singledispatch
def check(settings: object) -> None:
    """Refuse settings that do not go together.

    Args:
        settings: a `Config`, a `ClassifierConfig`, or `ViewSettings` without nulls.

    Raises:
        SppdetError: the message names the setting, says why its value is wrong, and what to set.

    Examples:
        >>> check(Config(svd_ranks=(8,)))
        Traceback (most recent call last):
        sppdet.utils.errors.SppdetError: svd_ranks: features=pool5 has 0 fc layers; give as many ranks, or []
    """
    raise TypeError(f"expected settings of a detector, a classifier or views, got {type(settings).__name__}")


@check.register
def _check_detection(config: Config) -> None:
    """Refuse settings of a detector that do not go together."""
    _check_classifier_and_boxes(config)
    if config.data.tiles and (config.data.tile_overlap or 0) > config.data.tiles // 2:
        raise SppdetError(
            f"data.tile_overlap: tiles of {config.data.tiles} pixels cannot overlap by {config.data.tile_overlap}; "
            "give at most half of data.tiles"
        )
    if config.pooling.samples and config.pooling.kind != "align":
        raise SppdetError(
            f"pooling.samples: {config.pooling.kind} takes whole cells; set pooling.kind=align with it, or leave it 0"
        )
    layers = max(1, len(config.backbone.layers))
    for name in ("layer_levels", "layer_weights"):
        if (count := len(getattr(config.pooling, name))) not in (0, layers):
            raise SppdetError(
                f"pooling.{name}: {count} for {layers} layer{'s' if layers > 1 else ''} of backbone.layers; give one "
                "for each, or []"
            )
    if config.svm.positive_overlap <= config.svm.negative_overlap:
        raise SppdetError(
            f"svm.positive_overlap: a window that overlaps by {config.svm.positive_overlap} would be a positive and a "
            "negative; set more than svm.negative_overlap"
        )
    _check_end_to_end(config)
    if config.svd_ranks:
        _check_ranks(config)
    if config.end_to_end.enabled or config.features != "pool5":
        _check_fc(config)
    if config.regions.crop != "none":
        _check_crops(config)
    if config.run.cluster is not None:
        _check_cluster(config)


def _check_cluster(config: Config) -> None:
    """Refuse the address of a cluster without its engine, and folders that its machines would not find."""
    if config.run.engine == "processes":
        raise SppdetError("run.cluster: there is no cluster with run.engine=processes; set run.engine, or null")
    for name, folder in (("run.cache", config.run.cache), ("data.root", config.data.root)):
        if not Path(folder).is_absolute():
            raise SppdetError(
                f"{name}: '{folder}' depends on the folder that a machine works in; give the whole path, as "
                "run.cluster is set"
            )


def _check_classifier_and_boxes(config: Config) -> None:
    """Refuse layers on fc7 that end-to-end training does not learn, or whose input is not among the features."""
    trains_network = config.classifier == "softmax" or config.end_to_end.enabled
    if config.data.labelled_classes and trains_network:
        raise SppdetError(
            "data.labelled_classes: only SVMs learn from images in which some classes were not looked for; set "
            "classifier=svm and end_to_end.enabled=false, or null"
        )
    if config.data.incomplete_labels and trains_network:
        raise SppdetError(
            "data.incomplete_labels: only SVMs learn without what is perhaps missed; set classifier=svm and "
            "end_to_end.enabled=false, or false"
        )
    if config.classifier == "softmax":
        _require_fc7(config, "classifier", "softmax", ("fc7",), "svm")
    if config.bbox.kind == "joint":
        _require_fc7(config, "bbox.kind", "joint", ("fc7", "pool5+fc7"), "ridge")
    if config.bbox.kind == "ridge+joint":
        _require_fc7(config, "bbox.kind", "ridge+joint", ("pool5+fc7",), "ridge")
    if config.bbox.kind != "ridge" and not config.end_to_end.box_weight:
        raise SppdetError(
            "bbox.kind: joint boxes do not learn with end_to_end.box_weight=0; set a weight above 0, or bbox.kind=ridge"
        )


def _require_fc7(config: Config, key: str, value: str, features: tuple[str, ...], alternative: str) -> None:
    """Refuse ``value`` of ``key`` without end-to-end training and one of ``features``."""
    if not (config.end_to_end.enabled and config.features in features):
        raise SppdetError(
            f"{key}: {value} is a layer on fc7; set end_to_end.enabled=true and features={' or '.join(features)} "
            f"with it, or {key}={alternative}"
        )


def _check_end_to_end(config: Config) -> None:
    """Refuse settings of end-to-end training that do not go together."""
    settings = config.end_to_end
    if 0 < settings.hard_of < settings.windows_per_image:
        raise SppdetError(
            f"end_to_end.hard_of: {settings.windows_per_image} windows of {settings.hard_of} cannot be chosen; "
            "set end_to_end.windows_per_image or more, or 0"
        )
    if settings.background >= FOREGROUND_IOU:
        raise SppdetError(
            f"end_to_end.background: a window that overlaps an object by {FOREGROUND_IOU} is foreground; set less"
        )
    if settings.enabled and settings.frozen_stride and config.backbone.weights == "random":
        raise SppdetError(
            "end_to_end.frozen_stride: random layers would stay random; set it to 0, or backbone.weights to pretrain, "
            "imagenet or a file"
        )


def _check_crops(config: Config) -> None:
    """Refuse settings that do not go with windows that are cropped one by one."""
    regions = config.regions
    if len(regions.scales) > 1:
        raise SppdetError("regions.scales: crops have one size, regions.crop_size; set one scale, or regions.crop=none")
    if config.pooling.kind != "max":
        raise SppdetError(f"pooling.kind: {config.pooling.kind} is for windows on feature maps; set max for crops")
    if config.pooling.map_type != "float16":
        raise SppdetError(
            f"pooling.map_type: {config.pooling.map_type} is for feature maps, which are not stored with crops; "
            "set float16"
        )
    if config.end_to_end.hard_of:
        raise SppdetError("end_to_end.hard_of: training uses all crops that are drawn; set it to 0")
    if config.detection.context:
        raise SppdetError(
            "detection.context: whole images are scored on feature maps, which are not computed with crops; set it to 0"
        )
    if config.detection.rescore:
        raise SppdetError(
            "detection.rescore: moved boxes are scored on feature maps, which are not computed with crops; set it to 0"
        )
    if not MIN_CROP <= regions.crop_size <= 10_000:
        raise SppdetError(f"regions.crop_size: expected {MIN_CROP} to 10000, found {regions.crop_size}")
    if not 0 <= 2 * regions.context < regions.crop_size:
        raise SppdetError(
            f"regions.context: {regions.context} pixels on each side of {regions.crop_size} leave no room for a "
            "window; set 0 to less than half of regions.crop_size"
        )


def _check_ranks(config: Config) -> None:
    """Refuse ranks of fc layers that the features do not have, or that the layers cannot have."""
    layers = {"pool5": 0, "fc6": 1, "fc7": 2, "pool5+fc7": 2}[config.features]
    units = config.end_to_end.units if config.end_to_end.enabled else config.finetune.units
    if len(config.svd_ranks) != layers:
        raise SppdetError(f"svd_ranks: features={config.features} has {layers} fc layers; give as many ranks, or []")
    if not all(0 <= rank <= units for rank in config.svd_ranks):
        raise SppdetError(
            f"svd_ranks: {list(config.svd_ranks)}: a layer of {units} units has no rank above {units}; set 0 to {units}"
        )


def _check_fc(config: Config) -> None:
    """Refuse random fc layers that nothing trains, and layers of a network whose weights are not loaded.

    What depends on the network's name is checked by `sppdet.networks.check_network`.
    """
    finetune = config.finetune
    if finetune.init == "random":
        if finetune.steps < 1 and not config.end_to_end.enabled:
            raise SppdetError("finetune.steps: 0 leaves random layers; set finetune.init=imagenet or give some steps")
    elif config.backbone.weights in ("random", "pretrain"):
        raise SppdetError(
            "finetune.init: imagenet takes fc6 and fc7 from backbone.weights; set it to imagenet or a file"
        )


@check.register
def _check_classifier(settings: ClassifierConfig) -> None:
    """Refuse settings of a classifier that do not go together."""
    if settings.backbone.weights == "pretrain":
        raise SppdetError("backbone.weights: pretrain is for detection; set imagenet, random or a file")
    if settings.shorter_side < settings.crop:
        raise SppdetError(
            f"side: {settings.side} is less than the largest of sizes, {settings.crop}, which is cut from it; "
            f"set side to {settings.crop} or more"
        )
    check(settings.tested)


@check.register
def _check_views(settings: ViewSettings) -> None:
    """Refuse views that are larger than the images from which they are cut."""
    view, side, scales = settings.view, settings.side, settings.scales
    if view is None or side is None or scales is None:
        raise TypeError("views have nulls; check ClassifierConfig.tested, which has a number for each")
    shorter_side = {"crop": side, "full": view, "multi": min(scales)}[settings.views]
    if shorter_side < view:
        raise SppdetError(
            f"test.views: {settings.views} cuts {view} x {view} from images of a shorter side of {shorter_side}; "
            "make test.side (predict's --side), or test.scales, larger or test.view smaller"
        )
