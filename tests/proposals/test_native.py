"""Our engine of selective search: windows equal to OpenCV's, and their ranking by hand."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from sppdet.data.images import read_image
from sppdet.data.shapes import make_shapes
from sppdet.data.voc import read_voc
from sppdet.proposals import native
from sppdet.proposals.native import RECIPES, Recipe, _cells, _number_within, _ranked, in_colour, selective_search
from sppdet.proposals.recall import proposal_recall
from sppdet.proposals.search import SelectiveSearch


def blurred_noise(height: int, width: int) -> np.ndarray:
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 3)


def as_set(windows: np.ndarray) -> set[tuple[int, ...]]:
    return set(map(tuple, windows.tolist()))


@pytest.mark.parametrize("mode", ["fast", "quality"])
@pytest.mark.parametrize("shape", [(90, 120), (150, 110), (60, 200)], ids=str)  # OpenCV turns the last one differently
def test_windows_are_opencvs(shape, mode):
    image = blurred_noise(*shape)
    opencv, own = (as_set(SelectiveSearch(engine=engine, mode=mode)(image)) for engine in ("opencv", "native"))
    assert opencv == own and len(opencv) > 50


def test_windows_of_images_full_of_ties_are_nearly_opencvs(tmp_path):
    """OpenCV decides between equally similar pairs by an unstable sort."""
    dataset = read_voc(make_shapes(tmp_path, train=1, test=4), "test")
    opencv, own = (
        [SelectiveSearch(engine=engine, max_side=240)(read_image(sample.path)) for sample in dataset]
        for engine in ("opencv", "native")
    )
    for theirs, ours in zip(map(as_set, opencv), map(as_set, own)):
        assert len(theirs & ours) > 0.9 * len(theirs | ours)
    expected, table = (proposal_recall(windows, [sample.boxes for sample in dataset]) for windows in (opencv, own))
    assert abs(table["windows"] / expected["windows"] - 1) < 0.1
    assert table["recall@0.5"] >= expected["recall@0.5"] and table["recall@0.7"] >= expected["recall@0.7"]
    assert table["average_best_overlap"] >= expected["average_best_overlap"] - 0.01


def test_two_halves_give_three_windows():
    """Each half is a region, and so is their union. The union, joined last in every grouping, is the best."""
    image = np.zeros((40, 60, 3), np.uint8)
    image[:, 30:] = 255
    windows = selective_search(image, RECIPES["fast"], 50, 50, 0.8)
    assert windows[0].tolist() == [0, 0, 60, 40]
    assert as_set(windows) == {(0, 0, 60, 40), (0, 0, 30, 40), (30, 0, 60, 40)}


def test_windows_do_not_depend_on_the_number_of_threads():
    image = blurred_noise(90, 120)
    one, three = (selective_search(image, RECIPES["quality"], 50, 50, 0.8, threads) for threads in (1, 3))
    np.testing.assert_array_equal(one, three)
    assert len(as_set(one)) == len(one)


def test_a_recipe_gives_the_windows_of_its_segmentations_and_mixes():
    image = blurred_noise(60, 80)
    whole = Recipe(("hsv", "grey"), 2, (native.ALL, native.SIZE))
    parts = [
        as_set(selective_search(image, Recipe((colour,), 1, (mix,)), k, 0, 0.8))
        for colour in whole.colours
        for k in (50, 80)
        for mix in whole.mixes
    ]
    assert as_set(selective_search(image, whole, 50, 30, 0.8)) == set.union(*parts)


@pytest.mark.parametrize(
    ("colour", "expected"),
    [
        ("hsv", [60, 255, 200]),  # the hue in units of 2 degrees
        ("grey", [117]),  # 0.587 of green
        ("blue", [0]),
        ("rgi", [0, 200, 117]),
    ],
)
def test_colour_spaces_of_pure_green(colour, expected):
    image = np.full((2, 3, 3), [0, 200, 0], np.uint8)
    converted = in_colour(image, colour)
    assert converted.shape == (2, 3, len(expected)) and converted[1, 2].tolist() == expected


def test_lab_of_white_and_black():
    image = np.array([[[255, 255, 255], [0, 0, 0]]], np.uint8)
    assert in_colour(image, "lab").tolist() == [[[255, 128, 128], [0, 128, 128]]]


# Boxes far from each other in an image of 1000 x 1000 pixels.
A, B, C, D = [0, 0, 10, 10], [100, 0, 120, 20], [300, 300, 340, 340], [200, 0, 220, 20]


def ranked(*groupings: list[list[int]]) -> list[list[int]]:
    return _ranked([np.array(boxes, np.int32) for boxes in groupings], 1000, 1000).tolist()


def test_regions_that_are_joined_last_come_first():
    assert ranked([A, B, C]) == [C, B, A]


def test_scores_of_groupings_are_added():
    """Of 3 regions the scores are 1024 log(4 / 3), 1024 log(2), 1024 log(4); of 2 they are log(3 / 2) and log(3).

    In the first two groupings A scores 295 + 1125 = 1420 as C does, and comes first because it lies further left. A
    third grouping of one region, 1024 log(2) = 710, puts B with 710 + 415 + 710 = 1835 before both.
    """
    assert ranked([A, B, C], [B, A]) == [A, C, B]
    assert ranked([A, B, C], [B, A], [B]) == [B, A, C]


def test_equal_scores_are_sorted_by_the_corners():
    assert ranked([D], [B], [A], [C]) == [A, B, D, C]
    assert ranked([[5, 9, 25, 39]], [[5, 9, 25, 29]], [[5, 0, 25, 20]]) == [
        [5, 0, 25, 20],
        [5, 9, 25, 29],
        [5, 9, 25, 39],
    ]


def test_the_same_window_of_several_groupings_comes_once():
    assert ranked([A, B], [A, B], [A]) == [B, A]


def test_a_window_like_a_better_one_moves_to_four_times_its_position():
    """Of nine windows from best to worst, the second is like the first: it moves from position 2 to 8."""
    first, alike = [500, 500, 530, 530], [502, 500, 532, 530]
    others = [[100 * i, 0, 100 * i + 20, 20] for i in range(7)]
    best_first = [first, alike, *others]
    # The windows of positions 3 to 7 come before it. Position 8 is shared with another: the better window comes first.
    assert ranked(best_first[::-1]) == [first, *others[:5], alike, *others[5:]]


def test_the_third_window_of_a_kind_moves_to_nine_times_its_position():
    """Three alike at positions 1, 2, 3 move to 1, 8 and 27; the others stay at 4, 5 and 6."""
    alike = [[500 + i, 500, 530 + i, 530] for i in range(3)]
    others = [[100 * i, 0, 100 * i + 20, 20] for i in range(3)]
    assert ranked([*alike, *others][::-1]) == [alike[0], *others, alike[1], alike[2]]


@pytest.mark.parametrize(
    ("box", "alike"),
    [
        ([38, 38, 68, 68], True),  # the box itself: its sides are in the bin 30 to 38, its centre in the cell 50 to 60
        ([34, 34, 72, 72], True),
        ([37, 38, 67, 68], True),
        ([34, 34, 73, 72], False),  # 39 wide
        ([39, 38, 68, 68], False),  # 29 wide
        ([35, 38, 65, 68], True),  # centred on 50
        ([34, 38, 65, 68], False),  # centred on 49.5
        ([45, 38, 75, 68], False),  # centred on 60
        ([38, 45, 68, 75], False),
        ([44, 38, 75, 68], True),  # centred on 59.5
    ],
)
def test_boxes_are_alike_where_sides_and_centres_fall_into_the_same_bins(box, alike):
    """Bounds of sides are 1.3^n, rounded: 23, 30, 39. Centres of boxes from 30 pixels lie in cells of 30 // 3."""
    cells = _cells(np.array([[38, 38, 68, 68], box], np.int32))
    assert (cells[0] == cells[1]) == alike


