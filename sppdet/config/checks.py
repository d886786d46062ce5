"""Choices of a configuration that do not go together: each is refused with the reason before anything runs."""

from __future__ import annotations

from functools import singledispatch

from sppdet.config.settings import FOREGROUND_IOU, MIN_CROP, ClassifierConfig, Config, ViewSettings
from sppdet.utils import SppdetError

FC_BINS = {"alexnet": 6, "vgg16": 7}  # networks that bring fc6 and fc7, and the bins a side that their fc6 reads
FC_UNITS = 4096


@singledispatch
def check(settings) -> None:
    """Refuse choices that do not go together, of any of the settings below.

    Raises:
        SppdetError: the key, the reason, and what to give.
    """
    raise TypeError(f"{type(settings).__name__} are no settings of their own")


@check.register
def _check_detection(config: Config) -> None:
    boxes = config.bbox.kind
    joint = {"joint": ["fc7", "pool5+fc7"], "ridge+joint": ["pool5+fc7"]}  # the features with it
    choices = ("classifier", config.classifier, ["fc7"], "svm"), ("bbox.kind", boxes, joint.get(boxes), "ridge")
    for key, value, seen, without in choices:
        if value in ("softmax", *joint) and not (config.end_to_end.enabled and config.features in seen):
            features = " or ".join(seen)
            raise SppdetError(
                f"{key}: {value} is a layer on fc7; set end_to_end.enabled=true and features={features} with it, "
                f"or {key}={without}"
            )
    if config.pooling.samples and config.pooling.kind != "align":
        raise SppdetError(
            f"pooling.samples: {config.pooling.kind} takes whole cells; set pooling.kind=align with it, or leave it 0"
        )
    if config.svm.positive_overlap <= config.svm.negative_overlap:
        raise SppdetError(
            f"svm.positive_overlap: a window that overlaps by {config.svm.positive_overlap} would be a positive and a "
            "negative; give more than svm.negative_overlap"
        )
    learned = config.end_to_end
    if boxes in joint and not learned.box_weight:
        raise SppdetError("bbox.kind: joint boxes do not learn with end_to_end.box_weight=0; give a weight, or ridge")
    if 0 < learned.hard_of < learned.windows_per_image:
        raise SppdetError(
            f"end_to_end.hard_of: {learned.windows_per_image} windows of {learned.hard_of} cannot be chosen; "
            "give more than end_to_end.windows_per_image, or 0"
        )
    if learned.background >= FOREGROUND_IOU:
        raise SppdetError(
            f"end_to_end.background: a window that overlaps an object by {FOREGROUND_IOU} is foreground; give less"
        )
    if learned.enabled and learned.frozen_stride and config.backbone.weights == "random":
        raise SppdetError(
            "end_to_end.frozen_stride: random layers would stay random; set it to 0, or backbone.weights to pretrain, "
            "imagenet or a file"
        )
    if config.svd_ranks:
        _check_ranks(config)
    if learned.enabled or config.features != "pool5":
        _check_fc(config)
    if config.regions.crop != "none":
        _check_crops(config)


def _check_crops(config: Config) -> None:
    """Refuse what does not go with windows that are cropped one by one."""
    regions = config.regions
    if len(regions.scales) > 1:
        raise SppdetError("regions.scales: crops have one size, regions.crop_size; leave one scale or set crop: none")
    if config.pooling.kind != "max":
        raise SppdetError(f"pooling.kind: {config.pooling.kind} is for windows on conv maps; crops take max")
    if config.end_to_end.hard_of:
        raise SppdetError("end_to_end.hard_of: of crops all that are drawn learn; set it to 0")
    if config.detection.context:
        raise SppdetError("detection.context: images are read on conv maps, which crops do without; set it to 0")
    if regions.crop_size < MIN_CROP:
        raise SppdetError(f"regions.crop_size: expected {MIN_CROP} or more, found {regions.crop_size}")
    if not 0 <= 2 * regions.context < regions.crop_size:
        raise SppdetError(
            f"regions.context: {regions.context} pixels on each side of {regions.crop_size} leave no room for a window"
        )


def _check_ranks(config: Config) -> None:
    layers = {"pool5": 0, "fc6": 1, "fc7": 2, "pool5+fc7": 2}[config.features]
    units = config.end_to_end.units if config.end_to_end.enabled else config.finetune.units
    if len(config.svd_ranks) != layers:
        raise SppdetError(f"svd_ranks: features={config.features} has {layers} fc layers; give as many ranks, or []")
    if not all(0 <= rank <= units for rank in config.svd_ranks):
        raise SppdetError(f"svd_ranks: {list(config.svd_ranks)}: a layer of {units} units has no rank above {units}")


def _check_fc(config: Config) -> None:
    """Refuse fc layers that no network brings, and random ones that nothing trains."""
    name, finetune, together = config.backbone.name, config.finetune, config.end_to_end.enabled
    section, units = ("end_to_end", config.end_to_end.units) if together else ("finetune", finetune.units)
    if finetune.init == "random":
        if finetune.steps < 1 and not together:
            raise SppdetError("finetune.steps: 0 leaves random layers; set finetune.init=imagenet or give some steps")
    elif name not in FC_BINS:
        raise SppdetError(
            f"finetune.init: {name} brings no fc6 and fc7; set backbone.name to one of {', '.join(FC_BINS)}"
        )
    elif config.backbone.weights in ("random", "pretrain"):
        raise SppdetError(
            "finetune.init: imagenet takes fc6 and fc7 from backbone.weights; set it to imagenet or a file"
        )
    elif config.pooling.levels != (FC_BINS[name],) or units != FC_UNITS:
        raise SppdetError(
            f"finetune.init: the fc6 of {name} reads one level of {FC_BINS[name]} x {FC_BINS[name]} bins; set "
            f"pooling.levels=[{FC_BINS[name]}] and {section}.units={FC_UNITS}"
        )


@check.register
def _check_classifier(settings: ClassifierConfig) -> None:
    if settings.backbone.weights == "pretrain":
        raise SppdetError("backbone.weights: pretrain is for detection; use imagenet, random or a file")
    if settings.shorter_side < settings.crop:
        raise SppdetError(
            f"side: {settings.side} is less than the largest of sizes, {settings.crop}, which is cut from it"
        )
    check(settings.tested)


@check.register
def _check_views(views: ViewSettings) -> None:
    """Views must fit into the images; all numbers must be given."""
    least = {"crop": views.side, "full": views.view, "multi": min(views.scales)}[views.views]
    if least < views.view:
        raise SppdetError(
            f"test.views: {views.views} cuts {views.view} x {views.view} from images of a shorter side of {least}; "
            "make test.side (predict's --side), or test.scales, larger or test.view smaller"
        )
