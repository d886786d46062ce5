"""Charts of a report as SVG, drawn by matplotlib.

Text stays text, so that the page's fonts draw it. What the page's script moves (a line, a point) is drawn by the page
itself: a `Chart` tells it where the axes lie.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Colours of Okabe and Ito, which people with any kind of colour vision tell apart; lines differ in dashes, too.
BLUE, ORANGE, BLACK = "#0072b2", "#d55e00", "#1b1b1b"
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "sppdet",  # else ids are random and equal runs have different reports
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#777777",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "lines.linewidth": 1.8,
}


@dataclass(frozen=True)
class Chart:
    """A drawn chart.

    Attributes:
        svg: the element ``<svg class="chart">``.
        x: where the values 0 and 1 of the horizontal axis lie, in the SVG's units from the left.
        y: where the values 0 and 1 of the vertical axis lie, in the SVG's units from the top.
    """

    svg: str
    x: tuple[float, float]
    y: tuple[float, float]


def draw_thresholds(thresholds: np.ndarray, precision: np.ndarray, recall: np.ndarray, f1: np.ndarray) -> Chart:
    """Draw precision, recall and F1 of all classes together over the threshold; all are ``(T,)``, in 0..1."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes("thresholds", 5.6, 2.8, (0.075, 0.165, 0.91, 0.73))
        axes.plot(thresholds, precision, color=BLUE, linestyle="-", label="precision")
        axes.plot(thresholds, recall, color=ORANGE, linestyle=(0, (6, 2)), label="recall")
        axes.plot(thresholds, f1, color=BLACK, linestyle=(0, (1.5, 1.5)), label="F1")
        axes.set_ylim(0, 1.02)
        axes.margins(x=0.01)
        axes.set_xlabel("threshold: lowest score that counts")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, borderaxespad=0.2)
        return _chart(figure, axes, "t")


def draw_curve(recall: np.ndarray, precision: np.ndarray, number: int) -> Chart:
    """Draw the precision-recall curve of class ``number``, a small chart; both arrays are ``(n,)``, in 0..1."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes("curve", 2.7, 2.2, (0.17, 0.2, 0.79, 0.76))
        axes.plot(recall, precision, color=BLUE, solid_capstyle="butt")
        axes.set(xlim=(-0.02, 1.02), ylim=(0, 1.04), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
        axes.set_xlabel("recall", labelpad=1)
        axes.set_ylabel("precision", labelpad=1)
        return _chart(figure, axes, f"c{number}")


def draw_reliability(bins: Sequence[dict]) -> Chart:
    """Draw the share of right detections over their mean probability, a point per bin of `measure_reliability`.

    The area of a point grows with the logarithm of the number of its detections.
    """
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes("reliability", 3.6, 3.4, (0.15, 0.13, 0.82, 0.84))
        axes.plot((0, 1), (0, 1), color=BLACK, linestyle=(0, (1.5, 1.5)))
        probability, right = [entry["probability"] for entry in bins], [entry["right"] for entry in bins]
        axes.plot(probability, right, color=BLUE)
        axes.scatter(probability, right, s=[12 * np.log2(1 + entry["detections"]) for entry in bins], color=BLUE)
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel="probability", ylabel="share of right detections")
        return _chart(figure, axes, "r")


def draw_gains(names: Sequence[str], gains: Sequence[float]) -> Chart:
    """Draw a bar for the gain in mAP of each kind of error, the first on top."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes("gains", 5.6, 0.6 + 0.3 * len(names), (0.2, 0.2, 0.74, 0.79))
        bars = axes.barh(names, gains, color=BLUE, height=0.62)
        axes.bar_label(bars, [f"{gain:+.1f}" for gain in gains], padding=4)
        axes.set_xlim(min(0, *gains), 1.12 * max(1, *gains))
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("points of mAP that would be gained without this error")
        return _chart(figure, axes, "g")


def _axes(name: str, width: float, height: float, box: tuple[float, float, float, float]) -> tuple[Figure, Axes]:
    """Return a figure of this size in inches, with axes at (left, bottom, width, height) as shares of it."""
    figure = Figure((width, height), dpi=72)
    return figure, figure.add_axes(box, gid=name)


def _chart(figure: Figure, axes: Axes, prefix: str) -> Chart:
    """Write a figure as SVG; ``prefix`` makes its ids differ from those of other charts of the page."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = file.getvalue()
    width, height = (float(side) for side in figure.bbox.size)
    svg = svg[svg.index(">", svg.index("<svg")) + 1 :]
    # What HTML does not need, and the fonts and the style sheet, which the page has for itself.
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|font-family: [^;\"]*;? ?", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg.replace("xlink:href", "href"))
    svg = re.sub(r'(url\(|href=")#', rf"\1#{prefix}-", svg)
    svg = f'<svg class="chart" viewBox="0 0 {width:g} {height:g}" aria-hidden="true">{svg}'
    (x0, y0), (x1, y1) = axes.transData.transform([(0, 0), (1, 1)]).tolist()
    return Chart(svg, (x0, x1), (height - y0, height - y1))
