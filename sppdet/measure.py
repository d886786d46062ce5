"""A trained run measured on a test split: detections, metrics.json, and what the run cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from sppdet import coco, evaluation
from sppdet.combination import MODEL_FILES, load
from sppdet.config import Config, from_dict, override, to_dict
from sppdet.corpus import Corpus, fill_maps, load_split, open_corpus
from sppdet.data import Dataset
from sppdet.detections import Detections
from sppdet.errors import SppdetError
from sppdet.files import file_digest, fingerprint, read_json, write_json
from sppdet.meter import Meter
from sppdet.parallel import run
from sppdet.predictor import Predictor
from sppdet.proposals import recall_line


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
    Nothing is computed if metrics.json is there for the same model and pictures.
    """
    folder = Path(config.run.dir)
    detector = load(folder, config.device).with_detection(config.detection)
    if config.data.classes is not None and tuple(config.data.classes) != detector.classes:
        raise SppdetError(f"data.classes: {folder} was trained on {', '.join(detector.classes)}; leave the key out")
    dataset = load_split(config, config.data.test_split, detector.classes, config.data.limit_test)
    evaluation.check_names(dataset, config.data.test_split)  # before an hour's work whose results it would lose
    corpora = [
        open_corpus(dataset, config.run.cache, detector.search, part.backbone, part.features) for part in detector.parts
    ]
    corpus = corpora[0]
    key = _key(folder, corpus, config.data.test_split, asdict(config.detection))
    path = folder / "metrics.json"
    if not force and path.exists() and read_json(path).get("key") == key:
        return read_json(path)
    corpus.fill_proposals(detector.search, config.workers)
    for part, own in zip(detector.parts, corpora):
        fill_maps([own], part.backbone, config.workers, log)
    with Meter() as meter:
        plain, found = detect_all(detector, corpora, config.workers)
        metrics = {
            **evaluation.evaluate_voc(dataset, found),
            "without_bbox": evaluation.evaluate_voc(dataset, plain),
            "coco": coco.evaluate_coco(dataset, found),
            "proposals": corpus.recall(),
        }
    write_json(folder / "stages.json", read_costs(folder) | {"evaluate": meter.cost()})
    metrics |= {"pictures": len(corpus), "stages": read_costs(folder), "config": to_dict(config), "key": key}
    evaluation.write_devkit_results(folder / "detections", dataset, found, config.data.test_split)
    coco.write_coco_results(folder / "detections" / "coco_results.json", dataset, found)
    write_json(path, metrics)
    return metrics


def detect_all(
    detector: Predictor, corpora: Sequence[Corpus], workers: int
) -> tuple[list[Detections], list[Detections]]:
    """Detections of every picture without and with box regression, from the stored proposals and maps.

    ``corpora``: one for each of the detector's ``parts``, of the same pictures and proposals.
    """
    corpus = corpora[0]

    def detect(i: int) -> tuple[Detections, Detections]:
        # What is read of mirror images is not stored: nothing but this asks for it.
        proposals, flip = corpus.proposals(i), detector.detection.flip
        mirrored = detector.read_mirrored(corpus.dataset[i].read(), proposals) if flip else None
        maps = detector.of_parts([own.maps(i) for own in corpora])
        return detector.detect_both(maps, proposals, corpus.size(i), mirrored)

    plain, found = zip(*run(detect, range(len(corpus)), workers, "detecting", threads=True))
    return list(plain), list(found)


@dataclass(frozen=True)
class Measured:
    """What the last evaluation of a run left: its settings, pictures, detections and figures."""

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
    settings = override(from_dict(metrics["config"]), overrides)
    settings.run.dir = str(folder)
    dataset = load_split(settings, settings.data.test_split, list(metrics["AP"]), settings.data.limit_test)
    detections = evaluation.read_devkit_results(folder / "detections", dataset, settings.data.test_split)
    return Measured(folder, settings, dataset, detections, metrics)


def summary(metrics: dict) -> str:
    """The table of a metrics.json, for a terminal."""
    proposals, of_coco = metrics["proposals"], metrics["coco"]
    number = {k: "-" if v is None else f"{v:.1f}" for k, v in {**of_coco, "mAP": metrics["mAP"]}.items()}
    without = metrics["without_bbox"]["mAP"]
    return "\n".join(
        [
            evaluation.table(metrics),
            f"{metrics['pictures']} pictures; proposals: {proposals['windows']:.0f} a picture, "
            f"{recall_line(proposals)}",
            f"mAP {number['mAP']} (11-point; {'-' if without is None else f'{without:.1f}'} without box regression), "
            f"COCO AP {number['AP']}, AP50 {number['AP50']}, AP75 {number['AP75']}",
        ]
    )


def _key(folder: Path, corpus: Corpus, split: str, detection: dict) -> str:
    # That of a combination names the digests of its parts.
    model = [file_digest(folder / name) for name in MODEL_FILES if (folder / name).exists()]
    objects = [[s.boxes.tolist(), s.labels.tolist(), s.difficult.tolist()] for s in corpus.dataset]
    return fingerprint([model, split, corpus.names, objects, detection])
