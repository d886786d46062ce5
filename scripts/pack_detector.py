"""Write a run's detector in few bytes, as the one that is part of the package.

    python scripts/pack_detector.py RUN --calibrate VOCDEVKIT --split val --limit 600

The probabilities are learned from images that the run was not trained on. The model is read back, and its size and the
largest change of a weight of the SVMs are printed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from sppdet.data import read_dataset
from sppdet.detection import MODEL_FILES, load_detector, save_detector, shipped_model
from sppdet.training import calibrate_detector


def main() -> None:
    """Pack the detector of a run."""
    parser = argparse.ArgumentParser(description="Write a run's detector in few bytes.")
    parser.add_argument("run", type=Path)
    parser.add_argument("folder", type=Path, nargs="?", default=shipped_model())
    parser.add_argument("--calibrate", metavar="DATA", help="folder of images that the run was not trained on")
    parser.add_argument("--split", default="val", help="of that folder; default: %(default)s")
    parser.add_argument("--limit", type=int, help="number of these images")
    options = parser.parse_args()
    detector = load_detector(options.run, "cpu")
    if options.calibrate:
        images = read_dataset(options.calibrate, options.split, detector.classes, options.limit)
        detector = calibrate_detector(detector, images)
    options.folder.mkdir(parents=True, exist_ok=True)
    save_detector(detector, options.folder, compact=True)
    packed = load_detector(options.folder, "cpu")
    size = sum((options.folder / file).stat().st_size for file in MODEL_FILES)
    change = np.abs(packed.classifier.weight - detector.classifier.weight).max()
    print(f"{options.folder}: {size / 1e6:.2f} MB; weights of SVMs moved by {change:.1e} at most")


if __name__ == "__main__":
    main()
