"""Detect in a large drawn image by tiles, and print the time and the peak memory of the process.

    python scripts/study_tiles.py --side 20000 --suffix .png

It needs the extra `large`. The image is the demo's shapes on noise, repeated; its file is deleted at the end.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from sppdet.data import make_shapes, read_dataset

# Runs the command and prints the peak resident memory of its process, which the parent cannot tell from its own.
_CHILD = """
import resource, sys
from sppdet.cli.detect import main
status = main(sys.argv[1:])
print("peak memory:", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, "MB", file=sys.stderr)
sys.exit(status)
"""


def draw(path: Path, side: int, folder: Path) -> None:
    """Write a square image of ``side`` pixels that repeats a drawn image of 1000 x 1000 pixels."""
    import pyvips

    dataset = read_dataset(make_shapes(folder, train=1, test=1, size=(1000, 1000)), "trainval")
    image = pyvips.Image.new_from_file(str(dataset[0].path))
    copies = -(-side // min(image.width, image.height))
    image.replicate(copies, copies).crop(0, 0, side, side).write_to_file(str(path))


def main() -> int:
    """Draw, detect, print."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--side", type=int, default=20_000, help="of the image, in pixels")
    arguments.add_argument("--suffix", default=".png", help="of the image file, such as .png or .tif")
    arguments.add_argument("--tiles", default="2000", help="as for sppdet detect")
    arguments.add_argument("--model", default="voc07")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / f"large{options.suffix}"
        draw(path, options.side, Path(temporary) / "shapes")
        command = [str(path), "--model", options.model, "--tiles", options.tiles, "--output", temporary, "--json"]
        began = time.monotonic()
        child = subprocess.run([sys.executable, "-c", _CHILD, *command], stdout=subprocess.DEVNULL, check=False)
        print(f"{options.side} x {options.side} pixels, {options.suffix}: {time.monotonic() - began:.0f} s")
    return child.returncode


if __name__ == "__main__":
    sys.exit(main())
