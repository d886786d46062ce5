"""Boxes around polygons, ellipses and turned rectangles."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def box_around(points: Sequence[Sequence[float]]) -> tuple[float, float, float, float]:
    """Return left, top, right, bottom of points ``(x, y)``; NaN where a coordinate is NaN.

    Examples:
        >>> box_around([(3, 1), (5, 9), (4, 4)])
        (3.0, 1.0, 5.0, 9.0)
    """
    xs, ys = np.array(points, float).T
    return float(xs.min()), float(ys.min()), float(xs.max()), float(ys.max())


def ellipse_box(cx: float, cy: float, rx: float, ry: float, degrees: float = 0) -> tuple[float, float, float, float]:
    """Return the box around an ellipse, by its centre and radii, that is turned clockwise about its centre.

    Examples:
        >>> ellipse_box(10, 10, 4, 2, 90)
        (8.0, 6.0, 12.0, 14.0)
    """
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    half_width, half_height = round(math.hypot(rx * cos, ry * sin), 9), round(math.hypot(rx * sin, ry * cos), 9)
    return cx - half_width, cy - half_height, cx + half_width, cy + half_height


def turned_box(
    x1: float, y1: float, x2: float, y2: float, degrees: float, centre: tuple[float, float] | None = None
) -> tuple[float, float, float, float]:
    """Return the box around a rectangle that is turned clockwise about its centre, or about another point.

    Examples:
        >>> turned_box(0, 0, 4, 2, 90)
        (1.0, -1.0, 3.0, 3.0)
    """
    cx, cy = centre or ((x1 + x2) / 2, (y1 + y2) / 2)
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    corners = [(x - cx, y - cy) for x in (x1, x2) for y in (y1, y2)]
    return box_around([(round(cx + x * cos - y * sin, 9), round(cy + x * sin + y * cos, 9)) for x, y in corners])