def test_the_smallest_boxes_have_cells_of_one_pixel():
    boxes = np.array([[0, 0, 1, 1], [1, 0, 2, 1], [0, 1, 1, 2], [0, 0, 2, 1], [0, 0, 1, 2], [0, 0, 1, 1]], np.int32)
    cells = _cells(boxes)
    assert cells[0] == cells[5] and len(set(cells.tolist())) == 5


def test_items_are_numbered_within_their_groups():
    assert _number_within(np.array([4, 2, 4, 4, 2, 9])).tolist() == [1, 1, 2, 3, 2, 1]
    assert _number_within(np.array([7])).tolist() == [1]
    assert _number_within(np.array([0, 0, 0])).tolist() == [1, 2, 3]


def test_compilation_is_announced_unless_it_was_done_before(capsys, monkeypatch, tmp_path):
    search, image = SelectiveSearch(engine="native"), blurred_noise(40, 50)
    search(image)
    capsys.readouterr()
    search(image)
    assert not capsys.readouterr().err  # compiled in this process
    compiled_file = tmp_path / "compiled"
    monkeypatch.setattr(native, "marker", lambda function, sources: compiled_file)
    monkeypatch.setattr(native, "_in_memory", lambda: False)
    search(image)
    assert "is compiled: once" in capsys.readouterr().err and compiled_file.exists()
    search(image)
    assert not capsys.readouterr().err  # the file says that an earlier process compiled it
    monkeypatch.setattr(native, "marker", lambda function, sources: None)  # compiled code cannot be kept
    search(image)
    assert "is compiled: once" in capsys.readouterr().err
