"""Evaluate a run's detector on a test split, and read what the last evaluation left in the run's folder."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import mean, stdev

from sppdet.config import Config, from_dict, in_folder, override, to_dict
from sppdet.config import load as load_config
from sppdet.data import Dataset, Sample, Tiles, load_split, tile_dataset
from sppdet.detection import MODEL_FILES, Detections, Predictor, load, merge_tiles
from sppdet.evaluation.coco import write_coco_ground_truth, write_coco_results
from sppdet.evaluation.costs import read_costs, record_cost
from sppdet.evaluation.devkit_files import check_names, read_devkit_results, write_devkit_results
from sppdet.evaluation.flat_metrics import flat_numbers
from sppdet.evaluation.in_memory import evaluate_detections
from sppdet.evaluation.reliability import measure_reliability
from sppdet.evaluation.voc import evaluate_voc, mean_over_known, only_looked_for, table, without_ignored
from sppdet.features import FeatureSplit, entry_names, fill_maps, open_split
from sppdet.proposals import recall_line
from sppdet.utils import (
    Meter,
    SppdetError,
    cluster,
    errors_naming,
    file_digest,
    fingerprint,
    note,
    parallel_map,
    read_json,
    remove_leftovers,
    write_json,
)

logger = logging.getLogger(__name__)

PERHAPS_MISSED = "perhaps_missed.json"  # written by training with data.incomplete_labels
_RESULTS = "detections"  # the folder of the devkit's and COCO's result files in a run's folder


def evaluate_run(
    run: Config | str | os.PathLike,
    force: bool = False,
    overrides: Iterable[str] = (),
    dataset: Dataset | None = None,
    report: bool = True,
) -> dict:
    """Evaluate a run's detector on its test split (``data.test_split``); write metrics.json, detections/, report.html.

    metrics_flat.json has the figures of metrics.json as one level of numbers.

    Proposals and feature maps are read from the run's cache (``run.cache``); the missing ones are computed and stored
    there. If metrics.json was written for the same model, images and settings of detection, it is returned as it is. A
    report that cannot be written costs a warning, not the evaluation.

    Args:
        run: the folder of a run, whose config.json has the settings; or the settings, with the folder as ``run.dir``.
        force: evaluate even if metrics.json is up to date.
        overrides: ``key=value`` settings to change, such as ``data.test_split=val`` or ``detection.nms=0.4``.
        dataset: the test images; by default those that the settings name.
        report: whether to write report.html.

    Returns:
        The content of metrics.json: the figures of `sppdet.evaluation.evaluate_detections`, with box regression
        where the model has it; ``without_bbox``, VOC's figures before box regression; ``proposals`` (their recall);
        ``calibration`` (see `sppdet.evaluation.reliability.measure_reliability`), if the model has probabilities;
        ``pictures`` (the number of images); ``objects`` (to be found, by class name); ``stages`` (see
        `sppdet.evaluation.read_costs`); ``config``; ``key``.

    Raises:
        SppdetError: if there is no run, model or data set, or a file cannot be read.
    """
    config = override(run, overrides) if isinstance(run, Config) else _run_config(Path(run), overrides)
    folder = Path(config.run.dir)
    remove_leftovers(folder)
    detector = load(folder, config.device).with_detection(config.detection)
    if config.data.classes is not None and tuple(config.data.classes) != detector.classes:
        raise SppdetError(f"data.classes: {folder} was trained on {', '.join(detector.classes)}; leave the key out")
    if dataset is None:
        dataset = load_split(config, config.data.test_split, detector.classes, config.data.limit_test)
    check_names(dataset, config.data.test_split)  # now: at the end the results of an hour's work would be lost
    tiles = Tiles.of(config.data)
    pieces = tile_dataset(dataset, tiles)
    splits = [
        open_split(pieces, config.run.cache, detector.search, part.backbone, part.features) for part in detector.parts
    ]
    split = splits[0]
    key = _metrics_key(config, split.names, dataset)
    path = folder / "metrics.json"
    last = read_json(path) if path.exists() else {}
    if last.get("key") == key and (not force or "folds" in last):
        last = read_metrics(folder)
        if report and not (folder / "report.html").exists():
            _write_report(folder)
        return last
    if "folds" in last and to_dict(config)["data"] == read_json(path, config=dict)["config"].get("data"):
        raise SppdetError(
            f"{folder}: was measured by cross-validation and has learned from all of {config.data.root}; train with "
            "--folds and the changed settings, or give other images: data.root=FOLDER data.test_split=all"
        )
    with cluster(config.run.engine, config.run.cluster, config.workers, Path(config.run.cache)):
        split.fill_proposals(detector.search, config.workers)
        for part, part_split in zip(detector.parts, splits):
            fill_maps([part_split], part.backbone, config.workers)
        with Meter() as meter:
            before_and_after = detect_all(detector, splits, config.workers)
            plain, regressed = (
                only_looked_for(dataset, _of_whole_images(part, dataset, tiles, detector)) for part in before_and_after
            )
            note("figures")
            figures = evaluate_detections(dataset, regressed)
            # The order of the keys is that of the file.
            metrics = {name: value for name, value in figures.items() if name != "coco"} | {
                "without_bbox": evaluate_voc(dataset, plain),
                "coco": figures["coco"],
                "proposals": split.recall(config.workers),
            }
            if reliability := measure_reliability(dataset, [detector.with_probabilities(entry) for entry in regressed]):
                metrics["calibration"] = reliability
    record_cost(folder, "evaluate", meter.cost())
    return _write(config, dataset, regressed, metrics, key, report)


def evaluate_folds(
    config: Config, dataset: Dataset, folds: Sequence[tuple[Dataset, Path]], learning_curve: list[dict] | None = None
) -> dict:
    """Evaluate a run by the detections of cross-validation: each image's are of a model that did not learn from it.

    Args:
        config: the settings of the run in ``run.dir``, whose model has learned from all images.
        dataset: all images.
        folds: the images of each fold, and the folder of the run that was evaluated on them.
        learning_curve: for each number of training images ``images``, ``mAP`` and ``AP75`` of several models.

    Returns:
        The content of the run's metrics.json: the figures of `evaluate_run` of all detections together, where those
        without box regression and the recall of proposals are means over the folds; ``folds`` has ``mAP`` and ``AP75``
        of each fold; ``learning_curve`` where there is one.
    """
    names = entry_names(tile_dataset(dataset, Tiles.of(config.data)))
    every = [read_metrics(folder) for _, folder in folds]
    key = _metrics_key(config, names, dataset)
    found: dict[str, Detections] = {}
    for part, folder in folds:
        of_part = read_devkit_results(folder / _RESULTS, part, config.data.test_split)
        found |= {sample.id: detections for sample, detections in zip(part, of_part)}
    detections = [found[sample.id] for sample in dataset]
    figures = evaluate_detections(dataset, detections)
    metrics = {name: value for name, value in figures.items() if name != "coco"} | {
        "without_bbox": _mean([metrics["without_bbox"] for metrics in every]),
        "coco": figures["coco"],
        "proposals": _mean([metrics["proposals"] for metrics in every]),
        "folds": {
            "mAP": [metrics["mAP"] for metrics in every],
            "AP75": [metrics["coco"]["AP75"] for metrics in every],
        },
    }
    if learning_curve:
        metrics["learning_curve"] = learning_curve
    return _write(config, dataset, detections, metrics, key)


def _write(
    config: Config, dataset: Dataset, detections: list[Detections], metrics: dict, key: str, report: bool = True
) -> dict:
    """Write the files of an evaluation; return the content of metrics.json."""
    folder, split = Path(config.run.dir), config.data.test_split
    counts = Counter(int(label) for sample in dataset for label in sample.labels[~sample.difficult])
    objects = {name: counts[k] for k, name in enumerate(dataset.classes)}
    metrics |= {"pictures": len(dataset), "objects": objects, "stages": read_costs(folder)}
    metrics |= {"config": to_dict(config), "key": key}
    write_devkit_results(folder / _RESULTS, dataset, detections, split)
    write_coco_results(folder / _RESULTS / "coco_results.json", dataset, detections)
    write_coco_ground_truth(folder / _RESULTS / "coco_ground_truth.json", dataset)
    metrics["detections"] = _detections_digest(folder)
    write_json(folder / "metrics.json", metrics, sealed=True)
    write_json(folder / "metrics_flat.json", flat_numbers(metrics))
    for name in ("report.html", "diagnosis.json", "diagnosis.md", "diagnosis.png"):  # older ones show other figures
        (folder / name).unlink(missing_ok=True)
    if report:
        _write_report(folder)
    return metrics


def _write_report(folder: Path) -> None:
    """Write the report of the evaluation that has just been stored, or say why there is none."""
    from sppdet.evaluation.report.page import write_report  # imported late: it reads evaluations with this module

    note("report")
    try:
        logger.info("report: %s", write_report(folder))
    except (SppdetError, OSError) as error:
        logger.warning("no report: %s", error)


def _mean(entries: list[dict]) -> dict:
    """Return the means of the numbers of nested dicts that have the same keys; None counts for nothing."""
    return {
        name: _mean([entry[name] for entry in entries])
        if isinstance(first, dict)
        else mean_over_known({str(i): entry[name] for i, entry in enumerate(entries)})
        for name, first in entries[0].items()
    }


def _run_config(folder: Path, overrides: Iterable[str]) -> Config:
    """Read the settings of the run in ``folder``, whatever folder it was trained in, and change them."""
    path = folder / "config.json"
    if not path.exists():
        raise SppdetError(f"{folder}: no run here; python -m sppdet.train CONFIG run.dir={folder} makes one")
    return in_folder(load_config(path, overrides), folder)


def detect_all(
    detector: Predictor, splits: Sequence[FeatureSplit], workers: int
) -> tuple[list[Detections], list[Detections]]:
    """Detect objects in every image of a split, from its stored proposals and feature maps.

    Args:
        detector: a detector, or an ensemble of several.
        splits: one for each of ``detector.parts``, all of the same images and proposals.
        workers: number of images at a time; 0 for one per core.

    Returns:
        Detections of every image before box regression, and after it.
    """
    split = splits[0]
    detect = partial(_detect_one, detector, [part_split.of_images((), []) for part_split in splits])
    images = [*zip(split.dataset, split.names)]
    plain, regressed = zip(*parallel_map(detect, images, workers, "detecting", threads=True, portable=True))
    return list(plain), list(regressed)


def _of_whole_images(
    detections: list[Detections], dataset: Dataset, tiles: Tiles | None, detector: Predictor
) -> list[Detections]:
    """Return the detections of whole images.

    Args:
        detections: those of all tiles of all images, image by image.
        dataset: the whole images.
        tiles: how they were cut; None: not at all.
        detector: what detected.
    """
    if tiles is None:
        return detections
    of_tiles, merged = iter(detections), []
    for sample in dataset:
        boxes, size = tiles.boxes(sample.width, sample.height), (sample.width, sample.height)
        merged.append(merge_tiles(islice(of_tiles, len(boxes)), boxes, tiles, size, detector.detection.nms))
    return merged


def _detect_one(
    detector: Predictor, splits: Sequence[FeatureSplit], image: tuple[Sample, str]
) -> tuple[Detections, Detections]:
    """Detect objects in an image and its store entry, see `detect_all`; ``splits`` are without images."""
    sample, name = image
    splits = [split.of_images((sample,), [name]) for split in splits]
    proposals = splits[0].proposals(0)
    # The maps of mirror images are not stored: nothing else uses them.
    mirrored = detector.read_mirror_image(sample.read(), proposals) if detector.detection.flip else None
    return detector.detect_both([split.maps(0) for split in splits], proposals, splits[0].size(0), mirrored)


@dataclass(frozen=True)
class LastEvaluation:
    """What the last evaluation of a run left in the run's folder.

    Attributes:
        folder: the run's folder.
        config: the settings of that evaluation.
        dataset: the test split.
        detections: an entry for each sample of ``dataset``, with box regression; without those in ignored regions.
        metrics: the content of metrics.json.
    """

    folder: Path
    config: Config
    dataset: Dataset
    detections: list[Detections]
    metrics: dict

    def check_map(self, measured: float | None) -> None:
        """Refuse detections whose 11-point mAP is not that of metrics.json.

        They are of another evaluation, or written by an older version with rounded corners, which puts the IoU of some
        boxes on the other side of a threshold.

        Args:
            measured: mAP of ``detections`` in percent, None without objects.

        Raises:
            SppdetError: if the figures differ by more than 0.01.
        """
        expected = self.metrics["mAP"]
        if (measured is None) != (expected is None) or (measured is not None and abs(measured - expected) > 0.01):
            raise SppdetError(
                f"{self.folder}: the detections have mAP {measured}, but metrics.json says {expected}; "
                f"python -m sppdet.evaluate {self.folder} --force writes both again"
            )


def read_last_evaluation(folder: str | os.PathLike, overrides: Iterable[str] = ()) -> LastEvaluation:
    """Read what the last evaluation of the run in ``folder`` left there.

    Args:
        folder: the run's folder.
        overrides: ``key=value`` settings for files that have moved since, such as ``data.root=...``.

    Raises:
        SppdetError: if a file is missing or cannot be read.
    """
    folder = Path(folder)
    for name in ("metrics.json", "model.json"):
        if not (folder / name).is_file():
            raise SppdetError(f"{folder / name}: does not exist; python -m sppdet.evaluate {folder} evaluates the run")
    path = folder / "metrics.json"
    metrics = read_json(path, config=dict, AP=dict, mAP=(float, int, type(None)))
    with errors_naming(path, f"python -m sppdet.evaluate {folder} --force writes it again"):
        settings = from_dict(metrics["config"])
    config = in_folder(override(settings, overrides), folder)
    dataset = load_split(config, config.data.test_split, list(metrics["AP"]), config.data.limit_test)
    if metrics.get("detections") not in (None, _detections_digest(folder)):  # versions before had none
        raise SppdetError(
            f"{folder / _RESULTS}: the files of detections are not those of {path}; python -m sppdet.evaluate {folder} "
            "--force writes both again"
        )
    detections = without_ignored(dataset, read_devkit_results(folder / _RESULTS, dataset, config.data.test_split))
    return LastEvaluation(folder, config, dataset, detections, metrics)


def read_metrics(folder: Path) -> dict:
    """Return the content of the metrics.json of a run; one without checksum may hold anything, so it is tried.

    Raises:
        SppdetError: the file is damaged, or lacks a figure.
    """
    path = folder / "metrics.json"
    metrics = read_json(path)
    with errors_naming(path, "remove it and run the command again"):
        summary(metrics)
    return metrics


def _detections_digest(folder: Path) -> str:
    """Return a digest of the devkit's files of the run in ``folder``."""
    return fingerprint([[path.name, file_digest(path)] for path in sorted((folder / _RESULTS).glob("*.txt"))])


