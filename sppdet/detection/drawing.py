"""Detections drawn into an image: a frame a box, and on its edge the class and the margin."""

from __future__ import annotations

import colorsys

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sppdet.detection.detections import Detections
from sppdet.ops import boxes as geometry

_GOLDEN_RATIO = 0.6180339887  # of the colour circle: steps by which each new hue falls into the largest gap left
_TONES = ((0.85, 1.0), (1.0, 0.65), (0.45, 0.95))  # saturation and value, in turn, where hues grow alike
_Box = tuple[int, int, int, int]


def draw_detections(image: np.ndarray, detections: Detections) -> np.ndarray:
    """A copy of an image ``(H, W, 3)`` uint8 RGB with its detections, the best on top.

    Frames lie inside their boxes. Each has a label such as ``dog 0.71``: the class and the SVM margin, which
    is not a probability. Lines and letters grow with the image; a class always has the same colour.
    """
    height, width = image.shape[:2]
    size = float(np.sqrt(width * height))
    canvas = Image.fromarray(image)
    pen = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=max(11, round(size * 0.03)))
    boxes = np.rint(geometry.clip(detections.boxes, width, height)).astype(int).tolist()
    labels, colours = detections.labels.tolist(), [colour(label) for label in detections.labels.tolist()]
    texts = [
        _label_text(detections.classes[label] if detections.classes else str(label), score, font, width)
        for label, score in zip(labels, detections.scores.tolist())
    ]
    places: list[_Box] = []
    for box, text in zip(boxes, texts):  # the best label chooses its place first
        places.append(_label_place(box, _text_size(text, font), (width, height), places))
    # All frames before all labels: no line goes through a text.
    for box, ink in reversed(list(zip(boxes, colours))):
        _draw_frame(pen, box, ink, max(1, round(size / 200)))
    for place, text, ink in reversed(list(zip(places, texts, colours))):
        x1, y1, x2, y2 = place
        pen.rectangle((x1, y1, x2 - 1, y2 - 1), fill=ink)
        pen.text((x1 + _margin(font), y1), text, fill=text_colour(ink), font=font)
    return np.array(canvas)


def colour(label: int) -> tuple[int, int, int]:
    """The RGB colour, 0..255, of class ``label``."""
    saturation, value = _TONES[label % len(_TONES)]
    return tuple(round(255 * part) for part in colorsys.hsv_to_rgb(label * _GOLDEN_RATIO % 1, saturation, value))


def text_colour(background: tuple[int, int, int]) -> tuple[int, int, int]:
    """Black or white, whichever stands out more on ``background``: a contrast of at least 4.5 on any colour.

    Luminance as in WCAG 2 (W3C), where white's contrast is 1.05 / (L + 0.05) and black's (L + 0.05) / 0.05.
    """
    parts = np.asarray(background) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    luminance = linear @ (0.2126, 0.7152, 0.0722)
    return (0, 0, 0) if (luminance + 0.05) ** 2 > 1.05 * 0.05 else (255, 255, 255)


def _draw_frame(pen: ImageDraw.ImageDraw, box: _Box, ink: tuple[int, int, int], line: int) -> None:
    x1, y1, x2, y2 = box
    # Pillow's corners are inclusive pixels, and a line thicker than its box would leave it.
    line = max(1, min(line, (x2 - x1) // 2, (y2 - y1) // 2))
    pen.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=ink, width=line)


def _label_text(name: str, score: float, font, width: int) -> str:
    """One line, its name shortened until it fits into ``width`` pixels."""
    # A lone surrogate, which JSON can hold, is no text to a font.
    name = " ".join(name.encode("utf-8", "replace").decode().split())
    text = f"{name} {score:.2f}"
    while name and _text_size(text, font)[0] > width:
        name = name[:-1]
        text = f"{name}… {score:.2f}"
    return text


def _text_size(text: str, font) -> tuple[int, int]:
    """Width and height of a label's background."""
    return int(np.ceil(font.getlength(text))) + 2 * _margin(font), sum(font.getmetrics())


def _margin(font) -> int:
    return max(2, round(font.size / 5))


def _label_place(box: _Box, text: tuple[int, int], image: tuple[int, int], taken: list[_Box]) -> _Box:
    """Where a label of ``(width, height)`` lies: at the box's upper or lower edge, inside the image.

    The first such place that no other label has; where all are taken, above the box if the image allows.
    """
    (x1, y1, _, y2), (width, height) = box, text
    left = max(0, min(x1, image[0] - width))
    tops = [top for top in (y1 - height, y1, y2, y2 - height) if 0 <= top <= image[1] - height]
    tops = tops or [max(0, min(y1 - height, image[1] - height))]
    places = [(left, top, left + width, top + height) for top in tops]
    return next((place for place in places if not any(_overlap(place, other) for other in taken)), places[0])


def _overlap(a: _Box, b: _Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
