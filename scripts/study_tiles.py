"""Detect in a large drawn image by tiles, or train on it, and print the time and the peak memory of the process.

    python scripts/study_tiles.py --side 20000 --suffix .png
    python scripts/study_tiles.py --side 14000 --train configs/demo.yaml

It needs the extra `large`. The image is the demo's shapes on noise, repeated; its file is deleted at the end. Training
takes ``data.tiles`` of `--tiles`, and measures on the image that is repeated.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from sppdet.data import Dataset, make_shapes, read_dataset
from sppdet.data.voc import write_voc_annotation
from sppdet.ops import boxes as geometry

_SIDE = 1000  # about, of the image that is repeated
_SHOWN = 0.5  # share of an object that the border must leave of it

# Runs a command and prints the peak resident memory of its process, which the parent cannot tell from its own, and of
# the largest of the processes that it starts.
_CHILD = """
import importlib, resource, sys
status = importlib.import_module("sppdet.cli." + sys.argv[1]).main(sys.argv[2:])
usage = [resource.getrusage(which).ru_maxrss // 1024 for which in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
print("peak memory: %d MB, of its largest worker %d MB" % tuple(usage), file=sys.stderr)
sys.exit(status)
"""


def drawn(folder: Path) -> Dataset:
    """Draw the image that is repeated."""
    return read_dataset(make_shapes(folder, train=1, test=1, size=(_SIDE, _SIDE)), "trainval")


def draw(path: Path, side: int, dataset: Dataset) -> tuple[int, int]:
    """Write a square image of ``side`` pixels that repeats a drawn one; return the width and height of that one."""
    import pyvips

    image = pyvips.Image.new_from_file(str(dataset[0].path))
    copies = -(-side // min(image.width, image.height))
    options = {"compression": 1} if path.suffix == ".png" else {}
    image.replicate(copies, copies).crop(0, 0, side, side).write_to_file(str(path), **options)
    return image.width, image.height


def annotate(path: Path, side: int, dataset: Dataset, step: tuple[int, int]) -> None:
    """Write the annotation of a square image that repeats a drawn one every ``step`` pixels, right and down."""
    corners = [(x, y, x, y) for y in range(0, side, step[1]) for x in range(0, side, step[0])]
    boxes = np.concatenate([dataset[0].boxes + np.array(corner, np.float32) for corner in corners])
    shown = geometry.clip(boxes, side, side)
    rows = geometry.areas(shown) > _SHOWN * geometry.areas(boxes)
    names = [dataset.classes[label] for label in np.tile(dataset[0].labels, len(corners))[rows]]
    difficult = np.tile(dataset[0].difficult, len(corners))[rows]
    write_voc_annotation(path.with_suffix(".xml"), path.name, side, side, shown[rows], names, difficult.tolist())


def main() -> int:
    """Draw, detect or train, print."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--side", type=int, default=20_000, help="of the image, in pixels")
    arguments.add_argument("--suffix", default=".png", help="of the image file, such as .png or .tif")
    arguments.add_argument("--tiles", default="2000", help="as for sppdet detect")
    arguments.add_argument("--model", default="voc07")
    arguments.add_argument("--train", metavar="CONFIG", help="train with these settings instead of detecting")
    arguments.add_argument("overrides", nargs="*", metavar="key=value", help="settings to change, for --train")
    options = arguments.parse_intermixed_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder, dataset = Path(temporary), drawn(Path(temporary) / "shapes")
        path = folder / "data" / "train" / f"large{options.suffix}"
        path.parent.mkdir(parents=True)
        step = draw(path, options.side, dataset)
        if options.train:
            annotate(path, options.side, dataset, step)
            test = folder / "data" / "test" / "small.png"
            test.parent.mkdir()
            draw(test, min(step), dataset)
            annotate(test, min(step), dataset, step)
            command = [
                "train", options.train, f"data.root={folder / 'data'}", f"data.tiles={options.tiles}",
                "data.train_split=train", f"run.dir={folder / 'run'}", f"run.cache={folder / 'cache'}",
                *options.overrides,
            ]  # fmt: skip
        else:
            command = ["detect", str(path), "--model", options.model, "--tiles", options.tiles, "--output", temporary]
            command.append("--json")
        began = time.monotonic()
        out = None if options.train else subprocess.DEVNULL
        child = subprocess.run([sys.executable, "-c", _CHILD, *command], stdout=out, check=False)
        print(f"{options.side} x {options.side} pixels, {options.suffix}: {time.monotonic() - began:.0f} s")
    return child.returncode


if __name__ == "__main__":
    sys.exit(main())
