"""Selective search by either engine: the same windows every time, none that cannot be used, and recall arithmetic."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from sppdet.data.images import read_image
from sppdet.data.shapes import make_shapes
from sppdet.data.voc import read_voc
from sppdet.proposals import native as selective_search
from sppdet.proposals.recall import best_overlaps, proposal_recall, recall_table
from sppdet.proposals.search import SelectiveSearch, shrink
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


def test_windows_are_unique_float32_edges_inside_the_image(windows):
    assert windows.dtype == np.float32 and windows.shape[1] == 4 and len(windows) > 5
    assert (windows >= 0).all() and (windows[:, [0, 2]] <= 120).all() and (windows[:, [1, 3]] <= 90).all()
    assert (windows[:, 2:] - windows[:, :2] >= 20).all()
    assert len(np.unique(windows, axis=0)) == len(windows)


def test_the_figures_are_found(windows):
    figures = np.array([[15, 20, 50, 60], [68, 23, 113, 68]], np.float32)
    assert (best_overlaps(windows, figures) > 0.8).all()


def test_windows_do_not_depend_on_what_ran_before(image, windows, engine):
    search = SelectiveSearch(engine=engine)
    search(image[::-1])  # advances C's rand(), by which OpenCV orders its windows
    np.testing.assert_array_equal(search(image), windows)
    np.testing.assert_array_equal(search(image.copy()), windows)


def test_a_cut_is_the_start_of_the_whole(image, windows, engine):
    np.testing.assert_array_equal(SelectiveSearch(max_windows=4, engine=engine)(image), windows[:4])


def test_smallest_side(image, windows, engine):
    side = (windows[:, 2:] - windows[:, :2]).min(axis=1)
    larger = SelectiveSearch(min_size=30, engine=engine)(image)
    assert set(map(tuple, larger)) == set(map(tuple, windows[side >= 30]))


def test_a_shrunk_search_gives_windows_of_the_whole_image(image, engine):
    doubled = cv2.resize(image, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
    found = SelectiveSearch(max_side=120, engine=engine)(doubled)
    assert found[:, 2].max() == 240 and found[:, 3].max() == 180
    figure = np.array([[30, 40, 100, 120]], np.float32)
    assert best_overlaps(found, figure)[0] > 0.8


@pytest.mark.parametrize(
    "shape", [(1, 1), (2, 3), (3, 200), (200, 3), (4, 4), (5, 300), (300, 5), (20, 20), (25, 200)], ids=str
)
@pytest.mark.parametrize("content", ["black", "grey", "noise"])
def test_odd_images_do_not_crash(shape, content, engine):
    image = np.zeros((*shape, 3), np.uint8)
    if content != "black":
        image += np.random.default_rng(0).integers(0, 256, (*shape, 3 if content == "noise" else 1), np.uint8)
    found = SelectiveSearch(engine=engine)(image)
    assert found.dtype == np.float32 and found.shape[1:] == (4,)
    assert (found[:, 2:] - found[:, :2] >= 20).all()
    assert (found <= [shape[1], shape[0]] * 2).all()


def test_long_and_large_images_are_searched_natively():
    long = np.random.default_rng(0).integers(0, 256, (25, 6000, 3), np.uint8)
    for max_side in (0, 500):
        found = SelectiveSearch(engine="native", max_side=max_side)(long)
        assert found.shape[1] == 4 and (found[:, 2:] <= [6000, 25]).all()
    large = cv2.resize(long, (3000, 2000))
    found = SelectiveSearch(engine="native", max_side=200)(large)
    assert len(found) > 5 and found[:, 2].max() == 3000 and found[:, 3].max() == 2000


def test_threads_do_not_show_in_the_windows(image):
    recipe = selective_search.RECIPES["quality"]
    one, three = (selective_search.selective_search(image, recipe, 50, 50, 0.8, threads) for threads in (1, 3))
    np.testing.assert_array_equal(one, three)
    assert len(np.unique(one, axis=0)) == len(one)
    search = SelectiveSearch(engine="native")
    for found in parallel_map(search, [image] * 3, 2, "search", threads=True):
        np.testing.assert_array_equal(found, search(image))


@pytest.mark.parametrize("mode", ["fast", "quality"])
@pytest.mark.parametrize("shape", [(90, 120), (150, 110), (60, 200)], ids=str)  # the last is a long one to OpenCV
def test_native_windows_are_opencvs(shape, mode):
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    image = cv2.GaussianBlur(noise, (0, 0), 3)
    opencv, native = (set(map(tuple, SelectiveSearch(engine=e, mode=mode)(image))) for e in ("opencv", "native"))
    assert opencv == native and len(opencv) > 50


def test_windows_of_images_full_of_ties_are_nearly_opencvs(tmp_path):
    """Of regions that are equally similar OpenCV joins those that an unstable sort leaves last."""
    dataset = read_voc(make_shapes(tmp_path, train=1, test=8), "test")
    found = {
        engine: [SelectiveSearch(engine=engine, max_side=240)(read_image(sample.path)) for sample in dataset]
        for engine in ("opencv", "native")
    }
    for pair in zip(*found.values()):
        theirs, ours = (set(map(tuple, windows)) for windows in pair)
        assert len(theirs & ours) > 0.9 * len(theirs | ours)
    opencv, native = (proposal_recall(windows, (sample.boxes for sample in dataset)) for windows in found.values())
    assert abs(native["windows"] / opencv["windows"] - 1) < 0.1
    assert native["recall@0.5"] >= opencv["recall@0.5"] and native["recall@0.7"] >= opencv["recall@0.7"]
    assert native["average_best_overlap"] >= opencv["average_best_overlap"] - 0.01


def test_the_balanced_mode_is_native_only(image):
    fast, balanced = (SelectiveSearch(mode=mode, engine="native")(image) for mode in ("fast", "balanced"))
    assert set(map(tuple, fast)) < set(map(tuple, balanced))
    with pytest.raises(SppdetError, match="engine=native"):
        SelectiveSearch(mode="balanced", engine="opencv")


def test_what_it_is_called_with_by_mistake_is_told(image):
    with pytest.raises(SppdetError, match=r"mode: expected one of fast, quality, balanced, found 'bananas'"):
        SelectiveSearch(mode="bananas")
    with pytest.raises(SppdetError, match="an image cannot be a float64 array"):
        SelectiveSearch()(image / 255)
    grey = image[:, :, 0]
    np.testing.assert_array_equal(SelectiveSearch()(grey), SelectiveSearch()(np.stack([grey] * 3, axis=2)))


def test_compiling_is_announced_where_nothing_says_that_it_was_done(image, capsys, monkeypatch, tmp_path):
    search = SelectiveSearch(engine="native")
    search(image)
    capsys.readouterr()
    search(image)
    assert not capsys.readouterr().err  # in memory
    done = tmp_path / "compiled"
    monkeypatch.setattr(selective_search, "marker", lambda function, sources: done)
    monkeypatch.setattr(selective_search, "_in_memory", lambda: False)
    search(image)
    assert "is compiled: once" in capsys.readouterr().err and done.exists()
    search(image)
    assert not capsys.readouterr().err  # as in the next process
    monkeypatch.setattr(selective_search, "marker", lambda function, sources: None)  # nothing can be kept
    search(image)
    assert "is compiled: once" in capsys.readouterr().err


def test_a_large_image_is_searched_whole():
    image = cv2.resize(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8), (2400, 1600))
    found = SelectiveSearch(engine="native", max_side=0)(image)
    assert len(found) > 50 and (found[:, 2:] <= [2400, 1600]).all()


def test_an_image_too_long_to_be_searched_whole_is_told():
    long = np.zeros((1, 32_000, 3), np.uint8)
    with pytest.raises(SppdetError, match=r"32000 x 1 pixels .* set proposals\.max_side"):
        SelectiveSearch(max_side=0)(long)
    assert len(SelectiveSearch(max_side=500)(long)) == 0
    assert len(SelectiveSearch(max_side=0)(long[:, :31_999])) == 0  # one region, thinner than a window may be


def test_settings_name_everything_that_windows_depend_on():
    changes = {"mode": "quality", "base_k": 100, "inc_k": 100, "sigma": 0.5, "max_side": 0, "min_size": 5}
    changes["max_windows"] = 9
    for engine in ("opencv", "native"):
        base = SelectiveSearch(engine=engine)
        assert all(replace(base, **{key: value}).settings() != base.settings() for key, value in changes.items())
    native = SelectiveSearch(engine="native").settings()
    assert (native["version"], native["opencv"]) == (selective_search.VERSION, cv2.__version__)


def test_settings_of_opencvs_windows_are_those_of_the_stores_that_exist():
    assert SelectiveSearch(engine="opencv").settings() == {
        "engine": "opencv",
        "opencv": cv2.__version__,
        "order": 1,
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


def test_best_overlaps_by_hand():
    proposals = np.array([[0, 0, 10, 10], [0, 0, 10, 5], [50, 50, 60, 60]], np.float32)
    targets = np.array([[0, 0, 10, 8], [100, 100, 110, 110]], np.float32)
    np.testing.assert_allclose(best_overlaps(proposals, targets), [0.8, 0])
    none = np.zeros((0, 4), np.float32)
    assert best_overlaps(none, targets).tolist() == [0, 0]
    assert best_overlaps(proposals, none).shape == (0,)


def test_recall_table_by_hand():
    table = recall_table(np.array([0.5, 0.7, 0.9, 0.3]), 12.5)
    assert table == {"windows": 12.5, "recall@0.5": 0.75, "recall@0.7": 0.5, "average_best_overlap": pytest.approx(0.6)}
    assert set(recall_table(np.zeros(0), 0.0).values()) == {0.0}
