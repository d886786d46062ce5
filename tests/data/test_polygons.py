"""Boxes around turned rectangles."""

import numpy as np

from sppdet.data.polygons import box_around, turned_box


def test_a_rectangle_turned_by_45_degrees_is_as_wide_as_its_diagonals():
    half = (3 + 4) / np.sqrt(8)
    np.testing.assert_allclose(turned_box(0, 0, 3, 4, 45), (1.5 - half, 2 - half, 1.5 + half, 2 + half))
    assert turned_box(20, 15, 24, 21, 90, centre=(20, 15)) == (14, 15, 20, 19)


def test_points_in_any_order():
    assert box_around([[5, 1], [2, 8]]) == (2, 1, 5, 8)
