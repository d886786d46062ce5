"""``python -m sppdet.evaluate RUN [key=value ...]``: detection on a test split, and what it is worth."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sppdet import evaluation
from sppdet.config import Config, to_dict
from sppdet.corpus import Corpus
from sppdet.detections import Detections
from sppdet.detector import Detector
from sppdet.files import write_json
from sppdet.meter import Meter
from sppdet.parallel import run


def evaluate_detector(
    detector: Detector, corpus: Corpus, folder: Path, config: Config, costs: dict, key: str, log: Callable[[str], None]
) -> dict:
    """Detect on every picture of ``corpus`` and write metrics.json and detections/ into ``folder``.

    ``mAP`` is with box regression where the detector has it; ``without_bbox`` holds the figures before it.
    """
    with Meter() as meter:
        plain, found = detect_all(detector, corpus, config.workers)
    result = evaluation.evaluate_voc(corpus.dataset, found)
    without = evaluation.evaluate_voc(corpus.dataset, plain)
    coco = evaluation.evaluate_coco(corpus.dataset, found)
    evaluate_cost = {"seconds": round(meter.seconds, 1), "peak_memory_mb": round(meter.peak_memory_mb)}
    metrics = {
        **result,
        "without_bbox": without,
        "coco": coco,
        "pictures": len(corpus),
        "stages": costs | {"evaluate": evaluate_cost},
        "config": to_dict(config),
        "key": key,
    }
    evaluation.write_devkit_results(folder / "detections", corpus.dataset, found, config.data.test_split)
    evaluation.write_coco_results(folder / "detections" / "coco_results.json", corpus.dataset, found)
    write_json(folder / "metrics.json", metrics)
    log(evaluation.table(result))
    log(f"mAP {_number(without['mAP'])} without box regression, {_number(result['mAP'])} with, 11-point; "
        f"area {_number(result['mAP_area'])}; COCO AP {_number(coco['AP'])}; {len(corpus)} pictures")
    return metrics


def detect_all(detector: Detector, corpus: Corpus, workers: int) -> tuple[list[Detections], list[Detections]]:
    """Detections of every picture without and with box regression, from the stored proposals and maps."""

    def detect(i: int) -> tuple[Detections, Detections]:
        return detector.detect_both(corpus.maps(i), corpus.proposals(i), corpus.size(i))

    plain, found = zip(*run(detect, range(len(corpus)), workers, "detecting", threads=True))
    return list(plain), list(found)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
