"""Compare kinds of pooling: ``python scripts/study_pooling.py CONFIG [key=value ...] --train 400 --validate 200``.

All kinds read the same cached feature maps and have the same proposals, SVMs, box regression and seed. Images are from
the config's training split only: the first ones to train on, the next ones to compare on; test images are not used.
Relative to their length, vectors of means differ less from one another than vectors of maxima: with several ``--C``
each kind is shown at its best C.
Prints the table of ``docs/experiments/pooling.md`` and draws ``docs/experiments/pooling.png``. Finished results are
kept in RUN.DIR/study_pooling.json, and an interrupted study goes on after them. Seconds are processor time.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from sppdet import config
from sppdet.cli import common as cli
from sppdet.config.settings import Config
from sppdet.data.dataset import Dataset
from sppdet.data.splits import load_split
from sppdet.detection.detector import Detector
from sppdet.evaluation.run import detect_all
from sppdet.evaluation.voc import evaluate_voc
from sppdet.features.feature_split import FeatureSplit, open_split
from sppdet.features.pyramid_features import PyramidFeatures
from sppdet.networks.backbone import Backbone
from sppdet.proposals.search import SelectiveSearch
from sppdet.training import bbox_regression
from sppdet.training.mining import Miner
from sppdet.training.vector_norm import feature_scale
from sppdet.utils.errors import SppdetError
from sppdet.utils.execution import Execution
from sppdet.utils.files import atomic_write, fingerprint, read_json, write_json

KINDS = {  # name -> what differs from the config
    "spp": ["pooling.kind=max", "pooling.levels=[6,3,2,1]"],
    "spp, shrink 0": ["pooling.kind=max", "pooling.levels=[6,3,2,1]", "regions.shrink=0"],
    "spp_align": ["pooling.kind=align", "pooling.levels=[6,3,2,1]"],
    "roi_pool": ["pooling.kind=max", "pooling.levels=[7]", "regions.shrink=0"],
    "roi_align": ["pooling.kind=align", "pooling.levels=[7]"],
}
OVERLAPS = (0.5, 0.75)
_TIMED = 5  # images on which the pooling alone is timed


def study(options: argparse.Namespace) -> int:
    """Train and evaluate each kind, print the table and draw the plot."""
    logging.getLogger("sppdet").setLevel(logging.WARNING)  # the table alone goes to stdout
    settings = config.load(options.config, options.overrides)
    backbone = Backbone.create(
        settings.backbone.name, settings.backbone.weights, settings.device, settings.backbone.precision
    )
    train, validate = make_splits(settings, backbone, options.train, options.validate)
    print(f"{len(train)} images of `{settings.data.train_split}` to train on, the next {len(validate)} to compare on\n")
    path = Path(settings.run.dir) / "study_pooling.json"
    done = read_json(path) if path.exists() else {}
    rows: dict[str, dict] = {}
    for name in options.kinds or KINDS:
        for C in options.C or [settings.svm.C]:
            changed = config.override(settings, [*KINDS[name], f"svm.C={C}"])
            key = fingerprint([config.to_dict(changed), backbone.settings(), train.names, validate.names])
            if key not in done:
                write_json(path, done := done | {key: measure(changed, backbone, train, validate)})
            if name not in rows or worth(done[key]) > worth(rows[name]):
                rows[name] = done[key] | {"C": C}
    print_table(rows)
    if options.plot:
        atomic_write(Path(options.plot), lambda temporary: plot(rows).save(temporary))
    return 0


def make_splits(settings: Config, backbone: Backbone, train: int, validate: int) -> list[FeatureSplit]:
    """Return the first ``train`` images of the training split and the next ``validate``, with proposals and maps."""
    images = load_split(settings, settings.data.train_split)
    if len(images) < train + validate:
        raise SppdetError(f"{settings.data.train_split} has {len(images)} images: lower --train or --validate")
    search = SelectiveSearch.of(settings.proposals)
    features = PyramidFeatures.create(backbone, settings.regions, settings.pooling)  # maps do not depend on the kind
    splits = []
    for samples in (images.samples[:train], images.samples[train : train + validate]):
        split = open_split(Dataset(images.classes, samples), settings.run.cache, search, backbone, features)
        split.fill_proposals(search, settings.workers)
        split.fill_maps(backbone, settings.workers)
        splits.append(split)
    return splits


def measure(settings: Config, backbone: Backbone, train: FeatureSplit, validate: FeatureSplit) -> dict:
    """Train one kind of pooling and detect with it.

    Returns:
        ``dimension`` of a vector; ``windows`` per image; seconds of ``pooling`` per image, of ``training``, and of
        ``detection`` per image; ``AP`` by overlap: percent by class, without and with box regression.
    """
    features = PyramidFeatures.create(backbone, settings.regions, settings.pooling)
    windows, pooling = time_pooling(features, validate)
    labels, execution = range(len(train.dataset.classes)), Execution(settings.run.seed, settings.workers)
    start = time.process_time()
    scale = feature_scale(train, features, settings.svm.norm, execution)
    svms = Miner(train, features, labels, settings.svm, scale, execution).train()
    boxes = bbox_regression.train(train, features, list(labels), settings.bbox, scale, execution)
    trained = time.process_time()
    detection = replace(settings.detection, context=0)  # no SVMs of whole images
    search = SelectiveSearch.of(settings.proposals)
    detector = Detector(train.dataset.classes, backbone, features, search, svms, boxes, detection)
    both = detect_all(detector, [validate], settings.workers)
    detected = time.process_time()
    return {
        "dimension": features.dimension,
        "windows": windows,
        "pooling": pooling,
        "training": trained - start,
        "detection": (detected - trained) / len(validate),
        "AP": {
            str(overlap): [evaluate_voc(validate.dataset, detections, overlap)["AP"] for detections in both]
            for overlap in OVERLAPS
        },
    }


def time_pooling(features: PyramidFeatures, split: FeatureSplit) -> tuple[float, float]:
    """Return the number of different windows per image, and the seconds of pooling them."""

    def pool(i: int) -> tuple[int, float]:
        maps = split.maps(i)
        assert isinstance(maps, list)  # of a pyramid, not the vectors of crops
        windows = features.windows(split.proposals(i), split.size(i), maps)
        start = time.process_time()
        for rows in features.blocks(windows):
            features.block(maps, windows, rows)
        return len(windows.cells), time.process_time() - start

    pool(0)  # compiles the kernel
    counts, seconds = zip(*(pool(i) for i in range(min(_TIMED, len(split)))))
    return float(np.mean(counts)), float(np.mean(seconds))


def mean(ap: dict[str, float | None]) -> float:
    """Return mAP: the mean over classes that have an AP."""
    return float(np.mean([value for value in ap.values() if value is not None]))


def worth(row: dict) -> float:
    """Return mAP at IoU 0.5 with box regression."""
    return mean(row["AP"][str(OVERLAPS[0])][1])


def difference(ap: dict[str, float | None], other: dict[str, float | None]) -> str:
    """Return the gain in mAP over ``other`` and its standard error, with the classes as the sample."""
    pairs = [(ap[name], other[name]) for name in ap]
    gains = [value - other_value for value, other_value in pairs if value is not None and other_value is not None]
    return f"{np.mean(gains):+.1f} ± {np.std(gains, ddof=1) / np.sqrt(len(gains)):.1f}"


def print_table(rows: dict[str, dict]) -> None:
    """Print the Markdown table; mAP in percent. Differences are to the first kind, with box regression."""
    names = ["kind", "C", "features", "bytes", "windows", "pooling, ms", "training, s", "detection, ms"]
    for overlap in OVERLAPS:
        names += [f"mAP@{overlap}, SVMs", "+ boxes", "difference"]
    print("| " + " | ".join(names) + " |\n" + "|---" * len(names) + "|")
    first = next(iter(rows.values()))
    for name, row in rows.items():
        cells = [name, f"{row['C']:g}", f"{row['dimension']}", f"{2 * row['dimension']}", f"{row['windows']:.0f}"]
        cells += [f"{1000 * row['pooling']:.0f}", f"{row['training']:.0f}", f"{1000 * row['detection']:.0f}"]
        for overlap, (svms, boxes) in row["AP"].items():
            against = "" if row is first else difference(boxes, first["AP"][overlap][1])
            cells += [f"{mean(svms):.1f}", f"{mean(boxes):.1f}", against]
        print("| " + " | ".join(cells) + " |")


def plot(rows: dict[str, dict]) -> Image.Image:
    """Draw two bars per kind and overlap: mAP of the SVMs alone and with box regression."""
    step, width = 26, 380
    image = Image.new("RGB", (2 * (width + 140), step * len(rows) + 60), "white")
    draw = ImageDraw.Draw(image)
    for panel, overlap in enumerate(map(str, OVERLAPS)):
        left = 110 + panel * (width + 140)
        scale = width / max(mean(ap) for row in rows.values() for ap in row["AP"][overlap])
        draw.text((left, 10), f"mAP at IoU {overlap}: SVMs (light), + box regression (dark)", "black")
        for i, (name, row) in enumerate(rows.items()):
            top = 35 + i * step
            draw.text((left - 8, top + step / 2 - 3), name, "black", anchor="rm")
            for ap, colour, y in zip(row["AP"][overlap], ("#9ecae1", "#3182bd"), (top, top + 10)):
                end = left + scale * mean(ap)
                draw.rectangle((left, y, end, y + 9), colour)
                draw.text((end + 3, y + 5), f"{mean(ap):.1f}", "black", anchor="lm", font_size=9)
    return image


def main(arguments: list[str] | None = None) -> int:
    """Run the script and return its exit status."""
    parser = argparse.ArgumentParser(prog="study_pooling.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config", help="a YAML file, such as configs/voc07_sppnet_squeezenet.yaml")
    cli.add_overrides(parser)
    parser.add_argument("--train", type=int, default=400, help="images to train on; default: %(default)s")
    parser.add_argument("--validate", type=int, default=200, help="images to compare on; default: %(default)s")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, metavar="NAME", help="only these kinds")
    parser.add_argument("--C", nargs="+", type=float, help="values of C of the SVMs; default: the config's")
    parser.add_argument(
        "--plot", metavar="FILE", help="draw the table into this file, such as docs/experiments/pooling.png"
    )
    return cli.run(study, parser.parse_intermixed_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
