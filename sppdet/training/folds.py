"""Cross-validation: a model per fold measures, one that learns from all images is kept.

Proposals and feature maps do not depend on what is learned from, so they are computed once. Each fold is a run of its
own in RUN/folds, which repeats only SVMs and box regression, and resumes like any other. So do the models of a learning
curve, which learn from fewer images.
"""

from __future__ import annotations

import logging
import shlex
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from sppdet.config import Config, in_folder, load, override
from sppdet.data import Dataset, load_folds
from sppdet.evaluation import evaluate_folds, read_metrics
from sppdet.training.estimates import Speed, estimate, log_plan, measure_speed
from sppdet.training.learning_curve import curve_of, parts_of_curve
from sppdet.training.pipeline import Pipeline
from sppdet.utils import Progress, SppdetError, duration, write_json

logger = logging.getLogger(__name__)

_AFTER_MAPS = ("svm", "context", "bbox", "calibration")
_MOST_OF_TRAINING = 0.5  # share of the training's time that a learning curve may take without being asked for


def cross_validate(config: Config, folds: int) -> Pipeline:
    """Measure on each fold with a model of the others, then train on all images.

    Args:
        config: all settings; ``data.train_split`` and ``data.test_split`` are not used.
        folds: their number, 2 or more, see `check_folds`.

    Returns:
        The pipeline of the model of all images, whose metrics.json has the figures of the folds and, unless it would
        take long, a learning curve.

    Raises:
        SppdetError: settings with which a network learns from the images, or an error of a stage.
    """
    check_folds(config, folds)
    final, pipelines = _pipelines(config, folds)
    final.log_data()
    parts = _run(final, pipelines, parts_of_curve(pipelines))
    final.stages.save()
    folds_done = [(pipeline.inputs.test, pipeline.inputs.folder) for pipeline in pipelines]
    curve = curve_of(pipelines, parts) if parts else None
    final.log_result(evaluate_folds(final.config, final.inputs.train, folds_done, curve))
    return final


def measure_learning_curve(run: str | Path, overrides: Iterable[str] = ()) -> list[dict]:
    """Measure what a run would be with a quarter and with half of its training images; store it in its metrics.json.

    Args:
        run: the folder of a run.
        overrides: ``key=value`` settings for files that have moved since, such as ``data.root=...``.

    Returns:
        The points of the curve, see `sppdet.training.learning_curve.curve_of`.

    Raises:
        SppdetError: there is no measured run, its images have changed since, they are too few, or its network has
            learned from them.
    """
    folder = Path(run)
    path = folder / "metrics.json"
    if not path.is_file() or not (folder / "config.json").is_file():
        raise SppdetError(f"{folder}: no measured run here; python -m sppdet.train IMAGES --output {folder} makes one")
    config, metrics = in_folder(load(folder / "config.json", overrides), folder), read_metrics(folder)
    check_fixed_network(config, "--learning-curve")
    if "folds" in metrics:
        final, whole = _pipelines(config, len(metrics["folds"]["mAP"]))
    else:
        final = Pipeline(config)
        whole = [final]
    parts = parts_of_curve(whole)
    if not parts:
        raise SppdetError(f"--learning-curve: {folder} has learned from too few images to divide them; add images")
    if any({*_AFTER_MAPS} & {*pipeline.waiting()} for pipeline in whole):
        raise SppdetError(
            f"{folder}: images, annotations or settings have changed since it was trained; train again, then measure"
        )
    _run(final, [], parts, asked=True)
    metrics["learning_curve"] = curve_of(whole, parts)
    write_json(path, metrics, sealed=True)
    if "folds" not in metrics:
        shutil.rmtree(folder / "learning_curve")
    return metrics["learning_curve"]


def _pipelines(config: Config, folds: int) -> tuple[Pipeline, list[Pipeline]]:
    """Return the pipeline of the model of all images, and one per fold; the network is read once."""
    every, parts = load_folds(config, folds)
    limit = "null" if config.data.limit_train is None else config.data.limit_train  # of the images of all folds
    config = override(config, ["data.train_split=all", "data.test_split=all", f"data.limit_test={limit}"])
    final = Pipeline(config, data=(every, every))
    pipelines = [
        Pipeline(
            in_folder(override(config, ["calibration.folds=0"]), Path(config.run.dir) / "folds" / str(number)),
            data=(_without(every, part), part),
            name=f"fold {number} of {folds}: ",
        )
        for number, part in enumerate(parts, 1)
    ]
    final.prepare()
    for pipeline in pipelines:
        pipeline.inputs.initial_backbone = final.inputs.initial_backbone
    return final, pipelines


