"""Detections drawn into an image: a frame for each box, and at its edge a label with class and score."""

from __future__ import annotations

import colorsys
import logging
import os
import unicodedata
from functools import cache
from typing import cast

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sppdet.detection.detections import Detections
from sppdet.ops import boxes as geometry

logger = logging.getLogger(__name__)

# Degrees of the colour circle: red, blue, yellow, magenta, green, orange, cyan, violet. Eight classes have eight hues.
_HUES = (0, 215, 54, 310, 130, 28, 180, 268)
_TONES = ((0.85, 1.0), (1.0, 0.6), (0.4, 1.0))  # saturation and value; the next eight classes have the next tone
_GOLDEN_RATIO = 0.6180339887  # of the colour circle, by which hues turn after these 24 classes
_DEFAULT = ""  # stands for the font that Pillow brings, which draws Latin letters
_MOST_FONTS = 300  # fonts of the machine that are tried
_Box = tuple[int, int, int, int]  # x1, y1, x2, y2: pixel edges
_Colour = tuple[int, int, int]  # red, green, blue: 0..255
_Font = ImageFont.FreeTypeFont


def draw_detections(image: np.ndarray, detections: Detections, labels: bool = True) -> np.ndarray:
    """Draw detections into a copy of their image, the best on top.

    Frames lie inside their boxes. Each has a label such as ``dog 0.71``: the class and the probability, or the SVM
    margin where the detections have no probabilities. Lines and letters grow with the image; a class has the same
    colour in all images.

    Args:
        image: RGB uint8 ``(H, W, 3)``.
        detections: those of the image, best first.
        labels: whether class and score are written; colours alone tell the classes apart otherwise.

    Returns:
        The copy, RGB uint8 ``(H, W, 3)``.

    Examples:
        >>> image = np.zeros((60, 80, 3), np.uint8)
        >>> drawn = draw_detections(image, Detections([[10, 30, 50, 50]], [0], [0.75], ("cat",)))
        >>> drawn[49, 10].tolist(), image.max().item()  # a pixel of the frame; the image itself is still black
        ([255, 38, 38], 0)
    """
    height, width = image.shape[:2]
    size = float(np.sqrt(width * height))
    canvas = Image.fromarray(image)
    pen = ImageDraw.Draw(canvas)
    letters = _letter_size(detections, size)
    names = [_drawable(name) for name in detections.names]
    fonts = [_font_of(name, letters) for name in names]
    boxes = np.rint(geometry.clip(detections.xyxy, width, height)).astype(int).tolist()
    colours = [class_colour(label) for label in detections.labels.tolist()]
    scores = (detections.scores if detections.probabilities is None else detections.probabilities).tolist()
    texts = [_label_text(name, score, font, width) for name, score, font in zip(names, scores, fonts)]
    label_boxes: list[_Box] = []
    for box, text, font in zip(boxes, texts, fonts):  # the label of the best detection comes first and chooses freely
        label_boxes.append(_label_box(box, _text_size(text, font), (width, height), label_boxes, boxes))
    # All frames are drawn before all labels, so that no line crosses a text.
    for box, colour in reversed(list(zip(boxes, colours))):
        _draw_frame(pen, box, colour, max(1, round(size / 200)))
    drawn = reversed(list(zip(label_boxes, texts, fonts, colours))) if labels else ()
    for (x1, y1, x2, y2), text, font, colour in drawn:
        pen.rectangle((x1, y1, x2 - 1, y2 - 1), fill=colour)
        pen.text((x1 + _label_margin(font), y1), text, fill=text_colour(colour), font=font)
    return np.array(canvas)


