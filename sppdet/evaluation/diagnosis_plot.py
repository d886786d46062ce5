"""Plot of a diagnosis (`sppdet.evaluation.diagnosis`): cost and share of each kind of error."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sppdet.evaluation.diagnosis import KINDS

if TYPE_CHECKING:  # imported late: it takes a third of a second to import
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Neighbours in a bar differ in lightness as well as in hue.
_COLOURS = {
    "correct": "#4c9a52",
    "localisation": "#2f6db3",
    "duplicate": "#8fbbe0",
    "similar": "#e8862e",
    "misclassified": "#c8452f",
    "both": "#f0b9a0",
    "background": "#8a8f98",
    "found": "#4c9a52",
    "outranked": "#e3c04b",
    "undetected": "#a05195",
    "unproposed": "#33363b",
}
_ROW = 0.28  # inches per class
_NAME = 20  # letters of a name


def draw_diagnosis(result: dict) -> Figure:
    """Draw a diagnosis as three panels.

    Args:
        result: as `sppdet.evaluation.diagnosis.diagnose` returns it.

    Returns:
        The gain in mAP without each error; the detections with the highest scores by outcome, a bar per class; the
        objects by state, a bar per class. Classes without objects are left out.
    """
    from matplotlib.figure import Figure  # without pyplot: no window, no state

    classes = {name: figures for name, figures in result["classes"].items() if sum(figures["objects"].values())}
    rows = max(len(classes), len(result["errors"]))
    figure = Figure(figsize=(17, 2 + _ROW * rows), dpi=100, layout="constrained")
    gains, detections, objects = figure.subplots(1, 3)
    _draw_gains(gains, result)
    _draw_shares(detections, "The surest detections, as many as objects", classes, "detections")
    _draw_shares(objects, "The objects", classes, "objects")
    return figure


def _draw_gains(axes: Axes, result: dict) -> None:
    """Draw a bar for the gain in mAP without each error."""
    now, errors = result["mAP"], result["errors"]
    axes.set_title("mAP without one kind of error" + ("" if now is None else f" (now {now:.1f})"), loc="left")
    if now is None:
        axes.set_axis_off()
        return
    gains = [row["mAP"] - now for row in errors.values()]
    bars = axes.barh(list(errors), gains, color=[_COLOURS[error] for error in errors])
    texts = [
        f"{gain:+.1f}  ({100 * row['share']:.0f}% of {'detections' if error in KINDS else 'objects'})"
        for gain, (error, row) in zip(gains, errors.items())
    ]
    axes.bar_label(bars, texts, padding=4)
    axes.set_xlim(0, 1.8 * max(*gains, 1))  # room for the texts
    axes.set_xlabel("points of mAP")
    _tidy(axes)


def _draw_shares(axes: Axes, title: str, classes: dict[str, dict], key: str) -> None:
    """Draw a bar per class, all of the same length, divided by the counts under ``key``."""
    axes.set_title(title, loc="left", pad=46 if classes else None)
    if not classes:
        axes.set_axis_off()
        return
    names = [f"{_shortened(name)} ({sum(figures['objects'].values())})" for name, figures in classes.items()]
    counts = np.array([list(figures[key].values()) for figures in classes.values()], float)
    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    left = np.zeros(len(names))
    for outcome, share in zip(next(iter(classes.values()))[key], shares.T):
        axes.barh(range(len(names)), share, left=left, color=_COLOURS[outcome], label=outcome)
        left += share
    axes.set_yticks(range(len(names)), names, parse_math=False)  # a name may hold $
    axes.set_xlim(0, 100)
    axes.set_xlabel("%")
    legend = axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, handlelength=1)
    legend.set_in_layout(False)  # the bars keep their width; the title's distance leaves the room above them
    _tidy(axes)


def _shortened(name: str) -> str:
    """Return a name that leaves room for the bars."""
    return name if len(name) <= _NAME else name[: _NAME - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _tidy(axes: Axes) -> None:
    """Put the first row on top and the grid behind the bars, and leave out the frame."""
    axes.invert_yaxis()
    axes.set_axisbelow(True)
    axes.grid(axis="x", color="#dddddd")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
