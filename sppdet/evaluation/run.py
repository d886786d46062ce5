"""A trained run measured on a test split: detections, metrics.json, and what the run cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from sppdet.config import Config, from_dict, in_folder, override, to_dict
from sppdet.data import Dataset, load_split
from sppdet.detection import MODEL_FILES, Detections, Predictor, load
from sppdet.evaluation import coco, devkit_files, voc
from sppdet.features import CachedSplit, fill_maps, open_split
from sppdet.proposals import recall_line
from sppdet.utils import Meter, SppdetError, file_digest, fingerprint, parallel_map, read_json, write_json


def read_costs(folder: Path) -> dict[str, dict]:
    """What each stage of the run in ``folder`` took when it was last computed."""
    path = folder / "stages.json"
    return read_json(path) if path.exists() else {}


def stage_line(stage: str, cost: dict) -> str:
    """What a stage took, for a terminal."""
    parts = [f"{stage:<10} {cost.get('seconds', 0):7.1f} s {cost.get('peak_memory_mb', 0):6.0f} MB memory"]
    if "disk_mb" in cost:
        parts.append(f"{cost['disk_mb']:.0f} MB disk")
    for split in ("train", "test"):
        if split in cost:
            parts.append(f"{split}: {cost[split]['windows']:.0f} windows, {recall_line(cost[split])}")
    return "  ".join(parts)


def evaluate_run(config: Config, log: Callable[[str], None] = print, force: bool = False) -> dict:
    """Measure the model in ``config.run.dir`` on ``config.data.test_split``; returns what metrics.json holds.

    ``mAP`` is with box regression where the model has it; ``without_bbox`` holds the same figures before it.
    Nothing is computed if metrics.json is there for the same model and images.
    """
    folder = Path(config.run.dir)
    detector = load(folder, config.device).with_detection(config.detection)
    if config.data.classes is not None and tuple(config.data.classes) != detector.classes:
        raise SppdetError(f"data.classes: {folder} was trained on {', '.join(detector.classes)}; leave the key out")
    dataset = load_split(config, config.data.test_split, detector.classes, config.data.limit_test)
    devkit_files.check_names(dataset, config.data.test_split)  # before an hour's work whose results it would lose
    splits = [
        open_split(dataset, config.run.cache, detector.search, part.backbone, part.features) for part in detector.parts
    ]
    split = splits[0]
    key = _key(folder, split, config.data.test_split, asdict(config.detection))
    path = folder / "metrics.json"
    if not force and path.exists() and read_json(path).get("key") == key:
        return read_json(path)
    split.fill_proposals(detector.search, config.workers)
    for part, own in zip(detector.parts, splits):
        fill_maps([own], part.backbone, config.workers)
    with Meter() as meter:
        plain, found = detect_all(detector, splits, config.workers)
        metrics = {
            **voc.evaluate_voc(dataset, found),
            "without_bbox": voc.evaluate_voc(dataset, plain),
            "coco": coco.evaluate_coco(dataset, found),
            "proposals": split.recall(),
        }
    write_json(folder / "stages.json", read_costs(folder) | {"evaluate": meter.cost()})
    metrics |= {"pictures": len(split), "stages": read_costs(folder), "config": to_dict(config), "key": key}
    devkit_files.write_devkit_results(folder / "detections", dataset, found, config.data.test_split)
    coco.write_coco_results(folder / "detections" / "coco_results.json", dataset, found)
    write_json(path, metrics)
    return metrics


def detect_all(
    detector: Predictor, splits: Sequence[CachedSplit], workers: int
) -> tuple[list[Detections], list[Detections]]:
    """Detections of every image without and with box regression, from the stored proposals and maps.

    ``corpora``: one for each of the detector's ``parts``, of the same images and proposals.
    """
    split = splits[0]

    def detect(i: int) -> tuple[Detections, Detections]:
        # What is read of mirror images is not stored: nothing but this asks for it.
        proposals, flip = split.proposals(i), detector.detection.flip
        mirrored = detector.read_mirror_image(split.dataset[i].read(), proposals) if flip else None
        maps = [own.maps(i) for own in splits]
        return detector.detect_both(maps, proposals, split.size(i), mirrored)

    plain, found = zip(*parallel_map(detect, range(len(split)), workers, "detecting", threads=True))
    return list(plain), list(found)


@dataclass(frozen=True)
class Measured:
    """What the last evaluation of a run left: its settings, images, detections and figures."""

    folder: Path
    settings: Config
    dataset: Dataset
    detections: list[Detections]
    metrics: dict

    def check(self, found: float | None) -> None:
        """Refuse detections, of mAP ``found``, that metrics.json does not speak of, or that have rounded corners, as
        files of older versions do: some boxes are over a threshold then, or below it, that were not."""
        measured = self.metrics["mAP"]
        if (found is None) != (measured is None) or (found is not None and abs(found - measured) > 0.01):
            raise SppdetError(
                f"{self.folder}: the detections have mAP {found}, metrics.json says {measured}; "
                f"python -m sppdet.evaluate {self.folder} --force writes both again"
            )


def last_measured(folder: str | Path, overrides: Iterable[str] = ()) -> Measured:
    """Read it from the run's folder; ``overrides`` are ``key=value`` for what has moved since, such as ``data.root``.

    Raises:
        SppdetError: a file that is missing or cannot be read.
    """
    folder = Path(folder)
    for name in ("metrics.json", "model.json"):
        if not (folder / name).is_file():
            raise SppdetError(f"{folder / name}: is not there; python -m sppdet.evaluate {folder} measures the run")
    metrics = read_json(folder / "metrics.json")
    settings = in_folder(override(from_dict(metrics["config"]), overrides), folder)
    dataset = load_split(settings, settings.data.test_split, list(metrics["AP"]), settings.data.limit_test)
    detections = devkit_files.read_devkit_results(folder / "detections", dataset, settings.data.test_split)
    return Measured(folder, settings, dataset, detections, metrics)


def summary(metrics: dict) -> str:
    """The table of a metrics.json, for a terminal."""
    proposals, of_coco = metrics["proposals"], metrics["coco"]
    number = {k: "-" if v is None else f"{v:.1f}" for k, v in {**of_coco, "mAP": metrics["mAP"]}.items()}
    without = metrics["without_bbox"]["mAP"]
    return "\n".join(
        [
            voc.table(metrics),
            f"{metrics['pictures']} images; proposals: {proposals['windows']:.0f} an image, {recall_line(proposals)}",
            f"mAP {number['mAP']} (11-point; {'-' if without is None else f'{without:.1f}'} without box regression), "
            f"COCO AP {number['AP']}, AP50 {number['AP50']}, AP75 {number['AP75']}",
        ]
    )


def _key(folder: Path, split: CachedSplit, name: str, detection: dict) -> str:
    # That of a combination names the digests of its parts.
    model = [file_digest(folder / name) for name in MODEL_FILES if (folder / name).exists()]
    objects = [[s.boxes.tolist(), s.labels.tolist(), s.difficult.tolist()] for s in split.dataset]
    return fingerprint([model, name, split.names, objects, detection])