def _run(final: Pipeline, pipelines: list[Pipeline], parts: list[Pipeline], asked: bool = False) -> list[Pipeline]:
    """Run the stages of all models: proposals and maps, the folds, what is learned from all images, and the curve.

    Args:
        final: the model of all images.
        pipelines: the folds.
        parts: models that learn from fewer images.
        asked: whether the user has asked for these; else they are left out where they would take long.

    Returns:
        ``parts``, or none of them where they are left out.
    """
    every = [*pipelines, *parts]
    stages = {
        pipeline: [stage for stage in pipeline.waiting() if stage in (*_AFTER_MAPS, "evaluate")] for pipeline in every
    }
    of_final = final.waiting("calibration")
    speed = measure_speed(final.inputs) if of_final or any(stages.values()) else None
    if speed and not asked and any(stages[part] for part in parts):
        seconds = sum(_seconds(part, speed) for part in parts)
        training = _seconds(final, speed) + sum(_seconds(pipeline, speed) for pipeline in pipelines)
        if seconds > _MOST_OF_TRAINING * training:
            logger.info(
                "no learning curve, which would take about %s; sppdet report %s --learning-curve measures it later",
                duration(seconds), shlex.quote(str(final.inputs.folder)),
            )  # fmt: skip
            every, parts = pipelines, []
    estimates = estimate(final.inputs, of_final, speed)
    for pipeline in every:
        of_pipeline = estimate(pipeline.inputs, stages[pipeline], speed)
        estimates |= {pipeline.name + stage: value for stage, value in of_pipeline.items()}
    before = [stage for stage in of_final if stage not in _AFTER_MAPS]
    after = [stage for stage in of_final if stage in _AFTER_MAPS]
    if estimates:
        of_folds = [f"{len(pipelines)} folds"] * bool(pipelines)
        log_plan([*before, *of_folds, *after, *["learning curve"] * bool(parts)], estimates, final.config.workers)
    with Progress(estimates):
        final.run_stages("maps")
        for pipeline in pipelines:
            _measure(pipeline)
        if not asked:
            final.run_stages("calibration", first="svm")
        with _quiet():
            for part in parts:
                _measure(part)
    return parts


def _measure(pipeline: Pipeline) -> None:
    """Train and evaluate a model whose maps are in the cache."""
    pipeline.prepare()
    pipeline.run_stages(first="svm")
    metrics = read_metrics(pipeline.inputs.folder)
    mean = "-" if metrics["mAP"] is None else f"{metrics['mAP']:.1f}"
    logger.info("%smAP %s on %d images", pipeline.name, mean, metrics["pictures"])


def _seconds(pipeline: Pipeline, speed: Speed) -> float:
    """Return the estimated seconds of a whole training, also of what is done; of a fold, without proposals and maps."""
    stages = [*pipeline.inputs.stages_with_maps(), *(["evaluate"] if pipeline.name else ["proposals", "maps"])]
    estimates = estimate(pipeline.inputs, stages, speed, again=True)
    return sum(value.seconds or 0.0 for value in estimates.values())


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the stages' warnings, such as of a class that a quarter of the images does not show."""
    stages = logging.getLogger("sppdet.training.mining")
    level = stages.level
    stages.setLevel(logging.ERROR)
    try:
        yield
    finally:
        stages.setLevel(level)


def _without(every: Dataset, part: Dataset) -> Dataset:
    """Return the images that are not in a fold."""
    ids = {sample.id for sample in part}
    return replace(every, samples=tuple(sample for sample in every if sample.id not in ids))


def check_folds(config: Config, folds: int) -> None:
    """Refuse a number of folds, or settings, with which cross-validation is impossible.

    Raises:
        SppdetError: there are fewer than 2 folds, or a network learns from the images.
    """
    if folds < 2:
        raise SppdetError(f"--folds: expected 2 or more, found {folds}; leave it out to measure on a test split")
    check_fixed_network(config, "--folds")


def check_fixed_network(config: Config, option: str) -> None:
    """Refuse settings with which the maps would depend on the images that are learned from.

    Raises:
        SppdetError: names ``option``, which needs a network that does not learn.
    """
    learns = {
        "backbone.weights=pretrain": config.backbone.weights == "pretrain",
        "end_to_end.enabled=true": config.end_to_end.enabled,
        f"features={config.features}": config.features != "pool5",
    }
    if settings := [name for name, is_set in learns.items() if is_set]:
        raise SppdetError(
            f"{option}: with {settings[0]} a network learns from the images, and each model would need maps of its "
            f"own; take the preset default or quick, or leave {option} out"
        )
