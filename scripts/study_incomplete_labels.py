"""Remove labels at random, and train without and with data.incomplete_labels.

    python scripts/study_incomplete_labels.py --root BCCD --train train --test val 'regions.scales=[864]'

The labels of the images that are measured on stay.
"""

from __future__ import annotations

import argparse
import random
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from sppdet.cli import common as cli
from sppdet.config import in_folder, override, settings_for
from sppdet.data import Dataset, read_dataset
from sppdet.training import run_training
from sppdet.utils import read_json


def without_labels(dataset: Dataset, share: float, seed: int = 0) -> Dataset:
    """Return the images with each label removed with a probability of ``share``, drawn in the order of their ids."""
    draws = random.Random(seed)
    changed = {}
    for sample in sorted(dataset, key=lambda sample: sample.id):
        kept = np.array([draws.random() >= share for _ in sample.labels], bool)
        labels = {"boxes": sample.boxes[kept], "labels": sample.labels[kept], "difficult": sample.difficult[kept]}
        changed[sample.id] = replace(sample, **labels)
    return replace(dataset, samples=tuple(changed[sample.id] for sample in dataset))


def study(options: argparse.Namespace) -> None:
    """Run the study and print a table."""
    train = read_dataset(options.root, options.train)
    test = read_dataset(options.root, options.test, train.classes)
    config = override(settings_for(options.preset), [f"run.cache={options.cache}", *options.overrides])
    print("| labels removed | setting | mAP | COCO AP | AP50 | error of probabilities |\n|---|---|---|---|---|---|")
    for share in options.shares:
        for mode in (False, True):
            folder = Path(options.output) / f"{share:g}{'_incomplete' * mode}"
            settings = override(in_folder(config, folder), [f"data.incomplete_labels={str(mode).lower()}"])
            run_training(settings, data=(without_labels(train, share), test))
            metrics = read_json(folder / "metrics.json")
            figures = [metrics["mAP"], metrics["coco"]["AP"], metrics["coco"]["AP50"]]
            columns = [f"{figure:.1f}" for figure in figures] + [f"{metrics['calibration']['error']:.3f}"]
            print(f"| {share:.0%} | {'true' if mode else 'false'} | {' | '.join(columns)} |", flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Run the script and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="BCCD")
    parser.add_argument("--train", default="train", help="split to learn from")
    parser.add_argument("--test", default="test", help="split to measure on")
    parser.add_argument("--shares", type=float, nargs="+", default=[0, 0.3, 0.5], help="of the labels, to be removed")
    parser.add_argument("--preset", default="sppdet/config/presets/quick.yaml")
    parser.add_argument("--cache", default="cache")
    parser.add_argument("--output", default="runs/study_incomplete_labels")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="other settings")
    return cli.run(study, parser.parse_intermixed_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
