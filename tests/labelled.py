"""Small folders of labelled images, as annotation tools leave them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from sppdet.data.labelled_folder import LabelledFolder


def write_image(path: Path, size: tuple[int, int] = (40, 30), seed: int = 0, **options) -> Path:
    """Write an image of noise; images of different seeds differ."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


def write(path: Path, content: str | dict | list) -> Path:
    """Write text, or a value as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def voc_xml(*objects: tuple, filename: str = "a.jpg", size: tuple[int, int] | None = (40, 30)) -> str:
    """Return an annotation as labelImg writes it; an object is ``(name, xmin, ymin, xmax, ymax)``."""
    texts = [
        f"<object><name>{name}</name><pose>Unspecified</pose><truncated>0</truncated><difficult>0</difficult><bndbox>"
        f"<xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
        for name, x1, y1, x2, y2 in objects
    ]
    sides = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>" if size else ""
    return (
        f"<annotation><folder>x</folder><filename>{filename}</filename><path>C:\\Users\\me\\x\\{filename}</path>"
        f"{sides}<segmented>0</segmented>{''.join(texts)}</annotation>"
    )


def objects_of(folder: LabelledFolder) -> dict[str, list[tuple]]:
    """Return, by the id of an image, name and box of each object, corners rounded to hundredths."""
    return {
        image.id: [(name, *np.round(box.astype(float), 2).tolist()) for name, box in zip(image.names, image.boxes)]
        for image in folder.images
    }


def kinds_of(folder: LabelledFolder) -> list[str]:
    """Return the kinds of a folder's problems, sorted, without notes on classes with few objects."""
    return sorted(problem.kind for problem in folder.problems if problem.kind != "few objects")
