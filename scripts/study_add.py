"""Learn some classes of a data set, add the others one by one, and compare with all classes learned together.

    python scripts/study_add.py --root VOCdevkit --images 2500 --tests 1000 --cache cache --output runs/study_add

The first run learns all classes together. The second learns all but the last ``--added`` classes from the images that
show one of its classes; objects of the others are not annotated then. `sppdet.add_classes` adds each of the others from
the images that show it alone. Both are measured on the same images.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

import sppdet
from sppdet.cli import common as cli
from sppdet.config import in_folder, override, settings_for
from sppdet.data import Dataset, read_dataset
from sppdet.detection import StoredModel, load_detector
from sppdet.evaluation import detect_all, evaluate_voc
from sppdet.features import open_split
from sppdet.training import run_training


def with_classes(dataset: Dataset, names: list[str]) -> Dataset:
    """Return the images that show some classes, with the objects of these alone."""
    numbers = {dataset.classes.index(name): k for k, name in enumerate(names)}
    samples = []
    for sample in dataset:
        rows = np.flatnonzero([label in numbers for label in sample.labels.tolist()])
        if len(rows):
            labels = np.array([numbers[label] for label in sample.labels[rows].tolist()], np.int64)
            boxes, difficult = sample.boxes[rows], sample.difficult[rows]
            samples.append(replace(sample, boxes=boxes, labels=labels, difficult=difficult))
    return Dataset(tuple(names), tuple(samples))


def weights(folder: Path) -> dict[str, list[bytes]]:
    """Return the stored numbers of each class of a model."""
    classes = StoredModel.read(folder).stored_classes()
    return {one.name: [array.tobytes() for array in one.arrays.values()] for one in classes}


def study(options: argparse.Namespace) -> None:
    """Run the study and print a table."""
    output = Path(options.output)
    train = read_dataset(options.root, options.train, limit=options.images)
    test = read_dataset(options.root, options.test, train.classes, limit=options.tests)
    first, added = list(train.classes[: -options.added]), list(train.classes[-options.added :])
    config = override(settings_for(options.preset), [f"run.cache={options.cache}", f"workers={options.workers}"])
    seconds: dict[str, tuple[float, float]] = {}

    def timed(name: str, function: object, *arguments: object, **settings: object) -> None:
        assert callable(function)
        start = time.perf_counter(), time.process_time()
        function(*arguments, **settings)
        seconds[name] = time.perf_counter() - start[0], time.process_time() - start[1]

    together, grown = output / "together", output / "grown"
    run_training(in_folder(config, together), data=(train, test), last="calibration").stages.save()
    some, some_test = with_classes(train, first), with_classes(test, first)
    run_training(in_folder(config, output / "first"), data=(some, some_test), last="calibration").stages.save()
    current = output / "first"
    for number, name in enumerate(added):
        images = with_classes(train, [name])
        target = grown if number == len(added) - 1 else output / f"plus{number + 1}"
        timed(
            f"{name}, {len(images)} images", sppdet.add_classes, current, images, [name], output=target,
            cache=options.cache, workers=options.workers,
        )  # fmt: skip
        current = target
    before, after = weights(output / "first"), weights(grown)
    same = all(before[name] == after[name] for name in first)
    metrics = {}
    for folder in (together, grown):
        detector = load_detector(folder)
        split = open_split(test, options.cache, detector.search, detector.backbone, detector.features)
        metrics[folder] = evaluate_voc(test, detect_all(detector, [split], options.workers)[1])
    print("| class | learned together | added |\n|---|---|---|")
    values = {folder: result["AP"] for folder, result in metrics.items()}
    for name in train.classes:
        one, two = (values[folder].get(name) for folder in (together, grown))
        mark = " (added)" if name in added else ""
        print(f"| {name}{mark} | {one if one is None else f'{one:.1f}'} | {two if two is None else f'{two:.1f}'} |")
    means = [metrics[folder]["mAP"] for folder in (together, grown)]
    print(f"| mAP of {len(train.classes)} | {means[0]:.1f} | {means[1]:.1f} |")
    print(f"{len(first)} classes unchanged to the last bit: {'yes' if same else 'NO'}")
    for name, (wall, processor) in seconds.items():
        print(f"add {name}: {wall:.1f} s, {processor:.1f} s of processor time")
    print(f"bank: {(together / 'bank.safetensors').stat().st_size / 1e6:.1f} MB")


def main(arguments: list[str] | None = None) -> int:
    """Run the script and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="VOCdevkit")
    parser.add_argument("--train", default="train", help="split to learn from")
    parser.add_argument("--test", default="test", help="split to measure on")
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--tests", type=int, default=200)
    parser.add_argument("--added", type=int, default=5)
    parser.add_argument("--preset", default="sppdet/config/presets/quick.yaml")
    parser.add_argument("--cache", default="cache")
    parser.add_argument("--output", default="runs/study_add")
    parser.add_argument("--workers", type=int, default=0)
    return cli.run(study, parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
