"""The store: nothing stale is read, nothing is computed twice, damage is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sppdet.data.dataset import Dataset, Sample
from sppdet.data.images import read_image
from sppdet.features import store as cache
from sppdet.features.cached_split import MapSplit
from sppdet.features.store import Store, fill
from sppdet.networks.backbone import Backbone
from sppdet.proposals.search import SelectiveSearch
from sppdet.utils.errors import SppdetError

BOXES = np.array([[0, 0, 5, 5], [1, 2, 3.5, 4]], np.float32)


@pytest.fixture
def images(tmp_path) -> dict[str, Path]:
    """Three images of 4 x 3 pixels of one grey each: 0, 1, 2."""
    paths = {}
    for value in range(3):
        paths[f"p{value}"] = tmp_path / f"p{value}.png"
        Image.new("L", (4, 3), value).save(paths[f"p{value}"])
    return paths


def readers(images: dict[str, Path]) -> dict[str, Callable]:
    return {name: partial(read_image, path) for name, path in images.items()}


def grey(image: np.ndarray) -> np.ndarray:
    return np.full((1, 4), image.mean(), np.float32)


def test_boxes_round_trip(tmp_path):
    store = Store(tmp_path, "proposals", {"k": 50}, ".npy")
    store.write("a", BOXES)
    found = store.read("a")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, BOXES)
    store.write("empty", np.zeros((0, 4), np.float32))
    assert store.read("empty").shape == (0, 4)


def test_maps_round_trip_float16_exactly(tmp_path):
    store = Store(tmp_path, "maps", {}, ".b2nd")
    rng = np.random.default_rng(0)
    half = np.maximum(rng.normal(size=(5, 7, 3)), 0).astype(np.float16)
    half[0, 0] = [65504, 6e-8, 0]  # the largest, the smallest, zero
    store.write("480/a", half.astype(np.float32))
    found = store.read("480/a")
    assert found.dtype == np.float16 and found.shape == (5, 7, 3) and found.flags.c_contiguous
    np.testing.assert_array_equal(found, half)


def test_values_beyond_float16_are_cut_not_infinite(tmp_path):
    found = cache.decompress_map(cache.compress_map(np.array([[[1e6, -1e6]]], np.float32)))
    assert found.tolist() == [[[65504, -65504]]]


def test_other_settings_are_another_folder(tmp_path):
    a, b = Store(tmp_path, "proposals", {"k": 50}, ".npy"), Store(tmp_path, "proposals", {"k": 100}, ".npy")
    a.write("x", BOXES)
    assert b.missing(["x"]) == ["x"] and a.missing(["x"]) == []
    assert json.loads((a.folder / "settings.json").read_text()) == {"k": 50}
    assert Store(tmp_path, "proposals", {"k": 50}, ".npy").missing(["x"]) == []


def test_a_folder_with_other_settings_than_its_name_says(tmp_path):
    store = Store(tmp_path, "maps", {"a": 1}, ".npy")
    (store.folder / "settings.json").write_text('{"a": 2}')
    with pytest.raises(SppdetError, match="other settings than its name says; remove"):
        Store(tmp_path, "maps", {"a": 1}, ".npy")


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return Backbone.create("small", "random", "cpu", "float32")


def split_of(images, folder, backbone, search=None, max_side=100) -> MapSplit:
    nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool)
    dataset = Dataset(("c",), tuple(Sample(name, path, 4, 3, *nothing) for name, path in images.items()))
    return MapSplit.create(dataset, folder, search or SelectiveSearch(), backbone, [3], max_side)


def test_a_changed_image_has_another_entry(tmp_path, images, backbone):
    before = split_of(images, tmp_path, backbone).names
    Image.new("L", (4, 3), 200).save(images["p1"])
    after = split_of(images, tmp_path, backbone).names
    assert [a == b for a, b in zip(before, after)] == [True, False, True]
    assert all(name.startswith(f"{image}-") for name, image in zip(after, images))


def test_what_is_stored_under_other_settings_is_never_read(tmp_path, images, backbone):
    first = split_of(images, tmp_path, backbone)
    assert first.fill_proposals(SelectiveSearch(), 1) == 3 and first.fill_maps(backbone, 1) == 3
    same = split_of(images, tmp_path, backbone)
    assert same.fill_proposals(SelectiveSearch(), 1) == 0 and same.fill_maps(backbone, 1) == 0
    search = SelectiveSearch(base_k=100)
    assert split_of(images, tmp_path, backbone, search).fill_proposals(search, 1) == 3
    other = Backbone.create("small", "random", "cpu", "float32", seed=1)
    assert split_of(images, tmp_path, other).fill_maps(other, 1) == 3
    assert split_of(images, tmp_path, backbone, max_side=90).fill_maps(backbone, 1) == 3
    assert first.fill_maps(backbone, 1, again=True) == 3


def test_missing_size_and_remove(tmp_path):
    store = Store(tmp_path, "maps", {}, ".npy")
    for name in ("480/a", "688/a"):
        store.write(name, BOXES)
    assert store.missing(["688/b", "480/a", "480/b", "688/a"]) == ["688/b", "480/b"]
    assert store.size(["480/a", "480/b"]) == store.path("480/a").stat().st_size
    store.remove(["480/a", "480/b"])
    assert store.missing(["480/a", "688/a"]) == ["480/a"]


@pytest.mark.parametrize("suffix", [".npy", ".b2nd"])
@pytest.mark.parametrize("damage", ["empty", "cut", "rubbish"])
def test_a_damaged_file_is_named(tmp_path, suffix, damage):
    store = Store(tmp_path, "maps", {}, suffix)
    store.write("a", np.random.default_rng(0).normal(size=(8, 8, 4)))
    content = store.path("a").read_bytes()
    store.path("a").write_bytes({"empty": b"", "cut": content[: len(content) // 2], "rubbish": b"rubbish" * 50}[damage])
    with pytest.raises(SppdetError, match=rf"a\{suffix}: the stored file is damaged.*delete it") as caught:
        store.read("a")
    assert "\n" not in str(caught.value)


def test_fill_computes_what_is_missing_once(tmp_path, images):
    store = Store(tmp_path / "cache", "proposals", {}, ".npy")
    calls = []

    def compute(image: np.ndarray) -> np.ndarray:
        calls.append(image.mean())
        return grey(image)

    assert fill(store, readers({"p1": images["p1"]}), compute, 1, "greys") == 1
    assert fill(store, readers(images), compute, 1, "greys") == 2
    assert fill(store, readers(images), compute, 1, "greys") == 0
    assert sorted(calls) == [0, 1, 2]
    assert [store.read(name)[0, 0] for name in images] == [0, 1, 2]


def test_fill_stores_the_others_before_it_tells_of_broken_images(tmp_path, images):
    store = Store(tmp_path / "cache", "proposals", {}, ".npy")
    images["p0"].write_bytes(images["p0"].read_bytes()[:40])
    with pytest.raises(SppdetError, match=r"p0\.png: .*") as caught:
        fill(store, readers(images), grey, 2, "greys", threads=True)
    assert len(str(caught.value).splitlines()) == 1
    assert store.missing(list(images)) == ["p0"]
    Image.new("L", (4, 3), 0).save(images["p0"])
    assert fill(store, readers(images), grey, 1, "greys") == 1


def test_many_broken_images_are_told_shortly(tmp_path):
    paths = {f"x{i}": tmp_path / f"x{i}.png" for i in range(13)}
    with pytest.raises(SppdetError) as caught:
        fill(Store(tmp_path / "cache", "proposals", {}, ".npy"), readers(paths), grey, 1, "greys")
    lines = str(caught.value).splitlines()
    assert len(lines) == 11 and lines[-1] == "and 3 more"


def test_an_image_that_nothing_can_be_made_of_is_named_and_a_full_disk_ends_it(tmp_path, images, monkeypatch):
    store = Store(tmp_path, "proposals", {}, ".npy")

    def too_long(image: np.ndarray) -> np.ndarray:
        if image.max() == 1:
            raise SppdetError("too long to be searched")
        return grey(image)

    with pytest.raises(SppdetError, match=r"^p1: too long to be searched$"):
        fill(store, readers(images), too_long, 1, "test")
    assert store.missing(list(images)) == ["p1"]

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "atomic_write", full)
    with pytest.raises(SppdetError, match=r"run\.cache: .*proposals.* cannot be written \(No space left on device\)"):
        fill(store, readers(images), grey, 1, "test")


def test_an_interrupted_write_leaves_no_entry(tmp_path, images, monkeypatch):
    def half(path: Path, value) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    store = Store(tmp_path / "cache", "proposals", {}, ".npy")
    with monkeypatch.context() as patch:
        patch.setitem(cache._WRITERS, ".npy", half)
        with pytest.raises(KeyboardInterrupt):
            fill(store, readers(images), grey, 1, "greys")
    assert store.missing(list(images)) == list(images)
    assert [path.name for path in store.folder.iterdir()] == ["settings.json"]
