"""The store: nothing stale is read, nothing is computed twice, damage is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sppdet.data.images import read_image
from sppdet.features import store as module
from sppdet.features.store import Store, fill
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
    assert store.read("a").dtype == np.float32
    np.testing.assert_array_equal(store.read("a"), BOXES)
    store.write("empty", np.zeros((0, 4), np.float32))
    assert store.read("empty").shape == (0, 4)


def test_maps_round_trip_exactly_in_float16(tmp_path):
    store = Store(tmp_path, "maps", {}, ".b2nd")
    rng = np.random.default_rng(0)
    half = np.maximum(rng.normal(size=(5, 7, 3)), 0).astype(np.float16)
    half[0, 0] = [65504, 6e-8, 0]  # the largest, the smallest, zero
    store.write("480/a", half.astype(np.float32))
    stored = store.read("480/a")
    assert stored.dtype == np.float16 and stored.shape == (5, 7, 3) and stored.flags.c_contiguous
    np.testing.assert_array_equal(stored, half)


def test_rows_round_trip_exactly(tmp_path):
    store = Store(tmp_path, "crops", {}, ".rows")
    rows = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float16)
    for vectors in (rows, rows[:0]):
        store.write("a", vectors)
        assert store.read("a").dtype == np.float16
        np.testing.assert_array_equal(store.read("a"), vectors)


def test_values_beyond_float16_are_cut_not_infinite():
    stored = module.decompress_map(module.compress_map(np.array([[[1e6, -1e6]]], np.float32)))
    assert stored.tolist() == [[[65504, -65504]]]


def test_other_settings_are_another_folder(tmp_path):
    a, b = Store(tmp_path, "proposals", {"k": 50}, ".npy"), Store(tmp_path, "proposals", {"k": 100}, ".npy")
    a.write("x", BOXES)
    assert b.missing(["x"]) == ["x"] and a.missing(["x"]) == []
    assert json.loads((a.folder / "settings.json").read_text()) == {"k": 50}
    assert Store(tmp_path, "proposals", {"k": 50}, ".npy").missing(["x"]) == []


def test_the_folder_of_settings_is_that_of_earlier_versions(tmp_path):
    # 8 bytes of BLAKE2b of {"k":50}: large caches are used again.
    assert Store(tmp_path, "proposals", {"k": 50}, ".npy").folder == tmp_path / "proposals" / "7e37ff36eed138fe"


def test_a_folder_with_other_settings_than_its_name_says_is_refused(tmp_path):
    store = Store(tmp_path, "maps", {"a": 1}, ".npy")
    (store.folder / "settings.json").write_text('{"a": 2}')
    with pytest.raises(SppdetError, match="other settings than its name says; remove"):
        Store(tmp_path, "maps", {"a": 1}, ".npy")


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


def test_fill_hands_each_entry_its_boxes(tmp_path, images):
    store = Store(tmp_path / "cache", "proposals", {}, ".npy")
    boxes = {name: np.full((1, 4), i, np.float32) for i, name in enumerate(images)}
    fill(store, readers(images), lambda image, boxes: grey(image) + 10 * boxes, 1, "greys", boxes=boxes.__getitem__)
    assert [store.read(name)[0, 0] for name in images] == [0, 11, 22]


def test_fill_stores_the_others_before_it_tells_of_broken_images(tmp_path, images):
    store = Store(tmp_path / "cache", "proposals", {}, ".npy")
    images["p0"].write_bytes(images["p0"].read_bytes()[:40])
    with pytest.raises(SppdetError, match=r"p0\.png: .*") as caught:
        fill(store, readers(images), grey, 2, "greys", threads=True)
    assert "\n" not in str(caught.value)
    assert store.missing(list(images)) == ["p0"]
    Image.new("L", (4, 3), 0).save(images["p0"])
    assert fill(store, readers(images), grey, 1, "greys") == 1


def test_ten_of_many_broken_images_are_named(tmp_path):
    paths = {f"x{i}": tmp_path / f"x{i}.png" for i in range(13)}
    with pytest.raises(SppdetError) as caught:
        fill(Store(tmp_path / "cache", "proposals", {}, ".npy"), readers(paths), grey, 1, "greys")
    *named, last = str(caught.value).splitlines()
    assert last == "and 3 more" and len(named) == 10
    assert all(f"x{i}.png" in line for i, line in enumerate(named))


def test_an_image_that_cannot_be_used_is_named(tmp_path, images):
    store = Store(tmp_path, "proposals", {}, ".npy")

    def too_long(image: np.ndarray) -> np.ndarray:
        if image.max() == 1:
            raise SppdetError("too long to be searched")
        return grey(image)

    with pytest.raises(SppdetError, match=r"^p1: too long to be searched$"):
        fill(store, readers(images), too_long, 1, "test")
    assert store.missing(list(images)) == ["p1"]


def test_a_full_disk_ends_the_work(tmp_path, images, monkeypatch):
    store, computed = Store(tmp_path, "proposals", {}, ".npy"), []

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "atomic_write", full)
    with pytest.raises(SppdetError, match=r"run\.cache: .*proposals.* cannot be written \(No space left on device\)"):
        fill(store, readers(images), lambda image: computed.append(0) or grey(image), 1, "test")
    assert len(computed) == 1


def test_an_interrupted_write_leaves_no_entry(tmp_path, images, monkeypatch):
    def half(path: Path, value) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    store = Store(tmp_path / "cache", "proposals", {}, ".npy")
    with monkeypatch.context() as patch:
        patch.setitem(module._WRITERS, ".npy", half)
        with pytest.raises(KeyboardInterrupt):
            fill(store, readers(images), grey, 1, "greys")
    assert store.missing(list(images)) == list(images)
    assert [path.name for path in store.folder.iterdir()] == ["settings.json"]
