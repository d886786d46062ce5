"""The scale at which a window is read, and its rectangle of cells, against the original program's formula."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sppdet.data.images import scaled_size
from sppdet.features.regions import choose_scales, locate, project, scale_factor
from sppdet.networks.trunk_output import CellGrid

SCALES = (480, 576, 688, 864, 1200)


def test_the_shorter_side_becomes_the_scale_unless_the_longer_is_too_long():
    assert scale_factor(500, 375, 480, 2500) == 480 / 375
    assert scale_factor(375, 500, 480, 2500) == 480 / 375
    assert scale_factor(1000, 100, 480, 2500) == 2.5  # the longer side decides
    assert scaled_size(500, 375, 480 / 375) == (640, 480)
    assert scaled_size(1, 1000, 0.1) == (1, 100)


@pytest.mark.parametrize(
    ("side", "scale"),
    [
        # A 375 x 500 image at scale s shows a square window of side a with (a s / 375)^2 pixels. Two scales s, t are
        # equally near to 224^2 at a = 224 * 375 * sqrt(2 / (s^2 + t^2)): 158.4, 132.4, 107.6 and 80.3.
        (300, 480), (159, 480), (158, 576), (133, 576), (132, 688),
        (108, 688), (107, 864), (81, 864), (80, 1200), (10, 1200),
    ],
)  # fmt: skip
def test_scale_whose_window_is_nearest_224_squared(side, scale):
    factors = np.array([scale_factor(500, 375, s, 2500) for s in SCALES])
    window = np.array([[20, 30, 20 + side, 30 + side]], np.float32)
    assert SCALES[choose_scales(window, factors, 224)[0]] == scale
    wide = np.array([[0, 0, side * 2, side / 2]], np.float32)  # the number of pixels counts, not the shape
    assert SCALES[choose_scales(wide, factors, 224)[0]] == scale


def test_a_tie_goes_to_the_smaller_scale():
    # 10 x 10 pixels at 1 x and 2 x are 100 and 400: both 150 away from a target whose square is 250.
    window = np.array([[0, 0, 10, 10]], np.float32)
    assert choose_scales(window, np.array([1.0, 1.0]), 224).tolist() == [0]
    # 8 x 8 with factors 1 and 7: 64 and 3136, both 1536 from 1600 = 40^2.
    assert choose_scales(window * 0.8, np.array([1.0, 7.0]), 40).tolist() == [0]
    assert choose_scales(window * 0.8, np.array([7.0, 1.0]), 40).tolist() == [0]


def test_no_windows():
    none = np.zeros((0, 4), np.float32)
    assert choose_scales(none, np.ones(2), 224).shape == (0,)
    assert project(none, (10, 10), 1.0, CellGrid(16, 0), (3, 3), 6.5).shape == (0, 4)
    assert locate(none, (10, 10), 1.0, CellGrid(16, 0), (3, 3)).shape == (0, 4)


def reference_cells(box, image_size, factor, stride, centre, map_size, offset):
    """Compute the rectangle of cells as SPP_net does: step by step, in 1-based pixels and cells, inclusive corners.

    spp_features_convX_to_poolX.m maps the box into the scaled image, spm_response_boxes.m to cells:
    x0 = floor((x0' - offset0 + offset) / 16 + 0.5) + 1, x1 = ceil((x1' - offset0 - offset) / 16 - 0.5) + 1.
    """
    offset0 = centre + 1
    shorter = min(image_size)
    scale = shorter * factor
    x0, y0, x1, y1 = box[0] + 1, box[1] + 1, box[2], box[3]  # to 1-based, inclusive
    x0, y0, x1, y1 = ((value - 1) * (scale - 1) / (shorter - 1) + 1 for value in (x0, y0, x1, y1))
    x0, y0 = (math.floor((value - offset0 + offset) / stride + 0.5) + 1 for value in (x0, y0))
    x1, y1 = (math.ceil((value - offset0 - offset) / stride - 0.5) + 1 for value in (x1, y1))
    if x0 > x1:
        x0 = x1 = math.trunc((x0 + x1) / 2)
    if y0 > y1:
        y0 = y1 = math.trunc((y0 + y1) / 2)
    x0, x1 = (min(max(value, 1), map_size[0]) for value in (x0, x1))
    y0, y1 = (min(max(value, 1), map_size[1]) for value in (y0, y1))
    return [x0 - 1, y0 - 1, x1, y1]  # to 0-based, half-open


GRIDS = [(16, 20.0, 6.5), (16, 15.0, 6.5), (16, 7.5, 6.5), (16, 0.0, 6.5), (16, 11.0, 0.0), (4, 1.5, 1.0), (32, 0, 9.5)]


@pytest.mark.parametrize(("stride", "centre", "shrink"), GRIDS)
@pytest.mark.parametrize(("size", "scale"), [((500, 375), 688), ((334, 500), 480), ((333, 500), 1200)])
def test_projection_is_the_programs_formula(stride, centre, shrink, size, scale):
    factor = scale_factor(*size, scale, 2500)
    map_size = tuple(max(1, side // stride - 1) for side in scaled_size(*size, factor))
    rng = np.random.default_rng(0)
    corner = np.stack([rng.integers(0, side, 400) for side in size], axis=1)
    length = np.stack([rng.integers(1, side - corner[:, axis] + 1) for axis, side in enumerate(size)], axis=1)
    width, height = size
    edges = [
        [0, 0, width, height], [0, 0, 1, 1], [width - 1, height - 1, width, height],
        [0, height - 1, width, height], [width - 1, 0, width, height], [0, 0, width, 1], [7, 9, 8, 10],
    ]  # fmt: skip
    small = np.concatenate([corner, np.minimum(corner + 1 + length % 12, size)], axis=1)
    windows = np.concatenate([np.concatenate([corner, corner + length], axis=1), small, edges]).astype(np.float32)
    cells = project(windows, size, factor, CellGrid(stride, centre), map_size, shrink)
    assert cells.dtype == np.int32
    expected = [reference_cells(w, size, factor, stride, centre, map_size, shrink) for w in windows.tolist()]
    np.testing.assert_array_equal(cells, expected)
    assert (cells[:, :2] < cells[:, 2:]).all() and (cells >= 0).all() and (cells[:, 2:] <= map_size).all()


def test_projection_by_hand():
    # Stride 16, first cell on pixel 0, no shrinking, the image is not enlarged. Pixels 16..47 lie around cells 1..3:
    # first = floor(16/16 + 1/2) = 1, last = ceil(47/16 - 1/2) = ceil(2.4375) = 3.
    grid = CellGrid(16, 0.0)
    window = np.array([[16, 16, 48, 48]], np.float32)
    assert project(window, (100, 100), 1.0, grid, (7, 7), 0).tolist() == [[1, 1, 4, 4]]
    # Shrunk by 6.5: first = floor(22.5/16 + 1/2) = floor(1.906) = 1, last = ceil(40.5/16 - 1/2) = ceil(2.031) = 3.
    assert project(window, (100, 100), 1.0, grid, (7, 7), 6.5).tolist() == [[1, 1, 4, 4]]
    # A window of two pixels, 24 and 25: first = floor(30.5/16 + 1/2) = 2, last = ceil(18.5/16 - 1/2) = 1: crossed, so
    # the middle, floor(3 / 2) = 1 (0-based; the program's 1-based int((3 + 2) / 2) = 2 is the same cell).
    narrow = np.array([[24, 24, 26, 26]], np.float32)
    assert project(narrow, (100, 100), 1.0, grid, (7, 7), 6.5).tolist() == [[1, 1, 2, 2]]


def paper_cells(box, stride: int, centre: float) -> list[int]:
    """Compute cells as appendix A: floor(x / S) + 1 and ceil(x / S) - 1, x less the centre of the first cell."""
    x1, y1, x2, y2 = box[0], box[1], box[2] - 1, box[3] - 1  # first and last pixels
    low = [math.floor((x - centre) / stride) + 1 for x in (x1, y1)]
    return [*low, *(math.ceil((x - centre) / stride) for x in (x2, y2))]  # half-open


def test_half_a_stride_is_the_papers_mapping_by_hand():
    # Cells centred on 0, 16, 32, 48: strictly between the pixels 16 and 47 lies 32 alone, between 15 and 49 three.
    windows = np.array([[16, 16, 48, 48], [15, 15, 50, 50], [17, 0, 49, 99]], np.float32)
    cells = project(windows, (100, 100), 1.0, CellGrid(16, 0.0), (7, 7), 8.0)
    # floor(17/16) + 1 = 2, ceil(48/16) - 1 = 2; floor(0/16) + 1 = 1, ceil(98/16) - 1 = 6.
    assert cells.tolist() == [[2, 2, 3, 3], [1, 1, 4, 4], [2, 1, 3, 7]]
    # SqueezeNet's first cell is centred on 17: floor((40 - 17)/16) + 1 = 2, ceil((150 - 17)/16) - 1 = 8.
    window = np.array([[40, 40, 151, 151]], np.float32)
    assert project(window, (500, 500), 1.0, CellGrid(16, 17.0), (30, 30), 8.0).tolist() == [[2, 2, 9, 9]]


@pytest.mark.parametrize(("stride", "centre"), [(16, 0.0), (16, 7.5), (16, 17.0), (8, 3.0)])
def test_half_a_stride_is_the_papers_mapping(stride, centre):
    rng = np.random.default_rng(1)
    corner = rng.integers(20, 200, (500, 2))
    windows = np.concatenate([corner, corner + rng.integers(2 * stride, 250, (500, 2))], axis=1).astype(np.float32)
    cells = project(windows, (500, 500), 1.0, CellGrid(stride, centre), (100, 100), stride / 2)
    assert cells.tolist() == [paper_cells(window, stride, centre) for window in windows.tolist()]


def test_an_image_of_one_pixel():
    # Its only pixel, 0, moves to pixel 0: first = floor(0 + 6.5/16 + 1/2) = 0, last = ceil(0 - 6.5/16 - 1/2) = 0.
    cells = project(np.array([[0, 0, 1, 1]], np.float32), (1, 1), 64.0, CellGrid(16, 0.0), (4, 4), 6.5)
    assert cells.tolist() == [[0, 0, 1, 1]]


def test_location_by_hand():
    # Stride 16, first cell on pixel 7.5: it reaches from edge 0 to 16, and a window of whole cells has whole edges.
    grid = CellGrid(16, 7.5)
    window = np.array([[16, 32, 48, 40]], np.float32)
    assert locate(window, (100, 100), 1.0, grid, (7, 7)).tolist() == [[1, 2, 3, 2.5]]
    # First cell on pixel 15.5, so that it reaches from edge 8 to 24: the same window lies half a cell earlier.
    assert locate(window, (100, 100), 1.0, CellGrid(16, 15.5), (7, 7)).tolist() == [[0.5, 1.5, 2.5, 2]]
    # Twice the size: edges 32, 64, 96, 80.
    assert locate(window, (100, 100), 2.0, grid, (13, 13)).tolist() == [[2, 4, 6, 5]]


def test_a_side_is_enlarged_by_what_it_becomes_after_rounding():
    # 333 x 500 at 1.5 is 499.5 x 750 pixels, rounded to 500: the right edge, 333, comes to 500 and not to 499.5.
    window = np.array([[0, 0, 333, 500]], np.float32)
    assert scaled_size(333, 500, 1.5) == (500, 750)
    assert locate(window, (333, 500), 1.5, CellGrid(1, 0.0), (500, 750)).tolist() == [[0, 0, 500, 750]]


@pytest.mark.parametrize(("stride", "centre"), [(16, 20.0), (16, 15.0), (16, 7.5), (16, 0.0), (4, 1.5), (32, 0.0)])
def test_locations_keep_the_middle_and_stay_near_the_map(stride, centre):
    size, factor, grid = (500, 375), 688 / 375, CellGrid(stride, centre)
    scaled = scaled_size(*size, factor)
    map_size = tuple(max(1, side // stride - 1) for side in scaled)
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 0.98, (400, 2)) * size
    windows = np.concatenate([corner, corner + rng.uniform(0.001, 1, (400, 2)) * (size - corner)], axis=1)
    windows = np.concatenate([windows, [[0, 0, 0.01, 375], [499.99, 374.9, 500, 375]]]).astype(np.float32)
    edges = locate(windows, size, factor, grid, map_size)
    assert edges.dtype == np.float32
    assert (edges[:, 2:] - edges[:, :2] >= 0.99 / stride).all()  # a pixel
    assert (edges >= -0.5).all() and (edges[:, 2:] <= np.array(map_size) + 0.5).all()
    # Cell i is centred on pixel centre + stride i; the middle of this pixel is half a pixel further.
    inside = ((edges > -0.5) & (edges < np.tile(map_size, 2) + 0.5)).all(axis=1)
    inside &= (windows[:, 2:] - windows[:, :2] > 1).all(axis=1)
    assert inside.sum() > 100
    middle = (edges[inside, :2] + edges[inside, 2:]) / 2 - 0.5
    wanted = (windows[inside, :2] + windows[inside, 2:]) / 2 * np.array(scaled) / size
    np.testing.assert_allclose(centre + stride * middle + 0.5, wanted, atol=0.01)
