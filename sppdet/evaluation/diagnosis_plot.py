"""Plot of a diagnosis (`sppdet.evaluation.diagnosis`): cost and share of each kind of error."""

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
# All in pixels.
_ROW, _BAR = 26, 18  # from one row to the next, and the height of the row's bar
_NAMES, _WIDTH, _GAP = 130, 420, 40  # width of a panel's names and of its bars, and the gap between panels
_TOP = 100


def draw_diagnosis(result: dict) -> Image.Image:
    """Draw a diagnosis as three panels.

    Args:
        result: as `sppdet.evaluation.diagnosis.diagnose` returns it.

    Returns:
        The gain in mAP without each error; the detections with the highest scores by outcome, a bar per class; the
        objects by state, a bar per class. Classes without objects are left out.
    """
    classes = {name: figures for name, figures in result["classes"].items() if sum(figures["objects"].values())}
    height = _TOP + _ROW * max(len(classes), len(result["errors"])) + 25
    image = Image.new("RGB", (_GAP + 3 * (_NAMES + _WIDTH + _GAP), height), "white")
    pen = ImageDraw.Draw(image)
    pen.font = ImageFont.load_default(size=14)
    gains, detections, objects = (_GAP + i * (_NAMES + _WIDTH + _GAP) for i in range(3))
    _draw_gains(pen, gains, result)
    _draw_shares(pen, detections, "Detections of the highest scores, as many as objects", classes, "detections")
    _draw_shares(pen, objects, "The objects", classes, "objects")
    return image


def _draw_gains(pen: ImageDraw.ImageDraw, left: int, result: dict) -> None:
    """Draw a bar for the gain in mAP without each error, in the panel that begins at ``left``."""
    now = result["mAP"]
    title = "mAP without one kind of error" + ("" if now is None else f" (now {now:.1f})")
    pen.text((left, 15), title, "black", font=ImageFont.load_default(size=17))
    if now is None:
        return
    gains = {error: row["mAP"] - now for error, row in result["errors"].items()}
    unit = (_WIDTH - 180) / max(*gains.values(), 1)
    for i, (error, gain) in enumerate(gains.items()):
        middle = _draw_name(pen, left, i, error)
        x = left + _NAMES
        pen.rectangle((x, middle - _BAR // 2, x + gain * unit, middle + _BAR // 2), _COLOURS[error])
        share = result["errors"][error]["share"]
        pen.text((x + gain * unit + 6, middle), f"{gain:+.1f}", "black", anchor="lm")
        group = "detections" if error in KINDS else "objects"
        pen.text((x + _WIDTH, middle), f"{100 * share:.0f}% of {group}", "#8a8f98", anchor="rm")


def _draw_shares(pen: ImageDraw.ImageDraw, left: int, title: str, classes: dict[str, dict], key: str) -> None:
    """Draw a bar per class, all of the same length, divided by the counts under ``key``."""
    pen.text((left, 15), title, "black", font=ImageFont.load_default(size=17))
    if not classes:
        return
    _draw_legend(pen, left, next(iter(classes.values()))[key])
    for i, (name, figures) in enumerate(classes.items()):
        middle = _draw_name(pen, left, i, f"{name} {sum(figures['objects'].values())}")
        total, x = sum(figures[key].values()), float(left + _NAMES)
        for outcome, count in figures[key].items():
            if count:
                end = x + _WIDTH * count / total
                pen.rectangle((x, middle - _BAR // 2, end, middle + _BAR // 2), _COLOURS[outcome])
                x = end


def _draw_name(pen: ImageDraw.ImageDraw, left: int, row: int, text: str) -> int:
    """Write the name of a row, cut to the room there is, and return the y coordinate of the row's middle."""
    middle = _TOP + row * _ROW + _ROW // 2
    while text and pen.textlength(text) > _NAMES - 10:
        text = text[:-1]
    pen.text((left + _NAMES - 8, middle), text, "black", anchor="rm")
    return middle


def _draw_legend(pen: ImageDraw.ImageDraw, left: int, names: Iterable[str]) -> None:
    """Draw the colour of each outcome with its name, in as many lines as needed."""
    x, y = float(left), 50
    for name in names:
        width = pen.textlength(name) + 32
        if x + width > left + _NAMES + _WIDTH:
            x, y = float(left), y + 24
        pen.rectangle((x, y, x + 13, y + 13), _COLOURS[name])
        pen.text((x + 19, y + 7), name, "black", anchor="lm")
        x += width
