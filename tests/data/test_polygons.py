"""Boxes around points, turned rectangles and ellipses."""

import numpy as np

from sppdet.data.polygons import box_around, ellipse_box, turned_box


def test_a_rectangle_turned_by_45_degrees_is_as_wide_as_its_diagonals():
    half = (3 + 4) / np.sqrt(8)
    np.testing.assert_allclose(turned_box(0, 0, 3, 4, 45), (1.5 - half, 2 - half, 1.5 + half, 2 + half))
    assert turned_box(20, 15, 24, 21, 90, centre=(20, 15)) == (14, 15, 20, 19)


def test_points_in_any_order():
    assert box_around([[5, 1], [2, 8]]) == (2, 1, 5, 8)


def test_a_point_that_is_no_number_is_not_dropped():
    np.testing.assert_equal(box_around([[1, 2], [np.nan, 8], [3, 4]]), (np.nan, 2, np.nan, 8))


def test_a_turned_ellipse_reaches_as_far_as_its_outline():
    angles = np.linspace(0, 2 * np.pi, 100_000)
    turn = np.radians(30)
    x = 7 * np.cos(angles) * np.cos(turn) - 3 * np.sin(angles) * np.sin(turn)
    y = 7 * np.cos(angles) * np.sin(turn) + 3 * np.sin(angles) * np.cos(turn)
    outline = (20 + x.min(), 10 + y.min(), 20 + x.max(), 10 + y.max())
    np.testing.assert_allclose(ellipse_box(20, 10, 7, 3, 30), outline, atol=1e-6)
    assert ellipse_box(20, 10, 7, 3) == (13, 7, 27, 13)
