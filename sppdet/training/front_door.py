"""From a folder of labelled images, or a config, to a trained detector: what the command and Python call."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path

from sppdet.config import STAGES, Config, in_folder, is_folder, override, preset_settings, settings_for
from sppdet.data import Dataset, Tiles, divide_dataset, load_split, tile_dataset
from sppdet.detection import Detector
from sppdet.networks import check_weights, process_group, rank, rank_count, wait_for_ranks
from sppdet.training.data_settings import choices_of_run, choose_settings
from sppdet.training.folds import check_folds, cross_validate
from sppdet.training.pipeline import Pipeline
from sppdet.training.views import choose_views
from sppdet.utils import SppdetError, cluster, require_engine

logger = logging.getLogger(__name__)

_IN_MEMORY = "(in memory)"  # data.root of a data set that was not read from a folder


def settings_following_data(
    source: Config | str | Path | None,
    overrides: Iterable[str] = (),
    preset: str | None = None,
    output: str | Path | None = None,
    folds: int = 0,
) -> Config:
    """Return the settings of `settings_for`; for a folder, what `choose_settings` chooses replaces the preset's.

    A run that exists keeps its choices, so that its results stay valid when images are added. What cannot be measured
    by ``folds`` is refused before the choice, which takes up to a minute.
    """
    overrides = [*overrides]
    settings = settings_for(source, overrides, preset, output)
    if folds:
        check_folds(settings, folds)
    if not is_folder(source):
        return settings
    data = settings.data
    return _following_data(settings, overrides, lambda: load_split(settings, data.train_split, limit=data.limit_train))


def _following_data(settings: Config, overrides: list[str], training_images: Callable[[], Dataset]) -> Config:
    """Return settings with the choices of the run that exists, else with those that the training images ask for.

    Args:
        settings: of a preset, with ``overrides``.
        overrides: what the user gave; these settings stay.
        training_images: reads them.
    """
    check_weights(settings)  # before the choice, which takes up to a minute
    require_engine(settings.run.engine)
    fixed = {text.partition("=")[0].strip() for text in overrides}
    choices = choices_of_run(settings, fixed)
    if not choices:
        images = tile_dataset(training_images(), Tiles.of(settings.data))
        views = choose_views(settings, images, fixed)
        choices = choices_of_run(settings, fixed, views.scales)
        if not choices:
            choices = choose_settings(settings, images, fixed, views.scales)
            if views.reason:
                logger.info("regions.scales: %s", views.reason)
            for choice in [*views.mirrors, *choices]:
                logger.info("%s: %s", choice.override, choice.reason)
        choices += views.mirrors
    return override(settings, [*(choice.override for choice in choices), *overrides])


def run_training(
    config: Config,
    *,
    keep: bool = False,
    folds: int = 0,
    last: str = STAGES[-1],
    force: bool = False,
    data: tuple[Dataset, Dataset] | None = None,
) -> Pipeline:
    """Run the stages of a training that are not done yet.

    Args:
        config: all settings.
        keep: leave classes that were learned as they are.
        folds: measure by cross-validation with this many folds; 0 measures on ``data.test_split``.
        last: the last stage.
        force: run stage ``last`` even if its result is valid.
        data: training and test images; by default those that ``config.data`` names.

    Returns:
        The pipeline of the trained detector.

    Raises:
        SppdetError: settings, images or annotations that cannot be used; the message says what to do.
    """
    if not folds:
        with process_group():
            if rank_count() > 1:
                return _run_in_ranks(config, keep, last, force, data)
            pipeline = Pipeline(config, keep, data)
            with _engine(config):
                pipeline.run(last, force)
            return pipeline
    check_beside_folds(keep, force, last, in_memory=data is not None)
    with _engine(config):
        return cross_validate(config, folds)


def check_beside_folds(
    keep: bool = False, force: bool = False, last: str = STAGES[-1], in_memory: bool = False
) -> None:
    """Refuse what does not go with cross-validation: to keep classes, to run one stage, a data set in memory.

    Raises:
        SppdetError: one of them is asked for.
    """
    if keep or force or last != STAGES[-1] or in_memory:
        raise SppdetError(
            "--folds: goes with neither --keep, --force and --stage nor a data set in memory; leave out one"
        )


def _engine(config: Config) -> AbstractContextManager[None]:
    """Return the block in which work over images runs where ``run.engine`` says."""
    return cluster(config.run.engine, config.run.cluster, config.workers, Path(config.run.cache))


def _run_in_ranks(config: Config, keep: bool, last: str, force: bool, data: tuple[Dataset, Dataset] | None) -> Pipeline:
    """Run a training in the processes of ``torchrun``: end-to-end training in all, the other stages in the first."""
    if force or not config.end_to_end.enabled:
        raise SppdetError(
            "torchrun: several processes share end-to-end training alone; leave out --force and set "
            "end_to_end.enabled=true, or start one process"
        )
    first = rank() == 0
    if not first:
        logging.getLogger("sppdet").setLevel(logging.WARNING)  # the first process says what all do
        wait_for_ranks()
    pipeline = Pipeline(config, keep, data)
    shared = STAGES.index("end_to_end")
    if first:
        with _engine(config):
            pipeline.run(STAGES[min(shared - 1, STAGES.index(last))])
        wait_for_ranks()
    if STAGES.index(last) >= shared:
        pipeline.run_stages("end_to_end", first="end_to_end")
        if first:
            with _engine(config):
                pipeline.run(last)
    return pipeline


def train_detector(
    source: Config | Dataset | str | Path | None = None,
    overrides: Iterable[str] = (),
    *,
    preset: str | None = None,
    output: str | Path | None = None,
    folds: int = 0,
    keep: bool = False,
    test: Dataset | None = None,
) -> Detector:
    """Run all stages of training that are not done yet, evaluation included, and return the detector.

    An interrupted training resumes when it is called again. Progress is logged to the logger ``sppdet``; unless
    logging is configured, only progress bars and warnings are printed.

    Args:
        source: a folder of labelled images, or a data set, whose objects decide some settings as in the command; or
            settings, a YAML file, or a run's config.json; None takes the default settings.
        overrides: changes such as ``regions.scales=[480,688]``.
        preset: ``quick``, ``default`` or ``best``, for a folder or data set; ``default`` by default.
        output: the run's folder; by default ``runs/NAME`` for a folder NAME, and ``run.dir`` of the settings otherwise.
        folds: measure by cross-validation with this many folds, and learn from all images.
        keep: leave classes that were learned with these settings as they are, though images or objects have changed;
            only new classes are learned.
        test: images to measure on, with a data set as source; by default a fifth of it.

    Returns:
        The detector, which is also saved in ``run.dir``; `sppdet.load` loads it from there.

    Raises:
        SppdetError: settings, images or annotations that cannot be used; the message says what to do.

    Examples:
        >>> import logging
        >>> import sppdet
        >>> logging.basicConfig(level=logging.INFO, format="%(message)s")  # doctest: +SKIP
        >>> detector = sppdet.train_detector("photos", preset="quick")  # doctest: +SKIP
        >>> detector.predict("photo.jpg")  # doctest: +SKIP
    """
    if folds:  # before the settings are chosen, which takes up to a minute
        check_beside_folds(keep, in_memory=isinstance(source, Dataset))
    if not isinstance(source, Dataset):
        if test is not None:
            raise SppdetError("test: goes with a data set; a folder or config names its own, as data.test_split")
        settings = settings_following_data(source, overrides, preset, output, folds)
        return run_training(settings, keep=keep, folds=folds).detector()
    overrides = [*overrides]
    settings = preset_settings(preset, _IN_MEMORY, overrides)
    if output is not None:
        settings = in_folder(settings, output)
    if test is None:
        train, test = divide_dataset(source, settings.data.test_share or 0.2, settings.run.seed)
    elif test.classes != source.classes:
        raise SppdetError("test: its classes are not those of the training images; give both data sets the same")
    else:
        train = source
    settings = _following_data(settings, overrides, lambda: train)
    return run_training(settings, keep=keep, data=(train, test)).detector()
