"""Cross-validation: a model per fold measures, one that learns from all images is kept.

Proposals and feature maps do not depend on what is learned from, so they are computed once. Each fold is a run of its
own in RUN/folds, which repeats only SVMs and box regression, and resumes like any other.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from sppdet.config import Config, in_folder, override
from sppdet.data import Dataset, load_folds
from sppdet.evaluation import evaluate_folds
from sppdet.training.estimates import estimate, log_plan, measure_speed
from sppdet.training.pipeline import Pipeline
from sppdet.utils import Progress, SppdetError, read_json

logger = logging.getLogger(__name__)

_AFTER_MAPS = ("svm", "context", "bbox", "calibration")


def cross_validate(config: Config, folds: int) -> Pipeline:
    """Measure on each fold with a model of the others, then train on all images.

    Args:
        config: all settings; ``data.train_split`` and ``data.test_split`` are not used.
        folds: their number, 2 or more.

    Returns:
        The pipeline of the model of all images, whose metrics.json has the figures of the folds.

    Raises:
        SppdetError: settings with which a network learns from the images, or an error of a stage.
    """
    _check(config, folds)
    every, parts = load_folds(config, folds)
    config = override(config, ["data.train_split=all", "data.test_split=all"])
    folder = Path(config.run.dir)
    final = Pipeline(config, data=(every, every))
    pipelines = [
        Pipeline(
            in_folder(override(config, ["calibration.folds=0"]), folder / "folds" / str(number)),
            data=(_without(every, part), part),
            name=f"fold {number} of {folds}: ",
        )
        for number, part in enumerate(parts, 1)
    ]
    final.prepare()
    for pipeline in pipelines:
        pipeline.inputs.initial_backbone = final.inputs.initial_backbone
    final.log_data()
    _run(final, pipelines)
    final.save()
    folds_done = [(part, pipeline.inputs.folder) for part, pipeline in zip(parts, pipelines)]
    final.log_result(evaluate_folds(config, every, folds_done))
    return final


def _run(final: Pipeline, pipelines: list[Pipeline]) -> None:
    """Run the stages of all models: proposals and maps, the folds, and what is learned from all images."""
    waiting = {pipeline.name: pipeline.waiting() for pipeline in pipelines}
    stages = {
        name: [stage for stage in names if stage in (*_AFTER_MAPS, "evaluate")] for name, names in waiting.items()
    }
    of_final = final.waiting("calibration")
    speed = measure_speed(final.inputs) if of_final or any(stages.values()) else None
    estimates = estimate(final.inputs, of_final, speed)
    for pipeline in pipelines:
        of_fold = estimate(pipeline.inputs, stages[pipeline.name], speed)
        estimates |= {pipeline.name + stage: value for stage, value in of_fold.items()}
    before = [stage for stage in of_final if stage not in _AFTER_MAPS]
    after = [stage for stage in of_final if stage in _AFTER_MAPS]
    if estimates:
        log_plan([*before, f"{len(pipelines)} folds", *after], estimates, final.config.workers)
    with Progress(estimates):
        final.run_stages("maps")
        for pipeline in pipelines:
            pipeline.prepare()
            pipeline.run_stages(first="svm")
            metrics = read_json(pipeline.inputs.folder / "metrics.json")
            mean = "-" if metrics["mAP"] is None else f"{metrics['mAP']:.1f}"
            logger.info("%smAP %s on %d images", pipeline.name, mean, metrics["pictures"])
        final.run_stages("calibration", first="svm")


def _without(every: Dataset, part: Dataset) -> Dataset:
    """Return the images that are not in a fold."""
    ids = {sample.id for sample in part}
    return replace(every, samples=tuple(sample for sample in every if sample.id not in ids))


def _check(config: Config, folds: int) -> None:
    """Refuse a number of folds, or settings, with which the maps would depend on what is learned from."""
    if folds < 2:
        raise SppdetError(f"--folds: expected 2 or more, found {folds}")
    learns = {
        "backbone.weights=pretrain": config.backbone.weights == "pretrain",
        "end_to_end.enabled=true": config.end_to_end.enabled,
        f"features={config.features}": config.features != "pool5",
    }
    if settings := [name for name, is_set in learns.items() if is_set]:
        raise SppdetError(
            f"--folds: with {settings[0]} a network learns from the images, and each fold would need maps of its own; "
            "take a preset, or leave --folds out"
        )
