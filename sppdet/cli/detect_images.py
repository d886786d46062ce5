"""What ``sppdet detect`` does with an image: its entry in the JSON document, and its drawing."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sppdet.cli.drawings import write_drawing
from sppdet.utils import SppdetError

if TYPE_CHECKING:  # imported late: --help does not wait for torch
    import numpy as np

    from sppdet.detection import Detections, Detector, Ensemble


def detect_in_image(detector: Detector | Ensemble, options: argparse.Namespace, item: tuple[str, Path | None]) -> dict:
    """Return the entry of one image in the JSON document, and draw the detections if ``item`` has a path for that.

    ``nearest`` is the best detection below the threshold, if none reaches it.
    """
    import numpy as np

    from sppdet.data import PixelsInMemory, open_pixels, read_image

    path, target = item
    try:
        in_parts = detector.tile_side(options.tiles) != 0
        pixels = open_pixels(path) if in_parts else PixelsInMemory(read_image(path))
        size = pixels.width, pixels.height
        if detector.plan_tiles(size, options.tiles):
            every = detector.predict_pixels(pixels, options.threshold, options.margin, options.tiles)
        else:
            # Detections below the threshold, too: the nearest may have to be named.
            lowest = float(detector.lowest_margins(options.threshold, options.margin).min())
            every = detector.predict(
                pixels.read((0, 0, *size)), margin=min(lowest, detector.detection.min_margin), tiles=0
            )
    except SppdetError as error:
        text = str(error)
        return {"path": path, "error": text if text.startswith(path) else f"{path}: {text}"}
    shown = _to_show(detector, options, every)
    if options.form == "transformers":
        detections = shown.to_transformers()
    else:
        detections = shown.to_list() if options.form is None else shown.to_megadetector(size)
    entry = {"path": path, "width": size[0], "height": size[1], "detections": detections}
    if not len(shown) and len(every):
        entry["nearest"] = every[:1].to_list()[0]
    if target is not None:
        try:
            image, factor = pixels.overview()
            drawn = replace(shown, xyxy=shown.xyxy * np.float32(factor))
            write_drawing(target, drawn.draw(image, labels=not options.no_labels))
        except SppdetError as error:
            entry["error"] = f"{path}: {error}"  # the detections stay
    return entry


def shown_in_frame(detector: Detector | Ensemble, options: argparse.Namespace, image: np.ndarray) -> Detections:
    """Return the detections of a frame of a video that are shown."""
    return _to_show(detector, options, detector.predict(image, options.threshold, False, options.margin, options.tiles))


def _to_show(detector: Detector | Ensemble, options: argparse.Namespace, every: Detections) -> Detections:
    """Return those of an image's detections that the options let through."""
    shown = detector.select(every, options.threshold, options.margin)
    if not (options.all_classes or options.json):  # a program that reads JSON gets what `predict` returns
        shown = shown.one_per_place()
    return shown[: options.max_detections]
