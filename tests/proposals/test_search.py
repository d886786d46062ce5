"""Selective search by either engine: usable windows, the same every time, and the settings they depend on."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from sppdet.config import ProposalSettings
from sppdet.proposals import native
from sppdet.proposals.recall import best_overlaps
from sppdet.proposals.search import SelectiveSearch, enlarge, shrink
from sppdet.utils.errors import SppdetError
from sppdet.utils.parallel import parallel_map


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    """Blurred noise of 90 x 120 pixels with two plain figures."""
    noise = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    image = cv2.GaussianBlur(noise, (0, 0), 3)
    image[20:60, 15:50] = [220, 30, 30]
    cv2.circle(image, (90, 45), 22, (20, 200, 60), -1)
    return image


@pytest.fixture(scope="module", params=["opencv", "native"])
def engine(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def windows(image, engine) -> np.ndarray:
    return SelectiveSearch(engine=engine)(image)


def as_set(windows: np.ndarray) -> set[tuple[float, ...]]:
    return set(map(tuple, windows.tolist()))


def test_windows_are_unique_whole_pixels_inside_the_image(windows):
    assert windows.dtype == np.float32
    assert (windows == windows.round()).all() and (windows[:, :2] >= 0).all() and (windows[:, 2:] <= [120, 90]).all()
    assert (windows[:, 2:] - windows[:, :2] >= 20).all()
    assert len(as_set(windows)) == len(windows)
    assert (0, 0, 120, 90) in as_set(windows)  # the region of all pixels


def test_the_figures_are_among_the_windows(windows):
    figures = np.array([[15, 20, 50, 60], [68, 23, 113, 68]], np.float32)
    assert (best_overlaps(windows, figures) > 0.8).all()


def test_windows_do_not_depend_on_earlier_searches(image, windows, engine):
    search = SelectiveSearch(engine=engine)
    search(image[::-1])  # advances C's rand(), by which OpenCV orders its windows
    np.testing.assert_array_equal(search(image), windows)


def test_windows_of_our_engine_are_the_same_in_threads(image):
    search = SelectiveSearch(engine="native")
    for windows in parallel_map(search, [image] * 3, 2, "search", threads=True):
        np.testing.assert_array_equal(windows, search(image))


def test_the_largest_number_of_windows_keeps_the_first(image, windows, engine):
    np.testing.assert_array_equal(SelectiveSearch(max_windows=4, engine=engine)(image), windows[:4])


def test_the_smallest_side_drops_windows(image, windows, engine):
    sides = (windows[:, 2:] - windows[:, :2]).min(axis=1)
    assert as_set(SelectiveSearch(min_size=30, engine=engine)(image)) == as_set(windows[sides >= 30])


def test_windows_of_a_shrunk_image_are_those_of_the_whole(image, engine):
    doubled = cv2.resize(image, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
    windows = SelectiveSearch(max_side=120, min_size=40, engine=engine)(doubled)
    assert as_set(windows) == as_set(2 * SelectiveSearch(min_size=20, engine=engine)(image))


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((1, 1), []),
        ((2, 3), []),
        ((3, 200), []),
        ((200, 3), []),
        ((4, 4), []),
        ((300, 5), []),
        ((20, 20), [(0, 0, 20, 20)]),
        ((25, 200), [(0, 0, 200, 25)]),
    ],
    ids=str,
)
@pytest.mark.parametrize("value", [0, 200])
def test_a_plain_image_is_one_window_if_it_is_large_enough(shape, expected, value, engine):
    windows = SelectiveSearch(engine=engine)(np.full((*shape, 3), value, np.uint8))
    assert windows.dtype == np.float32 and windows.shape == (len(expected), 4)
    assert list(map(tuple, windows.tolist())) == expected


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (3, 200), (4, 4), (5, 300), (300, 5), (20, 20), (25, 200)], ids=str)
def test_noise_of_odd_shapes_is_searched(shape, channels, engine):
    noise = np.random.default_rng(0).integers(0, 256, (*shape, channels), np.uint8)
    windows = SelectiveSearch(engine=engine)(noise)
    assert (windows[:, 2:] - windows[:, :2] >= 20).all() and (windows[:, 2:] <= shape[::-1]).all()
    assert ((0, 0, *shape[::-1]) in as_set(windows)) == (min(shape) >= 20)


@pytest.mark.parametrize("max_side", [0, 500])
@pytest.mark.parametrize("shape", [(25, 6000), (600, 900)], ids=str)
def test_long_and_large_images_are_searched(shape, max_side):
    noise = np.random.default_rng(0).integers(0, 256, (25, 60, 3), np.uint8)
    windows = SelectiveSearch(engine="native", max_side=max_side)(cv2.resize(noise, shape[::-1]))
    assert (windows[:, 2:] <= shape[::-1]).all() and (0, 0, *shape[::-1]) in as_set(windows)
    assert len(as_set(windows)) == len(windows) > 20


def test_the_balanced_mode_is_native_only(image):
    fast, balanced = (SelectiveSearch(mode=mode, engine="native")(image) for mode in ("fast", "balanced"))
    assert as_set(fast) < as_set(balanced)
    with pytest.raises(SppdetError, match="engine=native"):
        SelectiveSearch(mode="balanced", engine="opencv")


def test_settings_out_of_range_are_refused():
    with pytest.raises(SppdetError, match=r"mode: expected one of fast, quality, balanced, found 'bananas'"):
        SelectiveSearch(mode="bananas")


def test_images_of_other_kinds_are_refused(image):
    with pytest.raises(SppdetError, match="an image cannot be a float64 array"):
        SelectiveSearch()(image / 255)


def test_a_grey_image_is_searched_as_three_equal_channels(image):
    grey = image[:, :, 0]
    np.testing.assert_array_equal(SelectiveSearch()(grey), SelectiveSearch()(np.stack([grey] * 3, axis=2)))


def test_an_image_too_long_to_be_searched_whole_is_refused(monkeypatch):
    monkeypatch.setattr(native, "selective_search", lambda *arguments: np.zeros((0, 4)))
    for long in (np.zeros((1, 32_000, 3), np.uint8), np.zeros((31_000, 1_001, 3), np.uint8)):
        height, width = long.shape[:2]
        with pytest.raises(SppdetError, match=rf"{width} x {height} pixels .* set proposals\.max_side"):
            SelectiveSearch(max_side=0)(long)
        assert SelectiveSearch(max_side=500)(long).shape == (0, 4)
    assert SelectiveSearch(max_side=0)(np.zeros((1, 31_999, 3), np.uint8)).shape == (0, 4)


def test_the_search_of_a_configuration_has_its_settings():
    settings = ProposalSettings(mode="quality", base_k=70, max_windows=9)
    assert SelectiveSearch.of(settings) == SelectiveSearch(mode="quality", base_k=70, max_windows=9)


def test_settings_name_everything_that_windows_depend_on():
    changes = {"mode": "quality", "base_k": 100, "inc_k": 100, "sigma": 0.5, "max_side": 0, "min_size": 5}
    changes["max_windows"] = 9
    for engine in ("opencv", "native"):
        base = SelectiveSearch(engine=engine)
        assert all(replace(base, **{key: value}).settings() != base.settings() for key, value in changes.items())


@pytest.mark.parametrize(
    ("engine", "first"),
    [("opencv", {"engine": "opencv", "order": 1}), ("native", {"engine": "native", "version": 2})],
)
def test_settings_are_those_of_existing_stores(engine, first):
    """A change here would make the proposals in all caches useless."""
    assert SelectiveSearch(engine=engine).settings() == {
        **first,
        "opencv": cv2.__version__,
        "mode": "fast",
        "base_k": 50,
        "inc_k": 50,
        "sigma": 0.8,
        "max_side": 500,
        "min_size": 20.0,
        "max_windows": 0,
    }


def test_shrink_keeps_the_aspect_and_never_enlarges():
    image = np.zeros((100, 200, 3), np.uint8)
    assert shrink(image, 50).shape == (25, 50, 3)
    assert shrink(image, 200) is image and shrink(image, 0) is image
    assert shrink(np.zeros((1, 1000, 3), np.uint8), 100).shape == (1, 100, 3)


def test_enlarge_scales_rounds_clips_and_drops():
    windows = np.array([[0, 0, 10, 10], [1, 2, 3, 4], [3, 3, 10, 10]])
    # From 10 x 10 to 33 x 20 pixels: factors 3.3 and 2.
    assert enlarge(windows, (10, 10, 3), (20, 33, 3), 0).tolist() == [[0, 0, 33, 20], [3, 4, 10, 8], [10, 6, 33, 20]]
    assert enlarge(windows, (10, 10, 3), (20, 33, 3), 7).tolist() == [[0, 0, 33, 20], [10, 6, 33, 20]]
    # Windows that vanish are dropped even without a smallest side.
    assert enlarge(np.array([[0, 0, 1, 10]]), (10, 10, 3), (10, 4, 3), 0).shape == (0, 4)