def summary(metrics: dict) -> str:
    """Format the content of a metrics.json for a terminal: a table by class, proposals and means."""
    proposals, coco = metrics["proposals"], metrics["coco"]
    figures = {**coco, "mAP": metrics["mAP"], "without": metrics["without_bbox"]["mAP"]}
    text = {name: "-" if value is None else f"{value:.1f}" for name, value in figures.items()}
    lines = [
        table(metrics),
        f"{metrics['pictures']} images; {proposals['windows']:.0f} proposals per image, {recall_line(proposals)}",
        f"mAP {text['mAP']} at IoU 0.5 (11-point; {text['without']} without box regression); "
        f"COCO AP {text['AP']}, AP50 {text['AP50']}, AP75 {text['AP75']}",
    ]
    if "calibration" in metrics and metrics["calibration"]["error"] is not None:
        lines.append(f"expected calibration error of the probabilities: {metrics['calibration']['error']:.3f}")
    if "folds" in metrics:
        of_folds = ", ".join(f"{name} {_spread(values)}" for name, values in metrics["folds"].items())
        lines.append(f"{len(metrics['folds']['mAP'])} folds, mean and spread: {of_folds}")
    if "learning_curve" in metrics:
        points = [f"{point['images']} images {_spread(point['mAP'])}" for point in metrics["learning_curve"]]
        lines.append(f"mAP by the number of training images: {', '.join(points)}")
    return "\n".join(lines)


def _spread(values: list[float | None]) -> str:
    """Return mean and standard deviation of the values that are known.

    Examples:
        >>> _spread([50.0, 52.0, None])
        '51.0 ± 1.4'
    """
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    return f"{mean(known):.1f}" + (f" ± {stdev(known):.1f}" if len(known) > 1 else "")


def _metrics_key(config: Config, names: list[str], dataset: Dataset) -> str:
    """Return the key of metrics.json: model, split, images, ground truth and settings of detection.

    Args:
        config: the run's.
        names: the store entries of the images.
        dataset: the images.
    """
    folder = Path(config.run.dir)
    # An ensemble's model.json names the digests of its members' files.
    model = [file_digest(folder / name) for name in MODEL_FILES if (folder / name).exists()]
    objects = [[s.boxes.tolist(), s.labels.tolist(), s.difficult.tolist()] for s in dataset]
    objects += [[s.id, s.looked_for.tolist()] for s in dataset if s.looked_for is not None]
    objects += [[s.id, s.ignored.tolist(), s.ignored_labels.tolist()] for s in dataset if len(s.ignored)]
    return fingerprint([model, config.data.test_split, names, objects, asdict(config.detection)])
