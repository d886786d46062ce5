"""Boxes around polygons and turned rectangles."""

from __future__ import annotations

import math
from collections.abc import Sequence


def box_around(points: Sequence[Sequence[float]]) -> tuple[float, float, float, float]:
    """Return left, top, right, bottom of points ``(x, y)``.

    Examples:
        >>> box_around([(3, 1), (5, 9), (4, 4)])
        (3.0, 1.0, 5.0, 9.0)
    """
    xs, ys = [float(x) for x, _ in points], [float(y) for _, y in points]
    return min(xs), min(ys), max(xs), max(ys)


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
