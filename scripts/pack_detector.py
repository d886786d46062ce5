"""Write a run's detector in few bytes, as the one that is part of the package.

    python scripts/pack_detector.py RUN --bank 28 --measure VOCDEVKIT

The probabilities are those of the run, or with ``--calibrate`` learned from images that it was not trained on. The
model is read back, and its size and the largest change of a weight of the SVMs are printed.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from sppdet.cli import common as cli
from sppdet.config import SvmSettings, load, override
from sppdet.data import Dataset, read_dataset
from sppdet.detection import Detector, load_detector, save_detector, shipped_model
from sppdet.evaluation import evaluate_detections, measure_reliability
from sppdet.training import BANK_FILE, Bank, Pipeline, calibrate_detector
from sppdet.utils import atomic_write


def write_bank(run: Path, folder: Path, size: int) -> None:
    """Write a small bank of the run's vectors beside the model; its images and feature maps must still be there.

    Classes that are added bring vectors of their own, up to the usual number.
    """
    pipeline = Pipeline(override(load(run / "config.json"), [f"run.dir={run}", f"svm.bank={size}"]))
    pipeline.prepare()
    pipeline.stages.keep_bank()
    bank = Bank.load(run)
    atomic_write(folder / BANK_FILE, replace(bank, limit=SvmSettings().bank).save)


def measure(detector: Detector, images: Dataset) -> None:
    """Print mAP and the expected calibration error on some images."""
    lowest = detector.detection.min_margin
    detections = [detector.predict(sample.read(), margin=lowest) for sample in images]
    reliability = measure_reliability(images, detections)
    figures = evaluate_detections(images, detections)
    print(f"mAP {figures['mAP']:.1f}, AP {figures['coco']['AP']:.1f}, AP75 {figures['coco']['AP75']:.1f}")
    print(f"expected calibration error {reliability['error']:.3f}" if reliability else "no probabilities")


def pack(options: argparse.Namespace) -> None:
    """Pack the detector of a run."""
    detector = load_detector(options.run, "cpu")
    if options.calibrate:
        images = read_dataset(options.calibrate, options.split, detector.classes, options.limit)
        detector = calibrate_detector(detector, images)
    options.folder.mkdir(parents=True, exist_ok=True)
    save_detector(detector, options.folder, compact=True)
    if options.bank:
        write_bank(options.run, options.folder, options.bank)
    packed = load_detector(options.folder, "cpu")
    if options.measure:
        measure(packed, read_dataset(options.measure, "test", packed.classes))
    size = sum(file.stat().st_size for file in options.folder.iterdir())
    change = np.abs(packed.classifier.weight - detector.classifier.weight).max()
    print(f"{options.folder}: {size / 1e6:.2f} MB; weights of SVMs moved by {change:.1e} at most")


def main(arguments: list[str] | None = None) -> int:
    """Run the script and return its exit status."""
    parser = argparse.ArgumentParser(description="Write a run's detector in few bytes.")
    parser.add_argument("run", type=Path)
    parser.add_argument("folder", type=Path, nargs="?", default=shipped_model())
    parser.add_argument("--calibrate", metavar="DATA", help="folder of images that the run was not trained on")
    parser.add_argument("--split", default="val", help="of that folder; default: %(default)s")
    parser.add_argument("--limit", type=int, help="number of these images")
    parser.add_argument("--measure", metavar="DATA", help="measure the packed model on the split test of this folder")
    parser.add_argument("--bank", type=int, metavar="N", help="vectors of a bank, from which classes are added")
    return cli.run(pack, parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
