"""Charts: SVG that an HTML page can hold, and where its axes lie."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from sppdet.evaluation.report.charts import draw_curve, draw_gains, draw_thresholds


def test_the_axes_lie_where_the_chart_says():
    chart = draw_curve(np.array([0.0, 0.5, 1.0]), np.array([1.0, 0.25, 0.0]), 7)
    (path,) = re.findall(r'<path d="([^"]*)"[^>]*stroke: #0072b2', chart.svg)
    points = np.array(re.findall(r"([\d.]+) ([\d.]+)", path), float)
    (x0, x1), (y0, y1) = chart.x, chart.y
    expected = [(x0, y1), ((x0 + x1) / 2, y0 + 0.25 * (y1 - y0)), (x1, y0)]
    np.testing.assert_allclose(points, expected, atol=1e-3)


@pytest.mark.parametrize(
    "chart",
    [
        draw_curve(np.zeros(0), np.zeros(0), 0),
        draw_curve(np.linspace(0, 1, 5000), np.random.default_rng(0).random(5000), 1),
        draw_gains(["badly placed", "background"], [0.0, 0.0]),
        draw_thresholds(np.array([-0.5]), *[np.array([np.nan])] * 3),
        draw_thresholds(np.linspace(-1, 1, 400), *np.random.default_rng(0).random((3, 400))),
    ],
)
def test_charts_are_small_well_formed_and_need_nothing_else(chart):
    ElementTree.fromstring(chart.svg)
    assert "http" not in chart.svg and "<style" not in chart.svg and "font-family" not in chart.svg
    assert len(chart.svg) < 150_000


def test_ids_of_two_charts_differ():
    one, other = (set(re.findall(r'\bid="([^"]+)"', draw_curve(np.ones(1), np.ones(1), i).svg)) for i in (1, 2))
    assert one and not one & other