def class_colour(label: int) -> tuple[int, int, int]:
    """Return the RGB colour, 0..255, of class ``label``.

    Examples:
        >>> class_colour(0)
        (255, 38, 38)
    """
    turn, position = divmod(label, len(_HUES))
    saturation, value = _TONES[turn % len(_TONES)]
    hue = _HUES[position] / 360 + turn // len(_TONES) * _GOLDEN_RATIO
    red, green, blue = colorsys.hsv_to_rgb(hue % 1, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def text_colour(background: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return black or white, whichever has the higher contrast to ``background``: at least 4.5 for any colour.

    Contrast and luminance L are those of WCAG 2 (W3C): 1.05 / (L + 0.05) for white, (L + 0.05) / 0.05 for black.

    Examples:
        >>> text_colour((255, 255, 0)), text_colour((0, 0, 255))
        ((0, 0, 0), (255, 255, 255))
    """
    channels = np.asarray(background) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    luminance = linear @ (0.2126, 0.7152, 0.0722)
    return (0, 0, 0) if (luminance + 0.05) ** 2 > 1.05 * 0.05 else (255, 255, 255)


def _letter_size(detections: Detections, size: float) -> int:
    """Return the size of letters in an image of ``size`` squared pixels; small objects get small letters."""
    widths, heights = (detections.xyxy[:, 2:] - detections.xyxy[:, :2]).T
    objects = float(np.median(np.minimum(widths, heights))) if len(detections) else size
    return max(11, round(min(0.03 * size, 0.3 * objects)))


def _drawable(name: str) -> str:
    """Return a name as one line that a font of this machine can draw; in ASCII, said once, where none can."""
    # A font cannot draw a lone surrogate, which JSON can hold.
    name = " ".join(name.encode("utf-8", "replace").decode().split())
    if _font_file(name) is not None:
        return name
    return _in_ascii(name)


@cache
def _in_ascii(name: str) -> str:
    """Return a name without accents, with the codes of other letters, and log that no font draws it."""
    letters = unicodedata.normalize("NFKD", name)
    text = "".join(c for c in letters if not unicodedata.combining(c)).encode("ascii", "backslashreplace").decode()
    logger.warning("no font of this machine draws '%s': labels show %s; install a font, such as Noto Sans", name, text)
    return text


def _font_of(text: str, size: int) -> _Font:
    """Return a font of ``size`` pixels that draws ``text``."""
    return _load(_font_file(text) or _DEFAULT, size)


@cache
def _font_file(text: str) -> str | None:
    """Return the first font that draws every letter of ``text``; None if there is none."""
    return next((file for file in (_DEFAULT, *_font_files()) if _draws(file, text)), None)


@cache
def _load(file: str, size: int) -> _Font:
    """Load a font of this machine, or Pillow's for the name ``""``."""
    return ImageFont.truetype(file, size) if file else cast(_Font, ImageFont.load_default(size))


@cache
def _draws(file: str, text: str) -> bool:
    """Whether a font has a glyph of its own for every letter of ``text``."""
    try:
        font = _load(file, 16)
        missing = bytes(font.getmask("\uffff"))  # the empty box, as no font has this code
        return all(bytes(font.getmask(letter)) != missing for letter in set(text) if not letter.isspace())
    except (OSError, ValueError):
        return False


@cache
def _font_files() -> tuple[str, ...]:
    """Return the fonts of this machine for labels: upright and regular, fonts of many scripts first."""
    folders = ["/usr/share/fonts", "/usr/local/share/fonts", "/System/Library/Fonts", "/Library/Fonts"]
    folders += [os.path.join(os.environ.get("WINDIR", r"C:\Windows"), "Fonts")]
    folders += [os.path.expanduser(folder) for folder in ("~/.fonts", "~/.local/share/fonts", "~/Library/Fonts")]
    files = [
        os.path.join(parent, name)
        for folder in folders
        for parent, _, names in os.walk(folder)
        for name in names
        if name.lower().endswith((".ttf", ".otf", ".ttc"))
        and not any(word in name.lower() for word in ("bold", "italic", "oblique", "black", "thin", "mono", "light"))
    ]
    many_scripts = ("dejavusans.", "notosans", "arial", "unifont", "wqy", "droidsans")

    def rank(file: str) -> tuple[bool, str]:
        return not os.path.basename(file).lower().startswith(many_scripts), file

    return tuple(sorted(files, key=rank)[:_MOST_FONTS])


def _draw_frame(pen: ImageDraw.ImageDraw, box: _Box, colour: _Colour, line: int) -> None:
    """Draw the frame of a box with lines of ``line`` pixels, or fewer if the box is smaller."""
    x1, y1, x2, y2 = box
    # Pillow's corners are inclusive pixels, and a line thicker than its box would leave it.
    line = max(1, min(line, (x2 - x1) // 2, (y2 - y1) // 2))
    pen.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=colour, width=line)


def _label_text(name: str, score: float, font: _Font, width: int) -> str:
    """Return one line of name and score; the name is shortened until the line fits into ``width`` pixels."""
    text = f"{name} {score:.2f}"
    while name and _text_size(text, font)[0] > width:
        name = name[:-1]
        text = f"{name}… {score:.2f}"
    return text


def _text_size(text: str, font: _Font) -> tuple[int, int]:
    """Return width and height in pixels of the background of a label."""
    return int(np.ceil(font.getlength(text))) + 2 * _label_margin(font), sum(font.getmetrics())


def _label_margin(font: _Font) -> int:
    """Return the pixels to the left and to the right of a label's text."""
    return max(2, round(font.size / 5))


def _label_box(
    box: _Box, text_size: tuple[int, int], image_size: tuple[int, int], taken: list[_Box], objects: list[_Box]
) -> _Box:
    """Choose where a label lies: above or below its box, or in it at the upper or the lower edge, inside the image.

    Of the positions that overlap no label in ``taken``, or of all if there is none, the one that overlaps the fewest
    of all boxes in ``objects``; of equals, the first. Sizes are ``(width, height)``.
    """
    (x1, y1, _, y2), (width, height) = box, text_size
    left = max(0, min(x1, image_size[0] - width))
    tops = [top for top in (y1 - height, y2, y1, y2 - height) if 0 <= top <= image_size[1] - height]
    tops = tops or [max(0, min(y1 - height, image_size[1] - height))]
    positions = [(left, top, left + width, top + height) for top in tops]
    free = [position for position in positions if not any(_overlap(position, other) for other in taken)]
    return min(free or positions[:1], key=lambda position: sum(_overlap(position, other) for other in objects))


def _overlap(a: _Box, b: _Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
