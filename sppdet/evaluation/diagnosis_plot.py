"""The image of a diagnosis (:mod:`sppdet.evaluation.diagnosis`): what each kind of error costs, and its share class by class."""

from __future__ import annotations

from collections.abc import Iterable

from PIL import Image, ImageDraw, ImageFont

from sppdet.evaluation.diagnosis import KINDS

_COLOURS = {
    "correct": "#4c9a52",
    "localisation": "#2f6db3",
    "duplicate": "#8fbbe0",
    "similar": "#e8862e",
    "other": "#c8452f",
    "background": "#8a8f98",
    "found": "#4c9a52",
    "outranked": "#e3c04b",
    "undetected": "#a05195",
    "unproposed": "#33363b",
}
_ROW, _BAR = 26, 18  # pixels from one class to the next, and of its bar
_NAMES, _WIDTH, _GAP = 130, 420, 40  # of a panel: its names and its bars; between panels
_TOP = 100


def draw_diagnosis(result: dict) -> Image.Image:
    """A Pillow image of what :func:`sppdet.evaluation.diagnosis.diagnose` returns: three panels, a row each class."""
    classes = {name: own for name, own in result["classes"].items() if sum(own["objects"].values())}
    height = _TOP + _ROW * max(len(classes), len(result["errors"])) + 25
    image = Image.new("RGB", (_GAP + 3 * (_NAMES + _WIDTH + _GAP), height), "white")
    pen = ImageDraw.Draw(image)
    pen.font = ImageFont.load_default(size=14)
    panels = (_GAP + i * (_NAMES + _WIDTH + _GAP) for i in range(3))
    _gains(pen, next(panels), result)
    _shares(pen, next(panels), "The surest detections, as many as objects", classes, "detections")
    _shares(pen, next(panels), "The objects", classes, "objects")
    return image


def _gains(pen: ImageDraw.ImageDraw, left: int, result: dict) -> None:
    now = result["mAP"]
    title = "mAP without one kind of error" + ("" if now is None else f" (now {now:.1f})")
    pen.text((left, 15), title, "black", font=ImageFont.load_default(size=17))
    if now is None:
        return
    gains = {error: row["mAP"] - now for error, row in result["errors"].items()}
    unit = (_WIDTH - 180) / max(*gains.values(), 1)
    for i, (error, gain) in enumerate(gains.items()):
        middle = _name(pen, left, i, error)
        x = left + _NAMES
        pen.rectangle((x, middle - _BAR // 2, x + gain * unit, middle + _BAR // 2), _COLOURS[error])
        share = result["errors"][error]["share"]
        pen.text((x + gain * unit + 6, middle), f"{gain:+.1f}", "black", anchor="lm")
        of = "detections" if error in KINDS else "objects"
        pen.text((x + _WIDTH, middle), f"{100 * share:.0f}% of {of}", "#8a8f98", anchor="rm")


def _shares(pen: ImageDraw.ImageDraw, left: int, title: str, classes: dict[str, dict], key: str) -> None:
    """Bars of the same length, cut by what ``key`` counts."""
    pen.text((left, 15), title, "black", font=ImageFont.load_default(size=17))
    if not classes:
        return
    _legend(pen, left, next(iter(classes.values()))[key])
    for i, (name, own) in enumerate(classes.items()):
        middle = _name(pen, left, i, f"{name} {sum(own['objects'].values())}")
        total, x = sum(own[key].values()), float(left + _NAMES)
        for outcome, count in own[key].items():
            if count:
                end = x + _WIDTH * count / total
                pen.rectangle((x, middle - _BAR // 2, end, middle + _BAR // 2), _COLOURS[outcome])
                x = end


def _name(pen: ImageDraw.ImageDraw, left: int, row: int, text: str) -> int:
    """Write a row's name; the height of the row's middle."""
    middle = _TOP + row * _ROW + _ROW // 2
    while text and pen.textlength(text) > _NAMES - 10:
        text = text[:-1]
    pen.text((left + _NAMES - 8, middle), text, "black", anchor="rm")
    return middle


def _legend(pen: ImageDraw.ImageDraw, left: int, names: Iterable[str]) -> None:
    x, y = left, 50
    for name in names:
        width = pen.textlength(name) + 32
        if x + width > left + _NAMES + _WIDTH:
            x, y = left, y + 24
        pen.rectangle((x, y, x + 13, y + 13), _COLOURS[name])
        pen.text((x + 19, y + 7), name, "black", anchor="lm")
        x += width
