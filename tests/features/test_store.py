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
from sppdet.ops.coded_maps import CodedMap, encode_map
from sppdet.utils.errors import SppdetError
from sppdet.utils.files import atomic_write

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


def test_maps_of_codes_round_trip_exactly(tmp_path):
    store = Store(tmp_path, "maps", {}, ".codes")
    for shape in ((9, 7, 3), (1, 1, 5), (6, 1, 2), (1, 6, 2)):
        expected = encode_map(np.random.default_rng(0).normal(size=shape).astype(np.float32))
        store.write("688/a", expected)
        stored = store.read("688/a")
        for name in ("codes", "scale", "offset"):
            np.testing.assert_array_equal(getattr(stored, name), getattr(expected, name))
        assert stored.codes.flags.c_contiguous and stored.codes.dtype == np.uint8


def test_smooth_maps_of_codes_take_fewer_bits_than_codes():
    # Cells of a product of two waves: differences in both directions are small.
    x, y = np.meshgrid(np.linspace(0, 3, 58), np.linspace(0, 3, 43))
    feature_map = np.stack([np.sin(x + c) * np.cos(y - c) for c in range(16)], axis=2).astype(np.float32)
    assert len(module.compress_codes(encode_map(feature_map))) < 0.5 * feature_map.size


SUFFIXES = (".npy", ".b2nd", ".codes", ".rows")


def value_of(suffix: str) -> np.ndarray | CodedMap:
    """4 KB or more that do not compress."""
    values = np.random.default_rng(0).normal(size=(64, 64) if suffix == ".rows" else (16, 16, 32)).astype(np.float32)
    return encode_map(values) if suffix == ".codes" else values.astype(np.float16) if suffix == ".rows" else values


def stored_values(tmp_path: Path, suffix: str) -> Store:
    """A store with `value_of` as the entry ``a``."""
    store = Store(tmp_path, "maps", {}, suffix)
    store.write("a", value_of(suffix))
    return store


def flipped(content: bytes, position: int, bit: int = 0) -> bytes:
    return content[:position] + bytes([content[position] ^ (1 << bit)]) + content[position + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "without its last byte": lambda content: content[:-1],
    "rubbish": lambda content: b"rubbish" * 50,
    "512 zeroed bytes": lambda content: content[:2000] + bytes(512) + content[2512:],
    "the last 512 bytes zeroed": lambda content: content[:-512] + bytes(512),
    "a flipped bit in the middle": lambda content: flipped(content, len(content) // 2),
    "a flipped bit in the mark of the checksum": lambda content: flipped(content, len(content) - 8, 5),
    "a flipped bit in the checksum": lambda content: flipped(content, len(content) - 1, 7),
}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named(tmp_path, suffix, damage):
    store = stored_values(tmp_path, suffix)
    store.path("a").write_bytes(DAMAGES[damage](store.path("a").read_bytes()))
    with pytest.raises(SppdetError, match=rf"a\{suffix}: the stored file is damaged.*delete it") as caught:
        store.read("a")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_flipped_bit_is_noticed(tmp_path, suffix):
    store = stored_values(tmp_path, suffix)
    content = store.path("a").read_bytes()
    for position in np.random.default_rng(1).integers(0, len(content), 100).tolist():
        store.path("a").write_bytes(flipped(content, position, position % 8))
        with pytest.raises(SppdetError, match="damaged"):
            store.read("a")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_files_of_earlier_versions_have_no_checksum_and_are_read(tmp_path, suffix):
    store = stored_values(tmp_path, suffix)
    expected = store.read("a")
    store.path("a").write_bytes(store.path("a").read_bytes()[:-8])
    values = (value.codes if suffix == ".codes" else value for value in (store.read("a"), expected))
    np.testing.assert_array_equal(*values)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_damaged_entry_is_computed_anew_with_one_warning(tmp_path, suffix, caplog):
    store = stored_values(tmp_path, suffix)
    content = store.path("a").read_bytes()
    calls = []

    def compute() -> np.ndarray | CodedMap:
        calls.append(0)
        return value_of(suffix)

    store.read_or_compute("a", compute)
    assert not calls and not caplog.messages
    store.path("a").write_bytes(flipped(content, 1000))
    store.read_or_compute("a", compute)
    assert store.path("a").read_bytes() == content and len(calls) == 1
    assert caplog.messages == [f"{store.path('a')}: the stored file is damaged; computing it anew"]


def test_a_missing_entry_is_not_called_damaged(tmp_path, caplog):
    store = Store(tmp_path, "proposals", {}, ".npy")
    with pytest.raises(SppdetError, match=r"a\.npy: is missing; where another command fills this cache, run again"):
        store.read("a")
    np.testing.assert_array_equal(store.read_or_compute("a", lambda: BOXES), BOXES)
    assert caplog.messages == [f"{store.path('a')}: the stored file is missing; computing it anew"]


def test_a_damaged_entry_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    store = stored_values(tmp_path, ".npy")
    store.path("a").write_bytes(b"")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "atomic_write", full)
    with pytest.raises(SppdetError, match=r"^run\.cache: .* cannot be written \(No space left on device\)"):
        store.read_or_compute("a", lambda: BOXES)


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
    boxes = {name: partial(np.full, (1, 4), i, np.float32) for i, name in enumerate(images)}
    fill(store, readers(images), lambda image, boxes: grey(image) + 10 * boxes, 1, "greys", boxes=boxes)
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
    def half(path: Path) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    store = Store(tmp_path / "cache", "proposals", {}, ".npy")
    with monkeypatch.context() as patch:
        patch.setattr(module, "atomic_write", lambda path, write: atomic_write(path, half))
        with pytest.raises(KeyboardInterrupt):
            fill(store, readers(images), grey, 1, "greys")
    assert store.missing(list(images)) == list(images)
    assert [path.name for path in store.folder.iterdir()] == ["settings.json"]
